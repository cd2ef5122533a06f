// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The guest: each vCPU writes to every page of its share of the memory, again and
//! again, and measures how long a page takes at most. The program is in the first
//! page of the same memory. The vCPUs report in a slot of its own, which no update
//! changes.

use std::arch::global_asm;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_memory_uapi::{Counter, Flags, Region, RegionList, Slot, Stats, PAGE_SIZE};
use kvm_vcpu_threads::{Permit, Threads};

use super::case::{Case, Method, MAX_VCPUS, MIB};
use super::slots::{as_list, one_by_one, Layout, Slots};
use crate::populate::measure::pre_fault;
use crate::populate::memory::Memory;
use crate::vcpu::enter_protected_mode;

/// Guest physical address of the reports, a page for each vCPU.
const REPORTS: u64 = 0;
/// Guest physical address of the memory.
const MEMORY: u64 = 256 * MIB;
/// The id of the slot with the reports.
const REPORTS_SLOT: u16 = 0;

/// A guest that makes no progress for so long is dead.
const HUNG: Duration = Duration::from_secs(60);
/// Interval at which the host looks at the reports.
const POLL: Duration = Duration::from_micros(500);

// Offsets in a vCPU's report.
/// Pages to which it has written, modulo 2^32.
const STEPS: u64 = 0;
/// The longest time between two pages, in units of 2^[`GAP_SHIFT`] TSC cycles.
const LONGEST: u64 = 4;
/// Time stamp of the last page.
const LAST: u64 = 8;
const GAP_SHIFT: u32 = 8;

// 32-bit code with flat segments, without paging.
// ebx to edi share of the memory, ebp report, esi page.
global_asm!(
    r#"
    .pushsection .rodata.kvm_bench_reshape, "a"
    .code32
    .global kvm_bench_reshape
kvm_bench_reshape:
    mov     esi, ebx
    rdtsc
    mov     [ebp + {last}], eax
    mov     [ebp + {last} + 4], edx
2:
    add     dword ptr [esi], 1
    add     esi, {page}
    cmp     esi, edi
    jb      3f
    mov     esi, ebx
3:
    rdtsc
    mov     ecx, eax
    sub     eax, [ebp + {last}]
    mov     [ebp + {last}], ecx
    mov     ecx, edx
    sbb     edx, [ebp + {last} + 4]
    mov     [ebp + {last} + 4], ecx
    shrd    eax, edx, {gap_shift}
    cmp     eax, [ebp + {longest}]
    jbe     4f
    mov     [ebp + {longest}], eax
4:
    inc     dword ptr [ebp + {steps}]
    jmp     2b
    .global kvm_bench_reshape_end
kvm_bench_reshape_end:
    .code64
    .popsection
    "#,
    page = const PAGE_SIZE,
    steps = const STEPS,
    longest = const LONGEST,
    last = const LAST,
    gap_shift = const GAP_SHIFT,
);

extern "C" {
    #[link_name = "kvm_bench_reshape"]
    static PROGRAM_START: u8;
    #[link_name = "kvm_bench_reshape_end"]
    static PROGRAM_END: u8;
}

fn program() -> &'static [u8] {
    let start = &raw const PROGRAM_START;
    let end = &raw const PROGRAM_END;
    // SAFETY: both symbols are defined by the assembly above in one read-only
    // section, the start before the end.
    unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// A VM whose vCPUs run.
pub struct Guest<'a> {
    /// Dropped first: the vCPUs use the rest.
    threads: Threads<()>,
    /// Each vCPU's page faults.
    faults: Vec<Counter>,
    pub slots: Slots,
    case: Case,
    tsc_khz: u32,
    reports: Memory,
    memory: &'a Memory,
    pub vm: VmFd,
}

impl<'a> Guest<'a> {
    /// Starts a guest in the first part of `memory`, which must be present. The guest
    /// has written to all of it when this returns.
    pub fn start(kvm: &Kvm, case: Case, memory: &'a Memory) -> Result<Self> {
        ensure!(
            case.size <= memory.size() && case.vcpus <= MAX_VCPUS,
            "{case}: too large"
        );
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let reports = Memory::new(u64::from(MAX_VCPUS) * PAGE_SIZE, false)?;
        let mut slots = Slots::new(MEMORY, memory.addr());
        for page in 0..case.size / PAGE_SIZE {
            // SAFETY: inside the memory, which nothing else uses yet.
            unsafe { *((memory.addr() + page * PAGE_SIZE) as *mut u32) = 0 };
        }
        // SAFETY: as above.
        unsafe {
            let code = program();
            std::ptr::copy_nonoverlapping(code.as_ptr(), memory.addr() as *mut u8, code.len());
        }
        let mut list = slots.reshape(Layout {
            size: case.size,
            border: None,
        })?;
        list.create(Region {
            slot: Slot::new(REPORTS_SLOT),
            flags: Flags::empty(),
            guest_phys_addr: REPORTS,
            memory_size: reports.size(),
            userspace_addr: reports.addr(),
        })?;
        // SAFETY: `memory` and `reports` stay mapped for as long as the VM exists, and
        // nothing relies on their contents.
        unsafe { one_by_one(&vm, &list) }?;

        let mut fds = (0..case.vcpus)
            .map(|id| new_vcpu(&vm, id, case))
            .collect::<Result<Vec<_>>>()?;
        // Takes a tenth of the time that the guest's own page faults take.
        pre_fault(&mut fds[0], MEMORY, case.size)?;
        let mut faults = Vec::new();
        for fd in &fds {
            let counter = fd.counter("pf_taken").context("KVM_GET_STATS_FD")?;
            faults.push(counter.context("KVM does not count 'pf_taken'")?);
        }
        let tsc_khz = fds[0].get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
        let mut threads = Threads::new();
        for (id, fd) in (0..).zip(fds) {
            threads.start(id, fd, run)?;
        }
        let guest = Guest {
            threads,
            faults,
            slots,
            case,
            tsc_khz,
            reports,
            memory,
            vm,
        };
        guest.wait_for_sweep(&guest.steps(), &mut || ())?;
        Ok(guest)
    }

    /// Applies a list from [`Slots`]. Returns the time that it took, with pausing and
    /// resuming.
    pub fn update(&self, list: &RegionList, method: Method) -> Result<Duration> {
        let start = Instant::now();
        match method {
            Method::Rest => {}
            Method::Paused => {
                self.threads.pause();
                // SAFETY: `Slots` names only the guest's memory, for which the same
                // holds as in `start`.
                let result = unsafe { one_by_one(&self.vm, list) };
                self.threads.resume();
                result?;
            }
            // SAFETY: as above.
            Method::List => unsafe { as_list(&self.vm, list) }?,
        }
        Ok(start.elapsed())
    }

    /// Waits until each vCPU has written to every page of its share since `before`.
    /// Returns for each vCPU how long it took from now, and the number of pages to which
    /// it then had written. Calls `meanwhile` again and again until all have.
    pub fn wait_for_sweep(
        &self,
        before: &[u32],
        meanwhile: &mut impl FnMut(),
    ) -> Result<Vec<(Duration, u32)>> {
        let start = Instant::now();
        let mut ends = vec![None; before.len()];
        let mut progress = (self.steps(), Duration::ZERO);
        loop {
            let now = start.elapsed();
            let steps = self.steps();
            for (vcpu, end) in ends.iter_mut().enumerate() {
                // The page in progress may have been begun before.
                let since = steps[vcpu].wrapping_sub(before[vcpu]);
                if u64::from(since) > share(self.case, vcpu as u8).1 {
                    end.get_or_insert((now, steps[vcpu]));
                }
            }
            meanwhile();
            if let Some(ends) = ends.iter().copied().collect() {
                return Ok(ends);
            }
            self.check()?;
            if progress.0 != steps {
                progress = (steps, now);
            }
            ensure!(now - progress.1 < HUNG, "the guest hangs");
            thread::sleep(POLL);
        }
    }

    /// The number of pages to which each vCPU has written.
    pub fn steps(&self) -> Vec<u32> {
        (0..self.case.vcpus)
            .map(|vcpu| self.report(vcpu, STEPS).load(Ordering::Relaxed))
            .collect()
    }

    /// The longest time that each vCPU took for a page since the last call.
    pub fn take_longest(&self) -> Vec<Duration> {
        (0..self.case.vcpus)
            .map(|vcpu| {
                let gap = self.report(vcpu, LONGEST).swap(0, Ordering::Relaxed);
                let cycles = u64::from(gap) << GAP_SHIFT;
                Duration::from_secs_f64(cycles as f64 / (f64::from(self.tsc_khz.max(1)) * 1e3))
            })
            .collect()
    }

    /// Page faults of all vCPUs so far.
    pub fn faults(&self) -> Result<u64> {
        let mut faults = 0;
        for counter in &self.faults {
            faults += counter.read().context("statistics of a vCPU")?;
        }
        Ok(faults)
    }

    /// Ends the guest. Fails if a write to its memory is lost, or one too many.
    pub fn finish(mut self) -> Result<()> {
        self.check()?;
        self.threads.quit();
        for vcpu in 0..self.case.vcpus {
            let (first, count) = share(self.case, vcpu);
            let steps = self.report(vcpu, STEPS).load(Ordering::Relaxed);
            for page in 0..count {
                // SAFETY: inside the memory, which nothing else uses any more.
                let word =
                    unsafe { *((self.memory.addr() + (first + page) * PAGE_SIZE) as *const u32) };
                let sweeps = u64::from(steps) / count;
                let place = u64::from(steps) % count;
                let written = sweeps + u64::from(page < place);
                // A vCPU counts a page after it has written to it.
                let counted = page != place;
                ensure!(
                    u64::from(word) == written || !counted && u64::from(word) == written + 1,
                    "vCPU {vcpu} wrote {written} times to page {page} of its share, which has {word}"
                );
            }
        }
        Ok(())
    }

    /// Fails if a vCPU could not go on.
    fn check(&self) -> Result<()> {
        match self.threads.failure() {
            Some(failure) => bail!(failure),
            None => Ok(()),
        }
    }

    fn report(&self, vcpu: u8, field: u64) -> &AtomicU32 {
        let addr = self.reports.addr() + u64::from(vcpu) * PAGE_SIZE + field;
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned. This
        // process accesses it atomically only.
        unsafe { AtomicU32::from_ptr(addr as *mut u32) }
    }
}

/// The first page of a vCPU's share, and the number of pages in it.
fn share(case: Case, vcpu: u8) -> (u64, u64) {
    // The first page has the program.
    let pages = case.size / PAGE_SIZE - 1;
    let start = |vcpu: u8| u64::from(vcpu) * pages / u64::from(case.vcpus);
    (1 + start(vcpu), start(vcpu + 1) - start(vcpu))
}

fn new_vcpu(vm: &VmFd, id: u8, case: Case) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
    enter_protected_mode(&vcpu)?;
    let (first, count) = share(case, id);
    vcpu.set_regs(&kvm_regs {
        rip: MEMORY,
        rbx: MEMORY + first * PAGE_SIZE,
        rdi: MEMORY + (first + count) * PAGE_SIZE,
        rbp: REPORTS + u64::from(id) * PAGE_SIZE,
        rflags: 2,
        ..Default::default()
    })
    .context("KVM_SET_REGS")?;
    Ok(vcpu)
}

/// Runs a vCPU until its thread must end.
fn run(fd: &mut VcpuFd, permit: Permit<'_>) {
    while permit.may_run() {
        match fd.run() {
            Ok(exit) => return permit.fail(format!("a vCPU stopped with {exit:?}")),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return permit.fail(format!("KVM_RUN: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_pages_but_the_first() {
        for (size, vcpus) in [(64 * MIB, 1), (MIB, 3), (256 * MIB, MAX_VCPUS)] {
            let case = Case { size, vcpus };
            let mut next = 1;
            for vcpu in 0..vcpus {
                let (first, count) = share(case, vcpu);
                assert_eq!(first, next);
                next += count;
            }
            assert_eq!(next, size / PAGE_SIZE);
        }
    }
}
