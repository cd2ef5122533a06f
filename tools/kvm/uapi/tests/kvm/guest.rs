// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! VMs, and memory for their slots.

use std::error::Error as StdError;

use kvm_ioctls::{Kvm, VmFd};
use kvm_memory_uapi::{Flags, Region, Slot, VmFdMemoryExt, PAGE_SIZE};

/// A VM of a kernel that has the list.
pub fn vm() -> Result<VmFd, Box<dyn StdError>> {
    let vm = Kvm::new()?.create_vm()?;
    assert!(
        vm.can_set_user_memory_regions(),
        "no KVM_SET_USER_MEMORY_REGION_LIST"
    );
    Ok(vm)
}

/// A region of one page at the guest frame `gfn`, over memory that stays mapped.
pub fn page(slot: u16, gfn: u64) -> Result<Region, std::io::Error> {
    pages(slot, gfn, 1)
}

/// A region of `n` pages, which are not present until something touches them.
pub fn pages(slot: u16, gfn: u64, n: u64) -> Result<Region, std::io::Error> {
    // SAFETY: a new anonymous mapping, at an address that the kernel chooses.
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
