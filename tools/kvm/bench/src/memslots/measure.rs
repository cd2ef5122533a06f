// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! One measurement: create, flag, move and delete slots.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use kvm_memory_uapi::{Flags, Region, RegionList, Slot, VmFdMemoryExt, PAGE_SIZE};
use vm_memory::MmapRegion;

use crate::flavour::Flavour;

/// Least number of updates in a sample: with a few slots, the operations are
/// repeated, as the clock could not measure one round of them.
const MIN_UPDATES: u16 = 256;

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

/// What a measurement does to every slot, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Create,
    /// Starts dirty logging.
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

    /// The slot after the operation; `memory_size` is 0 if it is deleted.
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

/// The VM on which the operations are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Whether a vCPU runs at the same time, in a slot that no operation changes.
    pub vcpu: bool,
    pub slots: u16,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = if self.vcpu { ", a vCPU running" } else { "" };
        write!(f, "{} slots{vcpu}", self.slots)
    }
}

/// A page for the vCPU and one for each slot. Nothing touches the pages of the
/// slots.
pub struct Memory(MmapRegion);

impl Memory {
    pub fn new(slots: u16) -> Result<Self> {
        let size = (1 + usize::from(slots)) * PAGE_SIZE as usize;
        Ok(Memory(MmapRegion::new(size).context("mmap")?))
    }

    /// Slot `i` as it is created: every second page of the guest, which leaves
    /// room for moves.
    fn region(&self, i: u16) -> Region {
        Region {
            slot: Slot::new(i),
            flags: Flags::empty(),
            guest_phys_addr: (2 + 2 * u64::from(i)) * PAGE_SIZE,
            memory_size: PAGE_SIZE,
            userspace_addr: self.0.as_ptr() as u64 + (1 + u64::from(i)) * PAGE_SIZE,
        }
    }

    /// The first page of the guest, in slot `slot`, which must have no other
    /// use.
    fn vcpu_region(&self, slot: u16) -> Region {
        Region {
            slot: Slot::new(slot),
            guest_phys_addr: 0,
            userspace_addr: self.0.as_ptr() as u64,
            ..self.region(slot)
        }
    }

    /// A byte of the vCPU's page, which the guest may access at the same time.
    fn vcpu_byte(&self, offset: u8) -> &AtomicU8 {
        // SAFETY: the byte is inside the mapping, which lives as long as `self`,
        // and this process and the guest access it atomically only.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(offset.into())) }
    }
}

/// Offsets in the vCPU's page: the guest halts once STOP is not 0, and sets RUNS
/// to show that it runs.
const STOP: u8 = 0x80;
const RUNS: u8 = 0x81;

/// 16-bit code at address 0: `1: movb $1, RUNS; cmpb $0, STOP; je 1b; hlt`.
const GUEST: [u8; 13] = [
    0xc6, 0x06, RUNS, 0, 1, 0x80, 0x3e, STOP, 0, 0, 0x74, 0xf4, 0xf4,
];

/// The time of each operation for all slots together.
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
    // SAFETY: `memory` outlives the VM; this process accesses the page atomically
    // only.
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
        // SAFETY: the memory outlives the VM, and nothing else uses it.
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
    // SAFETY: the memory outlives the VM, and nothing else uses it.
    unsafe { vm.set_user_memory_regions(&list) }?;
    Ok(())
}
