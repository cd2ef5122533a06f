// SPDX-License-Identifier: GPL-2.0-only

//! Where C calls in to change memslots.
//!
//! The C side is `include/linux/kvm_memory_core.h`. Arguments from userspace are copied once, here,
//! and only the copy is looked at.

use super::batch;
use super::check;
use super::check::Origin;
use super::check::Scratch;
use super::check::Step;
use super::locked::SlotsLocked;
use super::new_slot::GuestMemfd;
use super::rank_set::RankSet;
use super::types::Entry;
use super::types::SlotFlags;
use crate::vm::Vm;
use core::ffi::c_int;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::NonNull;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::error::from_result;
use kernel::prelude::*;
use kernel::transmute::FromBytes;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;

// SAFETY: All bit patterns are valid for integers, and there is no padding between the fields.
unsafe impl FromBytes for Entry {}

const _: () = {
    type Uapi = bindings::kvm_userspace_memory_region_entry;
    assert!(size_of::<Entry>() == size_of::<Uapi>());
    assert!(offset_of!(Entry, flags) == offset_of!(Uapi, flags));
    assert!(offset_of!(Entry, guest_phys_addr) == offset_of!(Uapi, guest_phys_addr));
    assert!(offset_of!(Entry, memory_size) == offset_of!(Uapi, memory_size));
    assert!(offset_of!(Entry, userspace_addr) == offset_of!(Uapi, userspace_addr));
    assert!(offset_of!(Entry, invalidate_slot) == offset_of!(Uapi, invalidate_slot));
};

/// The fixed part of `struct kvm_userspace_memory_region_list`.
#[repr(C)]
struct ListHeader {
    nent: u32,
    flags: u32,
}

// SAFETY: All bit patterns are valid for integers, and there is no padding between the fields.
unsafe impl FromBytes for ListHeader {}

impl From<check::Error> for Error {
    fn from(error: check::Error) -> Self {
        match error {
            check::Error::Invalid => EINVAL,
            check::Error::Exists => EEXIST,
            check::Error::Corrupt => EIO,
        }
    }
}

/// Changes a single memslot.
///
/// # Safety
///
/// `kvm` points to a VM that lives, and whose `slots_lock` the current task holds; `mem` to an
/// initialised struct in kernel memory, which nobody changes.
#[export]
pub unsafe extern "C" fn kvm_set_memory_region(
    kvm: *mut bindings::kvm,
    mem: *const bindings::kvm_userspace_memory_region2,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees that the VM lives during this call.
        let vm = unsafe { Vm::from_raw(NonNull::new(kvm).ok_or(EINVAL)?) };
        // SAFETY: The caller guarantees that the lock is held.
        let mut slots = unsafe { SlotsLocked::assume_locked(vm) };
        // SAFETY: The caller guarantees that `mem` is initialised and does not change.
        set_region(&mut slots, unsafe { &*mem })?;
        Ok(0)
    })
}

fn set_region(slots: &mut SlotsLocked<'_>, mem: &bindings::kvm_userspace_memory_region2) -> Result {
    let entries = [Entry {
        slot: mem.slot,
        flags: mem.flags,
        guest_phys_addr: mem.guest_phys_addr,
        memory_size: mem.memory_size,
        userspace_addr: mem.userspace_addr,
        ..Entry::default()
    }];
    let memfd = SlotFlags(mem.flags)
        .contains(SlotFlags::GUEST_MEMFD)
        .then_some(GuestMemfd {
            fd: mem.guest_memfd,
            offset: mem.guest_memfd_offset,
        });
    let origin = Origin::Single {
        guest_memfd_offset: mem.guest_memfd_offset,
    };
    let scratch = Scratch {
        steps: &mut [Step::EMPTY],
        by_slot: &mut [0],
        by_gfn: &mut [0],
        ranks: &mut [0],
    };
    batch::run(slots, &entries, origin, memfd, scratch)
}

/// `KVM_SET_USER_MEMORY_REGION_LIST`.
///
/// # Safety
///
/// `kvm` points to a VM that lives during this call.
#[export]
pub unsafe extern "C" fn kvm_vm_ioctl_set_memory_region_list(
    kvm: *mut bindings::kvm,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees that the VM lives during this call.
        let vm = unsafe { Vm::from_raw(NonNull::new(kvm).ok_or(EINVAL)?) };
        set_region_list(vm, UserPtr::from_ptr(argp))?;
        Ok(0)
    })
}

fn set_region_list(vm: Vm<'_>, argp: UserPtr) -> Result {
    let header_size = size_of::<ListHeader>();
    let header: ListHeader = UserSlice::new(argp, header_size).reader().read()?;
    if header.flags != 0 {
        return Err(EINVAL);
    }
    if header.nent == 0 {
        return Ok(());
    }
    if header.nent > bindings::KVM_MEMORY_REGION_LIST_MAX {
        return Err(E2BIG);
    }
    let n = header.nent as usize;
    let entries = read_entries(argp.wrapping_byte_add(header_size), n)?;

    let mut steps = KVVec::from_elem(Step::EMPTY, n, GFP_KERNEL_ACCOUNT)?;
    let mut by_slot = KVVec::from_elem(0, n, GFP_KERNEL_ACCOUNT)?;
    let mut by_gfn = KVVec::from_elem(0, n, GFP_KERNEL_ACCOUNT)?;
    let mut ranks = KVVec::from_elem(0, RankSet::words(n), GFP_KERNEL_ACCOUNT)?;
    let scratch = Scratch {
        steps: &mut steps,
        by_slot: &mut by_slot,
        by_gfn: &mut by_gfn,
        ranks: &mut ranks,
    };

    let mut slots = SlotsLocked::lock(vm);
    slots.count_list(header.nent.into());
    batch::run(&mut slots, &entries, Origin::List, None, scratch)
}

/// Copies `n` entries from `argp`.
fn read_entries(argp: UserPtr, n: usize) -> Result<KVVec<Entry>> {
    let bytes = n.checked_mul(size_of::<Entry>()).ok_or(EINVAL)?;
    let mut entries = KVVec::<Entry>::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    let room = entries.spare_capacity_mut().as_mut_ptr().cast();
    // SAFETY: There is room for `n` entries.
    let room = unsafe { core::slice::from_raw_parts_mut(room, bytes) };
    UserSlice::new(argp, bytes).reader().read_raw(room)?;
    // SAFETY: `read_raw` has written `n` entries, which any bytes are valid for.
    unsafe { entries.inc_len(n) };
    Ok(entries)
}
