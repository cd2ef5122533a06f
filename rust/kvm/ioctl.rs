// SPDX-License-Identifier: GPL-2.0-only

//! Where C calls in.
//!
//! The C side is `include/linux/kvm_memory_core.h`. Arguments from userspace are copied once, here, and only
//! the copy is looked at.

use crate::batch::{self, GuestMemfd};
use crate::check::{self, Origin, RankSet, Scratch, Step};
use crate::populate::{Cursor, Stop};
use crate::slots::SlotsLocked;
use crate::types::{Entry, Gfn, SlotFlags};
use crate::vcpu::{LoadedVcpu, MappingFlags};
use core::ffi::{c_int, c_void};
use core::mem::offset_of;
use core::ptr::NonNull;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

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

// SAFETY: As for `Entry`.
unsafe impl FromBytes for ListHeader {}

/// Length of a list from which on an index of all slots costs less than looking its slots up one by
/// one. Where exactly does not matter: both are fast there.
const INDEX_FROM: usize = 256;

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
/// `kvm` points to a live VM whose slots_lock the caller holds; `mem` to an initialised struct in kernel
/// memory.
#[export]
pub unsafe extern "C" fn kvm_set_memory_region(
    kvm: *mut bindings::kvm,
    mem: *const bindings::kvm_userspace_memory_region2,
) -> c_int {
    // SAFETY: By the caller's promise.
    let mem = unsafe { &*mem };
    let Some(kvm) = NonNull::new(kvm) else {
        return EINVAL.to_errno();
    };
    // SAFETY: By the caller's promise.
    let slots = unsafe { SlotsLocked::assume_locked(kvm) };
    match set_region(&slots, mem) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

fn set_region(slots: &SlotsLocked<'_>, mem: &bindings::kvm_userspace_memory_region2) -> Result {
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
/// `kvm` points to a live VM.
#[export]
pub unsafe extern "C" fn kvm_vm_ioctl_set_memory_region_list(
    kvm: *mut bindings::kvm,
    argp: *mut c_void,
) -> c_int {
    let Some(kvm) = NonNull::new(kvm) else {
        return EINVAL.to_errno();
    };
    // SAFETY: By the caller's promise.
    match unsafe { set_region_list(kvm, UserPtr::from_ptr(argp)) } {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// `kvm` points to a live VM.
unsafe fn set_region_list(kvm: NonNull<bindings::kvm>, argp: UserPtr) -> Result {
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

    // SAFETY: By the caller's promise.
    let mut slots = unsafe { SlotsLocked::lock(kvm) };
    if n >= INDEX_FROM {
        slots.index_ids()?;
    }
    slots.count_list(header.nent.into());
    batch::run(&slots, &entries, Origin::List, None, scratch)
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

/// `struct kvm_memory_mapping`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapping {
    base_gfn: u64,
    nr_pages: u64,
    flags: u64,
    source: u64,
}

// SAFETY: As for `Entry`.
unsafe impl FromBytes for MemoryMapping {}
// SAFETY: There is no padding between the fields, and none behind.
unsafe impl AsBytes for MemoryMapping {}

const _: () = {
    type Uapi = bindings::kvm_memory_mapping;
    assert!(size_of::<MemoryMapping>() == size_of::<Uapi>());
    assert!(offset_of!(MemoryMapping, nr_pages) == offset_of!(Uapi, nr_pages));
    assert!(offset_of!(MemoryMapping, flags) == offset_of!(Uapi, flags));
    assert!(offset_of!(MemoryMapping, source) == offset_of!(Uapi, source));
};

/// `KVM_MAP_MEMORY`.
///
/// # Safety
///
/// `vcpu` points to a live vCPU that is not loaded and whose mutex the caller holds.
#[export]
pub unsafe extern "C" fn kvm_vcpu_ioctl_map_memory(
    vcpu: *mut bindings::kvm_vcpu,
    argp: *mut c_void,
) -> c_int {
    let Some(vcpu) = NonNull::new(vcpu) else {
        return EINVAL.to_errno();
    };
    // SAFETY: By the caller's promise.
    match unsafe { map_memory(vcpu, UserPtr::from_ptr(argp)) } {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// As for [`kvm_vcpu_ioctl_map_memory`].
unsafe fn map_memory(vcpu: NonNull<bindings::kvm_vcpu>, argp: UserPtr) -> Result {
    let (mut reader, mut writer) = UserSlice::new(argp, size_of::<MemoryMapping>()).reader_writer();
    let mut mapping: MemoryMapping = reader.read()?;

    let flags = MappingFlags::from_uapi(mapping.flags).ok_or(EINVAL)?;
    // SAFETY: By the caller's promise.
    let mut vcpu = unsafe { LoadedVcpu::load(vcpu) };
    let base = Gfn(mapping.base_gfn);
    let mut cursor =
        Cursor::new(base, mapping.nr_pages, mapping.source, vcpu.max_gfn()).ok_or(EINVAL)?;
    let result = cursor.run(&mut vcpu.populate(flags, mapping.source != 0)?);
    drop(vcpu);

    mapping.base_gfn = cursor.base().0;
    mapping.nr_pages = cursor.npages();
    mapping.source = cursor.source();
    writer.write(&mapping)?;
    result.map_err(|stop| match stop {
        Stop::Again => EAGAIN,
        Stop::Failed(error) => error,
    })
}
