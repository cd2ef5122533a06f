// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! One measurement: slots are created, flagged, moved and deleted again.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use kvm_memory_uapi::{Flags, Region, RegionList, Slot, VmFdMemoryExt, PAGE_SIZE};

/// The updates that make up one sample at least, so that a few slots are not
/// lost in the clock's grain.
const MIN_UPDATES: u16 = 256;

/// A set of KVM modules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    C,
    Rust,
}

impl Flavour {
    pub fn name(self) -> &'static str {
        match self {
            Flavour::C => "c",
            Flavour::Rust => "rust",
        }
    }
}

/// A way to update many slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    SingleC,
    SingleRust,
    List,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::SingleC, Method::SingleRust, Method::List];

    pub fn flavour(self) -> Flavour {
        match self {
            Method::SingleC => Flavour::C,
            Method::SingleRust | Method::List => Flavour::Rust,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::SingleC => "C, single ioctls",
            Method::SingleRust => "Rust, single ioctls",
            Method::List => "Rust, one list",
        })
    }
}

/// What is done to every slot, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Create,
    /// Dirty logging is switched on.
    SetFlags,
    /// By one page.
    Move,
    Delete,
}

impl Operation {
    pub const ALL: [Operation; 4] = [
        Operation::Create,
        Operation::SetFlags,
        Operation::Move,
        Operation::Delete,
    ];

    /// The slot afterwards; `memory_size` 0 if it is gone.
    fn apply(self, region: Region) -> Region {
        match self {
            Operation::Create => region,
            Operation::SetFlags => Region {
                flags: Flags::LOG_DIRTY_PAGES,
                ..region
            },
            Operation::Move => Region {
                guest_phys_addr: region.guest_phys_addr + PAGE_SIZE,
                ..region
            },
            Operation::Delete => Region {
                memory_size: 0,
                ..region
            },
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::Create => "create",
            Operation::SetFlags => "set flags",
            Operation::Move => "move",
            Operation::Delete => "delete",
        })
    }
}

/// What an operation is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Whether a vCPU runs meanwhile, in a slot that stays as it is.
    pub vcpu: bool,
    pub slots: u16,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = if self.vcpu { ", a vCPU running" } else { "" };
        write!(f, "{} slots{vcpu}", self.slots)
    }
}

/// A page for the vCPU and one for each slot. Those are never touched, and all
/// stay mapped for the rest of the process.
pub struct Memory(u64);

impl Memory {
    pub fn new(slots: u16) -> Result<Self> {
        // SAFETY: a new mapping, where the kernel likes it.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (1 + usize::from(slots)) * PAGE_SIZE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        Ok(Memory(addr as u64))
    }

    /// Slot `i` as it is created: every second page of the guest, so that
    /// there is room for moves.
    fn region(&self, i: u16) -> Region {
        Region {
            slot: Slot::new(i),
            flags: Flags::empty(),
            guest_phys_addr: (2 + 2 * u64::from(i)) * PAGE_SIZE,
            memory_size: PAGE_SIZE,
            userspace_addr: self.0 + (1 + u64::from(i)) * PAGE_SIZE,
        }
    }

    /// The first page of the guest, in a slot of an id that is not used
    /// otherwise.
    fn vcpu_region(&self, slot: u16) -> Region {
        Region {
            slot: Slot::new(slot),
            guest_phys_addr: 0,
            userspace_addr: self.0,
            ..self.region(slot)
        }
    }

    /// A byte of the vCPU's page, which the guest may be using too.
    fn vcpu_byte(&self, offset: u8) -> &AtomicU8 {
        // SAFETY: the byte is inside the mapping, which stays for the rest of
        // the process, and nobody uses it but the guest and this.
        unsafe { AtomicU8::from_ptr((self.0 as *mut u8).add(offset.into())) }
    }
}

/// Where the guest finds whether it is to stop, and where it shows that it runs.
const STOP: u8 = 0x80;
const RUNS: u8 = 0x81;

/// 16-bit code at address 0: `1: movb $1, RUNS; cmpb $0, STOP; je 1b; hlt`.
const GUEST: [u8; 13] = [
    0xc6, 0x06, RUNS, 0, 1, 0x80, 0x3e, STOP, 0, 0, 0x74, 0xf4, 0xf4,
];

/// Time that each operation takes for all of the slots together.
pub fn all_operations(
    kvm: &Kvm,
    memory: &Memory,
    case: Case,
    method: Method,
) -> Result<[Duration; 4]> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    if !case.vcpu {
        return cycles(&vm, memory, case.slots, method);
    }

    for (offset, byte) in (0..).zip(GUEST) {
        memory.vcpu_byte(offset).store(byte, Ordering::Relaxed);
    }
    memory.vcpu_byte(STOP).store(0, Ordering::Relaxed);
    memory.vcpu_byte(RUNS).store(0, Ordering::Relaxed);
    // SAFETY: the page stays mapped; this process uses it by atomics only.
    unsafe { vm.set_user_memory_region(memory.vcpu_region(case.slots).into()) }?;
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)?;

    thread::scope(|scope| {
        let guest = scope.spawn(move || match vcpu.run()? {
            VcpuExit::Hlt => Ok(()),
            exit => bail!("the guest stopped with {exit:?}"),
        });
        while memory.vcpu_byte(RUNS).load(Ordering::Relaxed) == 0 && !guest.is_finished() {
            thread::yield_now();
        }
        let times = cycles(&vm, memory, case.slots, method);
        memory.vcpu_byte(STOP).store(1, Ordering::Relaxed);
        guest
            .join()
            .map_err(|_| anyhow!("the vCPU's thread panicked"))?
            .context("KVM_RUN")?;
        times
    })
}

fn cycles(vm: &VmFd, memory: &Memory, slots: u16, method: Method) -> Result<[Duration; 4]> {
    let cycles = MIN_UPDATES.div_ceil(slots);
    let mut times = [Duration::ZERO; 4];
    for _ in 0..cycles {
        let mut regions: Vec<_> = (0..slots).map(|i| memory.region(i)).collect();
        for (operation, time) in Operation::ALL.into_iter().zip(&mut times) {
            let start = Instant::now();
            match method {
                Method::List => list(vm, &regions, operation),
                Method::SingleC | Method::SingleRust => singles(vm, &regions, operation),
            }
            .with_context(|| operation.to_string())?;
            *time += start.elapsed();
            for region in &mut regions {
                *region = operation.apply(*region);
            }
        }
    }
    Ok(times.map(|time| time / u32::from(cycles)))
}

fn singles(vm: &VmFd, regions: &[Region], operation: Operation) -> Result<()> {
    for region in regions {
        let update = kvm_userspace_memory_region::from(operation.apply(*region));
        // SAFETY: the memory stays mapped, and nothing else uses it.
        unsafe { vm.set_user_memory_region(update) }?;
    }
    Ok(())
}

fn list(vm: &VmFd, regions: &[Region], operation: Operation) -> Result<()> {
    let mut list = RegionList::new();
    for region in regions {
        let new = operation.apply(*region);
        match operation {
            Operation::Create => list.create(new),
            Operation::SetFlags => list.set_flags(region, new.flags),
            Operation::Move => list.move_to(region, new.guest_phys_addr),
            Operation::Delete => list.delete(region.slot),
        }?;
    }
    // SAFETY: the memory stays mapped, and nothing else uses it.
    unsafe { vm.set_user_memory_regions(&list) }?;
    Ok(())
}
