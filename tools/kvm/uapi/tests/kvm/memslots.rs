// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `KVM_SET_USER_MEMORY_REGION_LIST`.

use std::error::Error as StdError;

use kvm_memory_uapi::{
    Error, Flags, ListFields, Memslots, Region, RegionList, Slot, VmFdMemoryExt,
};

use crate::guest::{page, vm};

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn updates_reach_the_kernel_and_the_record() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let mut memslots = Memslots::new();
    let (a, b) = (page(0, 0x10)?, page(1, 0x20)?);

    let mut update = memslots.update();
    update.create(a)?.create(b)?;
    // SAFETY: the pages stay mapped, and nothing else uses them.
    unsafe { vm.update_memslots(update) }?;

    // The slots change places. Single ioctls would need a third address as well,
    // and the guest would see it.
    let mut update = memslots.update();
    update
        .move_to(a.slot, 0x30_000)?
        .move_to(b.slot, a.guest_phys_addr)?
        .move_to(a.slot, b.guest_phys_addr)?
        .set_flags(b.slot, Flags::LOG_DIRTY_PAGES)?;
    // SAFETY: as above.
    unsafe { vm.update_memslots(update) }?;
    let moved = memslots.get(a.slot).map(|r| r.guest_phys_addr);
    assert_eq!(moved, Some(b.guest_phys_addr));

    // A third slot at the address of `b` overlaps the slot that moved there.
    let mut update = memslots.update();
    update.create(Region {
        guest_phys_addr: b.guest_phys_addr,
        ..page(2, 0)?
    })?;
    // SAFETY: as above.
    let refused = unsafe { vm.update_memslots(update) };
    assert_eq!(refused, Err(Error::Overlap));
    assert_eq!(memslots.get(Slot::new(2)), None);

    let mut update = memslots.update();
    update.delete(a.slot)?.delete(b.slot)?;
    // SAFETY: as above.
    unsafe { vm.update_memslots(update) }?;
    assert_eq!(memslots, Memslots::new());
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn errors_of_lists_have_their_documented_meaning() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let region = page(0, 0x10)?;
    let refused = |list: &RegionList| {
        // SAFETY: the page stays mapped, and nothing else uses it.
        unsafe { vm.set_user_memory_regions(list) }
    };

    assert_eq!(refused(&RegionList::new()), Ok(()));

    let mut list = RegionList::new();
    list.create(region)?.delete(Slot::new(9))?;
    assert_eq!(refused(&list), Err(Error::Invalid));

    let mut list = RegionList::new();
    let space = region.slot.in_address_space(u16::MAX);
    list.create(Region {
        slot: space,
        ..region
    })?;
    assert_eq!(refused(&list), Err(Error::Invalid));

    let mut list = RegionList::new();
    for _ in 0..=vm.max_memory_region_list_entries() {
        list.delete(Slot::new(0))?;
    }
    assert_eq!(refused(&list), Err(Error::TooManyEntries));
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_deleted_slot_leaves_its_dirty_bits() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let region = Region {
        flags: Flags::LOG_DIRTY_PAGES,
        ..page(0, 0x10)?
    };
    assert!(vm
        .memory_region_list_fields()
        .contains(ListFields::DIRTY_BITMAP));
    let mut list = RegionList::new();
    list.create(region)?;
    // SAFETY: the page stays mapped, and nothing else uses it.
    unsafe { vm.set_user_memory_regions(&list) }?;

    let mut bitmap = [u64::MAX; 2];
    let mut list = RegionList::new();
    list.delete_and_fetch_log(region.slot, bitmap.as_mut_ptr())?;
    // SAFETY: the bitmap has room for the one page, and nothing else uses it.
    unsafe { vm.set_user_memory_regions(&list) }?;
    assert_eq!(bitmap, [0, u64::MAX]);
    Ok(())
}
