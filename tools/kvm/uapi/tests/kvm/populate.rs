// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `KVM_MAP_MEMORY`.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{VcpuFd, VmFd};
use kvm_memory_uapi::{
    Access, Flags, Mapping, PopulateError, Progress, Region, RegionList, Stats, VcpuFdMemoryExt,
    VmFdMemoryExt, PAGE_SIZE,
};

use crate::guest::{page, pages, vm};

/// A VM with these slots, and a vCPU.
fn vm_with(regions: &[Region]) -> Result<(VmFd, VcpuFd), Box<dyn StdError>> {
    let vm = vm()?;
    assert!(vm.can_populate(), "no KVM_MAP_MEMORY");
    let mut list = RegionList::new();
    for &region in regions {
        list.create(region)?;
    }
    // SAFETY: the pages stay mapped, and nothing else uses them.
    unsafe { vm.set_user_memory_regions(&list) }?;
    let vcpu = vm.create_vcpu(0)?;
    Ok((vm, vcpu))
}

/// For each page of the region, whether it is present on the host.
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

/// The word at the start of a page, to which the kernel may write at the same
/// time.
fn word(region: &Region, page: u64) -> &'static AtomicU64 {
    assert!(page < region.memory_size / PAGE_SIZE);
    // SAFETY: inside a mapping that stays, and only accessed atomically.
    unsafe { AtomicU64::from_ptr((region.userspace_addr + page * PAGE_SIZE) as *mut u64) }
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_range_is_populated_and_nothing_else() -> Result<(), Box<dyn StdError>> {
    let region = pages(0, 0x10, 8)?;
    let (_vm, mut vcpu) = vm_with(&[region])?;

    let mut mapping = Mapping::new(0x12_000, 0x3000, Access::WRITE)?;
    vcpu.populate(&mut mapping)?;
    assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x15_000, 0));
    let expected = [false, false, true, true, true, false, false, false];
    assert_eq!(present(&region)?, expected);
    // Nothing is left.
    assert_eq!(vcpu.populate_step(&mut mapping), Ok(0));
    // Populating does not count as page faults of the guest.
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
    // SAFETY: the source stays mapped, and is only accessed atomically.
    let mut mapping = unsafe { mapping.with_source(source.userspace_addr) }?;
    vcpu.populate(&mut mapping)?;
    assert_eq!(mapping.source(), Some(source.userspace_addr + 0x4000));
    for page in 0..4 {
        let copied = word(&region, page).load(Ordering::Relaxed);
        assert_eq!(copied, 100 + page);
    }
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_large_range_takes_steps_with_progress() -> Result<(), Box<dyn StdError>> {
    // A read maps the zero page, so this takes no memory.
    const PAGES: u64 = (1 << 16) + 100;
    let region = pages(0, 0x100, PAGES)?;
    let (_vm, mut vcpu) = vm_with(&[region])?;
    let mapping = Mapping::new(region.guest_phys_addr, region.memory_size, Access::empty())?;

    let mut by_steps = mapping;
    assert_eq!(vcpu.populate_step(&mut by_steps), Ok(100));
    assert_eq!(by_steps.guest_phys_addr(), (0x100 + (1 << 16)) * PAGE_SIZE);
    assert_eq!(vcpu.populate_step(&mut by_steps), Ok(0));

    let mut iterated = mapping;
    let steps: Result<Vec<_>, _> = vcpu.populate_steps(&mut iterated).collect();
    let at = |done| Progress { done, total: PAGES };
    assert_eq!(steps?, [at(1 << 16), at(PAGES)]);
    assert_eq!(iterated.pages(), 0);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn after_an_error_populating_continues_with_the_rest() -> Result<(), Box<dyn StdError>> {
    let (low, high) = (pages(0, 0x10, 3)?, pages(1, 0x13, 2)?);
    let (vm, mut vcpu) = vm_with(&[low])?;
    let mut mapping = Mapping::new(low.guest_phys_addr, 5 * PAGE_SIZE, Access::WRITE)?;
    assert_eq!(vcpu.populate(&mut mapping), Err(PopulateError::NoMemslot));
    assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x13_000, 2));
    {
        let mut steps = vcpu.populate_steps(&mut mapping);
        assert_eq!(steps.next(), Some(Err(PopulateError::NoMemslot)));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.left().pages(), 2);
    }
    // SAFETY: the pages stay mapped, and nothing else uses them.
    unsafe { vm.set_user_memory_region(high.into()) }?;
    assert_eq!(vcpu.populate(&mut mapping), Ok(()));
    assert_eq!(present(&high)?, [true, true]);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn errors_of_populating_have_their_documented_meaning() -> Result<(), Box<dyn StdError>> {
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
        // SAFETY: nothing holds references into the sources, mapped or not.
        unsafe { page(gfn, Access::empty())?.with_source(source) }
    };
    for (mut mapping, error) in [
        (page(0x40, Access::empty())?, PopulateError::NoMemslot),
        (page(0x20, Access::WRITE)?, PopulateError::NoMemslot),
        (page(0x30, Access::empty())?, PopulateError::BadAddress),
        (
            filled(0x10, gone.userspace_addr)?,
            PopulateError::BadAddress,
        ),
        (filled(0x10, 1 << 63)?, PopulateError::BadAddress),
        (
            filled(0x20, readonly.userspace_addr)?,
            PopulateError::NoMemslot,
        ),
        (page(1 << 50, Access::empty())?, PopulateError::Invalid),
        (page(0x10, Access::PRIVATE)?, PopulateError::Invalid),
    ] {
        let before = mapping;
        assert_eq!(vcpu.populate(&mut mapping), Err(error), "{before:x?}");
        assert_eq!(mapping, before);
    }
    assert_eq!(vcpu.populate(&mut page(0x20, Access::empty())?), Ok(()));
    Ok(())
}
