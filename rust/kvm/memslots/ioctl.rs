// SPDX-License-Identifier: GPL-2.0-only

//! The functions that C calls to change memslots.
//!
//! The C side is `include/linux/kvm_memory_core.h`. Arguments from userspace are copied once, here,
//! and only the copy is used.

use super::{
    batch,
    check::{
        self,
        Origin,
        Scratch,
        Step, //
    },
    locks::SlotsLocked,
    rank_set::RankSet,
    types::{
        Entry,
        SlotFlags, //
    }, //
};

use crate::vm::Vm;

use core::{
    ffi::{
        c_int,
        c_void, //
    },
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::{
    alloc::{
        flags::GFP_KERNEL_ACCOUNT,
        AllocError, //
    },
    bindings,
    error::from_result,
    prelude::*,
    transmute::FromBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

// SAFETY: All fields are integers or arrays of them, for which every bit pattern is valid. `Entry`
// has no padding.
unsafe impl FromBytes for Entry {}

const _: () = {
    type Uapi = bindings::kvm_userspace_memory_region_entry;
    assert!(size_of::<Entry>() == size_of::<Uapi>());
    assert!(offset_of!(Entry, flags) == offset_of!(Uapi, flags));
    assert!(offset_of!(Entry, guest_phys_addr) == offset_of!(Uapi, guest_phys_addr));
    assert!(offset_of!(Entry, memory_size) == offset_of!(Uapi, memory_size));
    assert!(offset_of!(Entry, userspace_addr) == offset_of!(Uapi, userspace_addr));
    assert!(offset_of!(Entry, invalidate_slot) == offset_of!(Uapi, invalidate_slot));
    assert!(offset_of!(Entry, guest_memfd) == offset_of!(Uapi, guest_memfd));
    assert!(offset_of!(Entry, guest_memfd_offset) == offset_of!(Uapi, guest_memfd_offset));
    assert!(offset_of!(Entry, dirty_bitmap) == offset_of!(Uapi, dirty_bitmap));
};

/// The part of `struct kvm_userspace_memory_region_list` before the entries.
#[repr(C)]
struct ListHeader {
    nent: u32,
    flags: u32,
}

// SAFETY: All fields are integers, for which every bit pattern is valid. `ListHeader` has no
// padding.
unsafe impl FromBytes for ListHeader {}

const _: () = {
    type Uapi = bindings::kvm_userspace_memory_region_list;
    assert!(size_of::<ListHeader>() == size_of::<Uapi>());
    assert!(offset_of!(ListHeader, flags) == offset_of!(Uapi, flags));
};

impl From<check::Error> for Error {
    fn from(error: check::Error) -> Self {
        match error {
            check::Error::Invalid => EINVAL,
            check::Error::Exists => EEXIST,
            check::Error::BadFile => EBADF,
            check::Error::NoBitmap => ENXIO,
            check::Error::Corrupt => EIO,
        }
    }
}

/// Creates, deletes, moves or changes the flags of a single memslot. Returns 0 or a negative errno.
///
/// # Safety
///
/// `kvm` points to an initialised VM, `mem` to an initialised struct in kernel memory. During this
/// call the VM is not freed, the current task holds its `slots_lock`, and nobody writes to the
/// struct.
#[export]
pub unsafe extern "C" fn kvm_set_memory_region(
    kvm: *mut bindings::kvm,
    mem: *const bindings::kvm_userspace_memory_region2,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees that the VM is initialised, and not freed during this call.
        let vm = unsafe { Vm::from_raw(NonNull::new(kvm).ok_or(EINVAL)?) };
        // SAFETY: The caller guarantees that the current task holds slots_lock during this call.
        let mut slots = unsafe { SlotsLocked::assume_locked(vm) };
        slots.refuse_gmaps()?;
        // SAFETY: The caller guarantees that `mem` points to an initialised struct, to which nobody
        // writes during this call.
        set_region(&mut slots, unsafe { &*mem })?;
        Ok(0)
    })
}

fn set_region(slots: &mut SlotsLocked<'_>, mem: &bindings::kvm_userspace_memory_region2) -> Result {
    let mut entry = Entry {
        slot: mem.slot,
        flags: mem.flags,
        guest_phys_addr: mem.guest_phys_addr,
        memory_size: mem.memory_size,
        userspace_addr: mem.userspace_addr,
        ..Entry::default()
    };
    // A single update may have anything in the fields that it does not use.
    if SlotFlags(mem.flags).contains(SlotFlags::GUEST_MEMFD) {
        entry.guest_memfd = mem.guest_memfd;
        entry.guest_memfd_offset = mem.guest_memfd_offset;
    }
    let scratch = Scratch {
        steps: &mut [Step::EMPTY],
        by_slot: &mut [0],
        by_gfn: &mut [0],
        ranks: &mut [0],
        by_file: &mut [],
        file_ranks: &mut [],
    };
    batch::run(slots, &[entry], Origin::Single, scratch)
}

/// Implements `KVM_SET_USER_MEMORY_REGION_LIST`. Returns 0 or a negative errno.
///
/// # Safety
///
/// `kvm` points to an initialised VM, which is not freed during this call.
#[export]
pub unsafe extern "C" fn kvm_vm_ioctl_set_memory_region_list(
    kvm: *mut bindings::kvm,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees that the VM is initialised, and not freed during this call.
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
    let mut memory = ScratchMemory::new(n)?;

    let mut slots = SlotsLocked::lock(vm);
    slots.refuse_gmaps()?;
    slots.count_list(header.nent.into());
    run_list(&mut slots, &entries, &mut memory)
}

/// The memory of a [`Scratch`].
pub(crate) struct ScratchMemory {
    steps: KVVec<Step>,
    by_slot: KVVec<u32>,
    by_gfn: KVVec<u32>,
    ranks: KVVec<u64>,
}

impl ScratchMemory {
    /// Allocates what a list of `n` entries needs.
    pub(crate) fn new(n: usize) -> Result<Self, AllocError> {
        Ok(Self {
            steps: KVVec::from_elem(Step::EMPTY, n, GFP_KERNEL_ACCOUNT)?,
            by_slot: KVVec::from_elem(0, n, GFP_KERNEL_ACCOUNT)?,
            by_gfn: KVVec::from_elem(0, n, GFP_KERNEL_ACCOUNT)?,
            ranks: KVVec::from_elem(0, RankSet::words(n), GFP_KERNEL_ACCOUNT)?,
        })
    }
}

/// Checks a list of updates and carries it out. `memory` was allocated for as many entries, and has
/// not been used.
pub(crate) fn run_list(
    slots: &mut SlotsLocked<'_>,
    entries: &[Entry],
    memory: &mut ScratchMemory,
) -> Result {
    let scratch = Scratch {
        steps: &mut memory.steps,
        by_slot: &mut memory.by_slot,
        by_gfn: &mut memory.by_gfn,
        ranks: &mut memory.ranks,
        by_file: &mut [],
        file_ranks: &mut [],
    };
    batch::run(slots, entries, Origin::List, scratch)
}

/// Copies `n` entries from user address `argp`.
fn read_entries(argp: UserPtr, n: usize) -> Result<KVVec<Entry>> {
    let bytes = n.checked_mul(size_of::<Entry>()).ok_or(EINVAL)?;
    let mut entries = KVVec::<Entry>::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    let room = entries.spare_capacity_mut().as_mut_ptr().cast();
    // SAFETY: The vector has allocated room for `n` entries, which are `bytes` bytes, and nobody else
    // uses it. `read_raw` does not read from the slice, so that it may be uninitialised.
    let room = unsafe { core::slice::from_raw_parts_mut(room, bytes) };
    UserSlice::new(argp, bytes).reader().read_raw(room)?;
    // SAFETY: The capacity is at least `n`. `read_raw` has written `n` entries, for which all bytes
    // are valid.
    unsafe { entries.inc_len(n) };
    Ok(entries)
}
