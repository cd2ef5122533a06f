// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A VM that runs the guest, one thread per vCPU.
//!
//! Pausing works as in QEMU: `kvm_run.immediate_exit` and a signal bring every
//! vCPU thread out of `KVM_RUN`, and it waits until it may go on.

use std::{
    sync::{
        atomic::{AtomicU8, Ordering},
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{anyhow, Context, Result};
use kvm_bindings::{
    kvm_cpuid_entry2, kvm_regs, kvm_segment, kvm_userspace_memory_region, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{Access, Flags, Mapping, Region, RegionList, Slot, VmFdMemoryExt};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

use crate::{
    guest::{self, Device, Replay, Variant},
    plan::Window,
    prefault,
};

/// Not one of the slots that a plan uses.
const REPORT_SLOT: Slot = Slot::new(2);

/// A guest that has not halted this long after it was told to is stuck.
const HALT_TIMEOUT: Duration = Duration::from_secs(10);

/// A VM with the guest's program in it and its vCPUs running.
pub struct Machine {
    memory: GuestMemoryMmap,
    window: Window,
    tsc_khz: u32,
    vcpus: Vec<Vcpu>,
    shared: Arc<Shared>,
    vm: VmFd,
}

struct Vcpu {
    /// Gives back the vCPU, and what it computed wrongly if it came to its end.
    thread: JoinHandle<(VcpuFd, Result<Option<String>>)>,
    immediate_exit: ImmediateExit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    Quit,
}

struct State {
    order: Order,
    /// Threads that still run their vCPU, the parked ones included.
    alive: usize,
    parked: usize,
    /// How the first vCPU died that did.
    death: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one assignment: a panic leaves none half
        // done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a vCPU thread may enter `KVM_RUN`; waits while it is to pause.
    fn may_run(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::Pause {
            state.parked += 1;
            self.changed.notify_all();
            while state.order == Order::Pause {
                state = self.wait(state);
            }
            state.parked -= 1;
        }
        state.order == Order::Run
    }

    fn ended(&self, death: Option<String>) {
        let mut state = self.lock();
        state.alive -= 1;
        if state.death.is_none() {
            state.death = death;
        }
        self.changed.notify_all();
    }
}

/// `kvm_run.immediate_exit` of a vCPU, for its own and the controlling thread.
///
/// # Invariants
///
/// Points into the mapping of the vCPU's `kvm_run`, and is not used after the
/// `VcpuFd` that owns the mapping is gone.
#[derive(Clone, Copy)]
struct ImmediateExit(*mut u8);

// SAFETY: the byte is only ever accessed as an atomic.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn set(self, value: bool) {
        // SAFETY: the invariants say that the byte is mapped.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value.into(), Ordering::SeqCst);
    }
}

/// Makes the signal known that brings vCPU threads out of `KVM_RUN`; once per
/// process, before the first [`Machine`].
pub fn register_kick() -> Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).context("cannot set the signal handler")
}

impl Machine {
    /// With `prefault`, the guest's memory is populated before it runs.
    pub fn start(kvm: &Kvm, vcpus: u64, variant: Variant, prefault: bool) -> Result<Machine> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(guest::WINDOW), guest::WINDOW_FULL as usize),
            (GuestAddress(guest::REPORT), guest::REPORT_SIZE as usize),
        ])
        .context("cannot map memory for the guest")?;
        guest::load(&memory).context("cannot write the guest's program")?;

        let hva = |gpa| -> Result<u64> { Ok(memory.get_host_address(GuestAddress(gpa))? as u64) };
        let window = Window {
            gpa: guest::WINDOW,
            alias_gpa: guest::ALIAS,
            hva: hva(guest::WINDOW)?,
            working: guest::WINDOW_WORKING,
            full: guest::WINDOW_FULL,
        };
        let report = Region {
            slot: REPORT_SLOT,
            flags: Flags::empty(),
            guest_phys_addr: guest::REPORT,
            memory_size: guest::REPORT_SIZE,
            userspace_addr: hva(guest::REPORT)?,
        };

        let mut machine = Machine {
            memory,
            window,
            tsc_khz: 0,
            vcpus: Vec::new(),
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    order: Order::Run,
                    alive: 0,
                    parked: 0,
                    death: None,
                }),
                changed: Condvar::new(),
            }),
            vm,
        };
        let mut slots = RegionList::new();
        slots.create(window.initial())?.create(report)?;
        machine.set_one_by_one(&slots)?;
        let mut fds = (0..vcpus)
            .map(|id| {
                new_vcpu(kvm, &machine.vm, id, &guest::Entry::new(id, variant))
                    .with_context(|| format!("cannot make vCPU {id}"))
            })
            .collect::<Result<Vec<_>>>()?;
        if prefault {
            let mappings = slots
                .entries()
                .iter()
                .map(|slot| Mapping::new(slot.guest_phys_addr, slot.memory_size, Access::WRITE))
                .collect::<Result<Vec<_>, _>>()?;
            prefault::populate(&mut fds, &mappings)?;
        }
        for (id, fd) in (0..).zip(fds) {
            machine
                .start_vcpu(fd, id, variant)
                .with_context(|| format!("cannot start vCPU {id}"))?;
        }
        Ok(machine)
    }

    fn start_vcpu(&mut self, mut fd: VcpuFd, id: u64, variant: Variant) -> Result<()> {
        self.tsc_khz = fd.get_tsc_khz().context("KVM_GET_TSC_KHZ failed")?;

        // INVARIANT: the VcpuFd goes into the thread and from there into the
        // result that `Vcpu::thread` holds.
        let immediate_exit = ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit);
        let (shared, memory) = (self.shared.clone(), self.memory.clone());
        let thread = move || {
            let mut device = Device::default();
            let end = run_vcpu(&mut fd, immediate_exit, &mut device, &shared);
            let halted = matches!(end, End::Halted);
            shared.ended(match end {
                End::Died(how) => Some(format!("vCPU {id}: {how}")),
                End::Halted | End::Quit => None,
            });
            let wrong = if halted {
                compare(id, variant, &fd, &device, &memory)
            } else {
                Ok(None)
            };
            (fd, wrong)
        };
        self.shared.lock().alive += 1;
        match thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(thread)
        {
            Ok(thread) => self.vcpus.push(Vcpu {
                thread,
                immediate_exit,
            }),
            Err(e) => {
                self.shared.lock().alive -= 1;
                return Err(e).context("cannot create a thread");
            }
        }
        Ok(())
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    pub fn window(&self) -> Window {
        self.window
    }

    /// How the guest died, if it did.
    pub fn death(&self) -> Option<String> {
        self.shared.lock().death.clone()
    }

    /// Where a vCPU is in its program. Stops all of them for good.
    pub fn locate(&mut self, vcpu: usize) -> Result<u64> {
        drop(self.order(Order::Quit));
        self.shared.changed.notify_all();
        let (fd, _) = self
            .vcpus
            .swap_remove(vcpu)
            .thread
            .join()
            .map_err(|_| anyhow!("a vCPU thread panicked"))?;
        Ok(fd.get_regs().context("KVM_GET_REGS failed")?.rip)
    }

    /// The longest time any vCPU took from one step to the next, as it measured
    /// it itself, since the last call.
    pub fn take_longest_gap(&self) -> Result<Duration> {
        let mut cycles = 0u64;
        for vcpu in 0..self.vcpus.len() as u64 {
            let gap = guest::longest_gap(vcpu);
            cycles = cycles.max(self.memory.load(gap, Ordering::Relaxed)?);
            self.memory.store(0u64, gap, Ordering::Relaxed)?;
        }
        let nanoseconds = u128::from(cycles) * 1_000_000 / u128::from(self.tsc_khz.max(1));
        Ok(Duration::from_nanos(nanoseconds as u64))
    }

    /// Applies the list with one `KVM_SET_USER_MEMORY_REGION` per entry.
    pub fn set_one_by_one(&self, list: &RegionList) -> Result<()> {
        for (index, entry) in list.entries().iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: entry.slot,
                flags: entry.flags,
                guest_phys_addr: entry.guest_phys_addr,
                memory_size: entry.memory_size,
                userspace_addr: entry.userspace_addr,
            };
            // SAFETY: only memory of `self.memory` is ever named, which stays
            // mapped while a vCPU runs, and nobody holds references into it.
            unsafe { self.vm.set_user_memory_region(region) }
                .with_context(|| format!("KVM_SET_USER_MEMORY_REGION of entry {index} failed"))?;
        }
        Ok(())
    }

    /// The same with no vCPU running meanwhile.
    pub fn set_one_by_one_paused(&self, list: &RegionList) -> Result<()> {
        let mut state = self.order(Order::Pause);
        while state.parked < state.alive {
            state = self.shared.wait(state);
        }
        drop(state);
        let result = self.set_one_by_one(list);
        self.shared.lock().order = Order::Run;
        self.shared.changed.notify_all();
        result
    }

    /// Applies the list with one `KVM_SET_USER_MEMORY_REGION_LIST`.
    pub fn set_list(&self, list: &RegionList) -> Result<()> {
        // SAFETY: as in `set_one_by_one`.
        unsafe { self.vm.set_user_memory_regions(list) }
            .context("KVM_SET_USER_MEMORY_REGION_LIST failed")
    }

    /// Gives an order and brings all vCPU threads out of `KVM_RUN` to hear it.
    fn order(&self, order: Order) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.order = order;
        for vcpu in &self.vcpus {
            // A thread looks at the order after it has cleared this, so either
            // it sees the order or KVM_RUN sees this.
            vcpu.immediate_exit.set(true);
            // Fails for a thread that has ended, which needs no kick.
            let _ = vcpu.thread.kill(SIGRTMIN());
        }
        state
    }

    /// Lets the guest come to its end and compares what it has computed with a
    /// replay: what is wrong, if anything.
    pub fn finish(mut self) -> Result<Option<String>> {
        for vcpu in 0..self.vcpus.len() as u64 {
            self.memory
                .store(1u64, guest::stop(vcpu), Ordering::Relaxed)?;
        }
        let deadline = Instant::now() + HALT_TIMEOUT;
        let mut state = self.shared.lock();
        while state.alive > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(Some("the guest does not come to its end".to_owned()));
            };
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let death = state.death.clone();
        drop(state);

        let mut wrong = death;
        for vcpu in self.vcpus.drain(..) {
            let (_, found) = vcpu
                .thread
                .join()
                .map_err(|_| anyhow!("a vCPU thread panicked"))?;
            wrong = wrong.or(found?);
        }
        Ok(wrong)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.order(Order::Quit));
        self.shared.changed.notify_all();
        for vcpu in self.vcpus.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = vcpu.thread.join();
        }
    }
}

/// A vCPU in 64-bit mode.
pub fn new_vcpu(kvm: &Kvm, vm: &VmFd, id: u64, entry: &guest::Entry) -> Result<VcpuFd> {
    let fd = vm.create_vcpu(id).context("KVM_CREATE_VCPU failed")?;

    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID failed")?;
    let [eax, ebx, ecx, edx] = guest::CPUID_RESULT;
    cpuid
        .push(kvm_cpuid_entry2 {
            function: guest::CPUID_FUNCTION,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        })
        .map_err(|e| anyhow!("no room for one more CPUID entry: {e:?}"))?;
    fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2 failed")?;

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS failed")?;
    // 64-bit mode at once. The guest never loads a segment register, so it needs
    // no GDT; without an IDT an exception is its death.
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3, // data, writable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x8,
        type_: 11, // code, readable, accessed
        db: 0,
        l: 1,
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.idt.limit = 0;
    sregs.cr0 = (1 << 31) | (1 << 5) | (1 << 4) | 1; // PG, NE, ET, PE
    sregs.cr3 = entry.page_table;
    sregs.cr4 = 1 << 5; // PAE
    sregs.efer = (1 << 10) | (1 << 8); // LMA, LME
    fd.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
    fd.set_regs(&kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rflags: 2,
        r10: entry.r10,
        r11: entry.r11,
        r12: entry.r12,
        r14: entry.r14,
        r15: entry.r15,
        ..Default::default()
    })
    .context("KVM_SET_REGS failed")?;
    Ok(fd)
}

/// Why a vCPU thread does not run its vCPU any more.
enum End {
    /// The guest came to the end of its program.
    Halted,
    Quit,
    Died(String),
}

fn run_vcpu(
    fd: &mut VcpuFd,
    immediate_exit: ImmediateExit,
    device: &mut Device,
    shared: &Shared,
) -> End {
    loop {
        immediate_exit.set(false);
        if !shared.may_run() {
            return End::Quit;
        }
        let how = match fd.run() {
            Ok(VcpuExit::IoOut(guest::PORT, bytes) | VcpuExit::MmioWrite(guest::DEVICE, bytes)) => {
                device.write(bytes);
                continue;
            }
            Ok(VcpuExit::IoIn(guest::PORT, bytes) | VcpuExit::MmioRead(guest::DEVICE, bytes)) => {
                device.read(bytes);
                continue;
            }
            Ok(VcpuExit::Hlt) => return End::Halted,
            Err(e) if e.errno() == libc::EINTR => continue,
            Ok(VcpuExit::MmioWrite(gpa, bytes)) => mmio("write", gpa, bytes.len()),
            Ok(VcpuExit::MmioRead(gpa, bytes)) => mmio("read", gpa, bytes.len()),
            Ok(VcpuExit::InternalError) => internal_error(fd),
            // An exception. The vCPU has been reset, so it cannot be said where.
            Ok(VcpuExit::Shutdown) => {
                return End::Died("KVM_EXIT_SHUTDOWN (triple fault)".to_owned())
            }
            Ok(exit) => format!("unexpected exit {exit:?}"),
            Err(e) => format!("KVM_RUN: {e}"),
        };
        let rip = fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        return End::Died(format!("{how} at rip {rip:#x}"));
    }
}

/// An MMIO exit where the guest has memory: it would lose a write, and read
/// something else.
fn mmio(what: &str, gpa: u64, bytes: usize) -> String {
    format!("KVM_EXIT_MMIO, {what} of {bytes} bytes of its memory at {gpa:#x}")
}

fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: for KVM_EXIT_INTERNAL_ERROR this is the member that KVM fills.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let name = match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "emulation failed",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "event delivery",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({name})")
}

fn compare(
    id: u64,
    variant: Variant,
    fd: &VcpuFd,
    device: &Device,
    memory: &GuestMemoryMmap,
) -> Result<Option<String>> {
    let steps: u64 = memory.load(guest::steps(id), Ordering::Relaxed)?;
    let mut replay = Replay::new(id, variant);
    for _ in 0..steps {
        replay.step();
    }
    let r12 = fd.get_regs().context("KVM_GET_REGS failed")?.r12;
    Ok(replay.compare(id, r12, device, memory)?)
}
