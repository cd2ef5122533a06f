// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The guest, which writes to every page of its memory.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{Flags, Region, Slot, Stats, PAGE_SIZE};

use crate::populate::case::{Shape, MIB};
use crate::populate::memory::Memory;
use crate::vcpu::enter_protected_mode;

/// Guest physical address of the program, and of memory in the same page to
/// which the guest can write without effect.
const LOW: u64 = 0;
const SCRATCH: u64 = 0x800;
/// Guest physical address of the memory that is populated.
pub const HIGH: u64 = 256 * MIB;
/// A slot that another thread can update.
const OTHER: u64 = 16 * MIB;
const OTHER_SLOT: u16 = 2;

/// 32-bit code: `1: movl %esi, (%esi); addl $4096, %esi; cmpl %edi, %esi; jb 1b; hlt`.
const PROGRAM: [u8; 13] = [
    0x89, 0x36, 0x81, 0xc6, 0, 0x10, 0, 0, 0x39, 0xfe, 0x72, 0xf4, 0xf4,
];

/// A VM with its memory, and vCPUs that have run already.
pub struct Guest {
    pub vcpus: Vec<VcpuFd>,
    pub vm: VmFd,
    /// The memory that is populated.
    pub high: Memory,
    low: Memory,
}

fn region(slot: u16, gpa: u64, size: u64, memory: &Memory) -> Region {
    Region {
        slot: Slot::new(slot),
        flags: Flags::empty(),
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: memory.addr(),
    }
}

impl Guest {
    pub fn new(kvm: &Kvm, shape: Shape) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let high = Memory::new(shape.size, shape.huge)?;
        let low = Memory::new(PAGE_SIZE, false)?;
        for (offset, byte) in PROGRAM.into_iter().enumerate() {
            // SAFETY: inside the page, which nothing else uses yet.
            unsafe { (low.addr() as *mut u8).add(offset).write(byte) };
        }
        for region in [
            region(0, LOW, PAGE_SIZE, &low),
            region(1, HIGH, shape.size, &high),
            region(OTHER_SLOT, OTHER, PAGE_SIZE, &low),
        ] {
            // SAFETY: the memory stays mapped for as long as the VM exists, and
            // nothing relies on its contents.
            unsafe { vm.set_user_memory_region(region.into()) }
                .context("KVM_SET_USER_MEMORY_REGION")?;
        }
        let mut vcpus = Vec::new();
        for id in 0..shape.vcpus {
            let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
            enter_protected_mode(&vcpu)?;
            vcpus.push(vcpu);
        }
        let mut guest = Guest {
            vcpus,
            vm,
            high,
            low,
        };
        // After this run, no page fault on the program itself counts.
        on_each(&mut guest.vcpus, 0, |vcpu, _, _| touch(vcpu, SCRATCH, 0))?;
        Ok(guest)
    }

    /// The guest writes to every page of the first `size` bytes, one vCPU after
    /// the other: two vCPUs that replace zero pages at the same time make each
    /// other fault again and again.
    pub fn write_in_turn(&mut self, size: u64) -> Result<()> {
        let part = self.high.size() / self.vcpus.len() as u64;
        for (vcpu, start) in self.vcpus.iter_mut().zip((0..size).step_by(part as usize)) {
            touch(vcpu, HIGH + start, part.min(size - start))?;
        }
        Ok(())
    }

    /// Page faults of all vCPUs so far.
    pub fn faults(&self) -> Result<u64> {
        let mut faults = 0;
        for vcpu in &self.vcpus {
            let stat = vcpu.stat("pf_taken").context("KVM_GET_STATS_FD")?;
            faults += stat.context("KVM does not count 'pf_taken'")?;
        }
        Ok(faults)
    }

    /// The slot that another thread can update, as it was created.
    pub fn other(&self) -> Region {
        region(OTHER_SLOT, OTHER, PAGE_SIZE, &self.low)
    }
}

/// Calls `work` for all vCPUs, each in a thread of its own, with the offset and
/// size of its part of `size` bytes. Returns the time from the start of the first
/// thread to the end of the last. The threads take the time themselves, as this
/// thread may be scheduled late.
pub fn on_each(
    vcpus: &mut [VcpuFd],
    size: u64,
    work: impl Fn(&mut VcpuFd, u64, u64) -> Result<()> + Sync,
) -> Result<Duration> {
    let part = size / vcpus.len() as u64;
    let barrier = Barrier::new(vcpus.len());
    let (work, barrier) = (&work, &barrier);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(vcpus)
            .map(|(i, vcpu)| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(vcpu, i * part, part)?;
                    Ok::<_, anyhow::Error>((start, Instant::now()))
                })
            })
            .collect();
        let mut times = Vec::new();
        for thread in threads {
            times.push(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        let start = times.iter().map(|&(start, _)| start).min();
        let end = times.iter().map(|&(_, end)| end).max();
        let (start, end) = start.zip(end).context("no vCPUs")?;
        Ok(end - start)
    })
}

/// The guest writes to every page of `size` bytes from `gpa` on, and to one page
/// if `size` is 0.
pub fn touch(vcpu: &mut VcpuFd, gpa: u64, size: u64) -> Result<()> {
    vcpu.set_regs(&kvm_regs {
        rip: LOW,
        rsi: gpa,
        rdi: gpa + size,
        rflags: 2,
        ..Default::default()
    })?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(exit) => bail!("the guest stopped with {exit:?}"),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e).context("KVM_RUN"),
        }
    }
    let end = vcpu.get_regs()?.rsi;
    ensure!(
        end == gpa + size.max(PAGE_SIZE),
        "the guest halted at {end:#x}"
    );
    Ok(())
}
