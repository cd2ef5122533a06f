// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A VM with one slot of each sort, and entries for it.

use kvm_memory_host_tests::memslots::check::Origin;
use kvm_memory_host_tests::memslots::types::{Change, Entry};

use crate::oracle::{Rules, Vm, LOG, MEMFD, PAGE, READONLY};

/// An update by the single ioctl.
pub const SINGLE: Origin = Origin::Single;
/// User address of every slot.
pub const HVA: u64 = 1 << 32;
/// The first slot id that userspace cannot use in a list: KVM's own slots start here.
pub const INTERNAL: u32 = Rules::X86.user_slots;
/// The address space of SMM.
pub const SMM: u32 = 1 << 16;

/// The entry that makes `slot` map `pages` pages at the frame `gfn`.
pub fn region(slot: u32, gfn: u64, pages: u64, flags: u32) -> Entry {
    Entry {
        slot,
        flags,
        guest_phys_addr: gfn * PAGE,
        memory_size: pages * PAGE,
        userspace_addr: HVA,
        ..Entry::default()
    }
}

pub fn delete(slot: u32) -> Entry {
    region(slot, 0, 0, 0)
}

/// A VM with slot 0 (logged), 1 (read-only), 2 (on a guest_memfd), a slot of SMM, and one of KVM's
/// own.
pub fn vm() -> Vm {
    let mut vm = Vm::new(Rules::X86);
    for slot in [
        region(0, 10, 4, LOG),
        region(1, 20, 4, READONLY),
        region(2, 30, 4, MEMFD),
        region(SMM, 10, 4, 0),
        region(INTERNAL, 40, 4, 0),
    ] {
        assert_eq!(vm.set(&slot, SINGLE), Ok(Change::Create));
    }
    vm
}
