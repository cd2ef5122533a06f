// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The crate on a kernel with the ioctl: `cargo test -- --ignored` in the test VM.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_memory_uapi::{
    Access, Error, Flags, MapError, Mapping, Memslots, Progress, Region, RegionList, Slot, Stats,
    VcpuFdMemoryExt, VmFdMemoryExt, PAGE_SIZE,
};

fn vm() -> Result<VmFd, Box<dyn StdError>> {
    let vm = Kvm::new()?.create_vm()?;
    assert!(vm.max_memory_region_list_entries() > 0, "no list ioctl");
    Ok(vm)
}

/// One page of memory that is never unmapped, at the given guest page.
fn page(slot: u16, gfn: u64) -> Result<Region, std::io::Error> {
    pages(slot, gfn, 1)
}

/// The same with several pages, which are not there until they are touched.
fn pages(slot: u16, gfn: u64, n: u64) -> Result<Region, std::io::Error> {
    // SAFETY: a new anonymous mapping, where the kernel likes it.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            (n * PAGE_SIZE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Region {
        slot: Slot::new(slot),
        flags: Flags::empty(),
        guest_phys_addr: gfn * PAGE_SIZE,
        memory_size: n * PAGE_SIZE,
        userspace_addr: addr as u64,
    })
}

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

    // They change places, which the single ioctl cannot do without a detour.
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

    // The kernel agrees: a third slot over the first one overlaps.
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
fn errors_are_what_they_say() -> Result<(), Box<dyn StdError>> {
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

/// A VM with these slots, and a vCPU.
fn vm_with(regions: &[Region]) -> Result<(VmFd, VcpuFd), Box<dyn StdError>> {
    let vm = vm()?;
    assert!(vm.can_map_memory(), "memory cannot be populated");
    let mut list = RegionList::new();
    for &region in regions {
        list.create(region)?;
    }
    // SAFETY: the pages stay mapped, and nothing else uses them.
    unsafe { vm.set_user_memory_regions(&list) }?;
    let vcpu = vm.create_vcpu(0)?;
    Ok((vm, vcpu))
}

/// Which pages of the region the host has.
fn present(region: &Region) -> Result<Vec<bool>, std::io::Error> {
    let mut pages = vec![0; (region.memory_size / PAGE_SIZE) as usize];
    // SAFETY: the vector has a byte for each page.
    let ret = unsafe {
        libc::mincore(
            region.userspace_addr as *mut libc::c_void,
            region.memory_size as usize,
            pages.as_mut_ptr(),
        )
    };
    if ret != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
}

/// A word at the start of a page, which the kernel may be writing to.
fn word(region: &Region, page: u64) -> &'static AtomicU64 {
    assert!(page < region.memory_size / PAGE_SIZE);
    // SAFETY: inside a mapping that stays, and used by atomics only.
    unsafe { AtomicU64::from_ptr((region.userspace_addr + page * PAGE_SIZE) as *mut u64) }
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_range_is_populated_and_nothing_else() -> Result<(), Box<dyn StdError>> {
    let region = pages(0, 0x10, 8)?;
    let (_vm, mut vcpu) = vm_with(&[region])?;

    let mut mapping = Mapping::new(0x12_000, 0x3000, Access::WRITE)?;
    vcpu.map_memory(&mut mapping)?;
    assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x15_000, 0));
    let expected = [false, false, true, true, true, false, false, false];
    assert_eq!(present(&region)?, expected);
    // Nothing is left to do.
    assert_eq!(vcpu.map_memory_step(&mut mapping), Ok(0));
    // Not faults of the guest.
    assert_eq!(vcpu.stat("pf_taken")?, Some(0));
    assert_eq!(vcpu.stat("no such thing")?, None);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_source_is_copied() -> Result<(), Box<dyn StdError>> {
    let (region, source) = (pages(0, 0x10, 4)?, pages(1, 0x20, 4)?);
    let (_vm, mut vcpu) = vm_with(&[region])?;
    for page in 0..4 {
        word(&source, page).store(100 + page, Ordering::Relaxed);
    }
    let mapping = Mapping::new(region.guest_phys_addr, 0x4000, Access::WRITE)?;
    // SAFETY: the source stays mapped, and is used by atomics only.
    let mut mapping = unsafe { mapping.with_source(source.userspace_addr) }?;
    vcpu.map_memory(&mut mapping)?;
    assert_eq!(mapping.source(), Some(source.userspace_addr + 0x4000));
    for page in 0..4 {
        let copied = word(&region, page).load(Ordering::Relaxed);
        assert_eq!(copied, 100 + page);
    }
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn more_than_a_call_takes_is_steps_with_progress() -> Result<(), Box<dyn StdError>> {
    // A read maps the zero page: no memory is used.
    const PAGES: u64 = (1 << 16) + 100;
    let region = pages(0, 0x100, PAGES)?;
    let (_vm, mut vcpu) = vm_with(&[region])?;
    let mapping = Mapping::new(region.guest_phys_addr, region.memory_size, Access::empty())?;

    let mut by_steps = mapping;
    assert_eq!(vcpu.map_memory_step(&mut by_steps), Ok(100));
    assert_eq!(by_steps.guest_phys_addr(), (0x100 + (1 << 16)) * PAGE_SIZE);
    assert_eq!(vcpu.map_memory_step(&mut by_steps), Ok(0));

    let mut iterated = mapping;
    let steps: Result<Vec<_>, _> = vcpu.map_memory_steps(&mut iterated).collect();
    let at = |done| Progress { done, total: PAGES };
    assert_eq!(steps?, [at(1 << 16), at(PAGES)]);
    assert_eq!(iterated.pages(), 0);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn after_an_error_the_rest_is_left_and_can_be_gone_on_with() -> Result<(), Box<dyn StdError>> {
    let (low, high) = (pages(0, 0x10, 3)?, pages(1, 0x13, 2)?);
    let (vm, mut vcpu) = vm_with(&[low])?;
    let mut mapping = Mapping::new(low.guest_phys_addr, 5 * PAGE_SIZE, Access::WRITE)?;
    assert_eq!(vcpu.map_memory(&mut mapping), Err(MapError::NoMemslot));
    assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x13_000, 2));
    {
        let mut steps = vcpu.map_memory_steps(&mut mapping);
        assert_eq!(steps.next(), Some(Err(MapError::NoMemslot)));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.left().pages(), 2);
    }
    // SAFETY: the pages stay mapped, and nothing else uses them.
    unsafe { vm.set_user_memory_region(high.into()) }?;
    assert_eq!(vcpu.map_memory(&mut mapping), Ok(()));
    assert_eq!(present(&high)?, [true, true]);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn errors_of_mapping_are_what_they_say() -> Result<(), Box<dyn StdError>> {
    let readonly = Region {
        flags: Flags::READONLY,
        ..page(1, 0x20)?
    };
    let gone = page(2, 0x30)?;
    let (_vm, mut vcpu) = vm_with(&[page(0, 0x10)?, readonly, gone])?;
    // SAFETY: the page is this test's own.
    let ret = unsafe { libc::munmap(gone.userspace_addr as *mut libc::c_void, 0x1000) };
    assert_eq!(ret, 0);

    let page = |gfn, access| Mapping::new(gfn * PAGE_SIZE, PAGE_SIZE, access);
    let filled = |gfn, source| {
        // SAFETY: the sources are pages that nothing uses, or none.
        unsafe { page(gfn, Access::empty())?.with_source(source) }
    };
    for (mut mapping, error) in [
        (page(0x40, Access::empty())?, MapError::NoMemslot),
        (page(0x20, Access::WRITE)?, MapError::NoMemslot),
        (page(0x30, Access::empty())?, MapError::BadAddress),
        (filled(0x10, gone.userspace_addr)?, MapError::BadAddress),
        (filled(0x10, 1 << 63)?, MapError::BadAddress),
        (filled(0x20, readonly.userspace_addr)?, MapError::NoMemslot),
        (page(1 << 50, Access::empty())?, MapError::Invalid),
        (page(0x10, Access::PRIVATE)?, MapError::Invalid),
    ] {
        let before = mapping;
        assert_eq!(vcpu.map_memory(&mut mapping), Err(error), "{before:x?}");
        assert_eq!(mapping, before);
    }
    assert_eq!(vcpu.map_memory(&mut page(0x20, Access::empty())?), Ok(()));
    Ok(())
}
