// SPDX-License-Identifier: GPL-2.0-only

//! A memslot: as those see it who hold the locks, and as its owner.
//!
//! No reference to a `struct kvm_memory_slot` is ever made: vCPUs write to slots through the same
//! memory all the time (rmaps, counters of huge pages). [`Slot`] is a pointer with accessors for
//! what does not change.

use super::locked::ArchLocked;
use super::types::Mapping;
use super::types::SlotFlags;
use super::types::SlotId;
use crate::types::Gfn;
use crate::types::GfnRange;
use crate::types::Hva;
use crate::types::PAGE_SHIFT;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::alloc::AllocError;
use kernel::bindings;
use kernel::prelude::*;

/// `KVM_MEMSLOT_INVALID`: page faults on the slot retry until it is gone.
const INVALID: SlotFlags = SlotFlags(bindings::KVM_MEMSLOT_INVALID);

// The pure files spell out for themselves what C defines.
const _: () = {
    assert!(SlotFlags::LOG_DIRTY.0 == bindings::KVM_MEM_LOG_DIRTY_PAGES);
    assert!(SlotFlags::READONLY.0 == bindings::KVM_MEM_READONLY);
    assert!(SlotFlags::GUEST_MEMFD.0 == bindings::KVM_MEM_GUEST_MEMFD);
    assert!(PAGE_SHIFT as usize == kernel::page::PAGE_SHIFT);
};

/// A memslot that cannot go away during `'s`: it borrows from the lock that keeps it in its list,
/// or from its owner.
///
/// # Invariants
///
/// `slot` points to an initialised `struct kvm_memory_slot`. During `'s` it stays allocated, and
/// its ids, base, size, address, flags and the pointer to its dirty bitmap do not change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot<'s> {
    slot: NonNull<bindings::kvm_memory_slot>,
    _borrow: PhantomData<&'s ()>,
}

impl Slot<'_> {
    /// # Safety
    ///
    /// `slot` points to an initialised slot that is not freed, and whose ids, base, size, address,
    /// flags and bitmap pointer do not change, during the lifetime of the result.
    pub(super) unsafe fn from_raw(slot: NonNull<bindings::kvm_memory_slot>) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            slot,
            _borrow: PhantomData,
        }
    }

    pub(super) fn as_ptr(self) -> *mut bindings::kvm_memory_slot {
        self.slot.as_ptr()
    }

    pub(crate) fn mapping(self) -> Mapping {
        let slot = self.as_ptr();
        // SAFETY: By the type invariant the slot is allocated, and nobody writes to these fields.
        let (base, npages, hva, flags) = unsafe {
            (
                (*slot).base_gfn,
                (*slot).npages,
                (*slot).userspace_addr,
                (*slot).flags,
            )
        };
        Mapping {
            gfns: GfnRange {
                start: Gfn(base),
                // No overflow: slots are checked before they are made.
                end: Gfn(base.wrapping_add(npages as u64)),
            },
            hva: Hva(hva as u64),
            flags: SlotFlags(flags),
        }
    }

    pub(crate) fn id(self) -> SlotId {
        let slot = self.as_ptr();
        // SAFETY: By the type invariant the slot is allocated, and nobody writes to its ids.
        let (as_id, id) = unsafe { ((*slot).as_id, (*slot).id) };
        SlotId {
            as_id,
            id: id as u16,
        }
    }

    pub(crate) fn is_invalid(self) -> bool {
        self.mapping().flags.intersects(INVALID)
    }

    pub(crate) fn logs_dirty(self) -> bool {
        self.mapping().flags.contains(SlotFlags::LOG_DIRTY)
    }

    /// The dirty bitmap; null if there is none.
    pub(super) fn dirty_bitmap(self) -> *mut usize {
        // SAFETY: By the type invariant the slot is allocated, and nobody writes to this pointer.
        unsafe { (*self.as_ptr()).dirty_bitmap.cast() }
    }

    /// Gives this slot the architecture's data of `from`, which stands for the same memory.
    ///
    /// # Safety
    ///
    /// No reader of `kvm->srcu` sees this slot.
    pub(super) unsafe fn copy_arch(self, from: Slot<'_>, _arch: &ArchLocked<'_, '_>) {
        // SAFETY: By the type invariant both slots are allocated. The data of `from` changes under
        // slots_arch_lock only, which `_arch` proves to be held; nobody else uses that of `self`,
        // as the caller guarantees. What both point to (counters, rmaps) is shared and not touched
        // here.
        unsafe { (*self.as_ptr()).arch = (*from.as_ptr()).arch };
    }
}

/// Owns the memory of a slot, but not what hangs on it (bitmap, the architecture's data,
/// guest_memfd).
///
/// # Invariants
///
/// Points to an initialised slot that [`Self::new`] allocated, and that nobody else frees. All
/// accesses, those of C and of vCPUs included, go through pointers derived from this one.
pub(super) struct SlotBox(NonNull<bindings::kvm_memory_slot>);

impl SlotBox {
    /// A new slot that maps `mapping`, without a bitmap and the architecture's data.
    pub(super) fn new(id: SlotId, mapping: Mapping) -> Result<Self, AllocError> {
        let slot = KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        let slot: NonNull<bindings::kvm_memory_slot> =
            NonNull::new(KBox::into_raw(slot)).ok_or(AllocError)?.cast();
        let ptr = slot.as_ptr();
        // SAFETY: `ptr` is valid for writes. All-zero memory is a valid `kvm_memory_slot`.
        unsafe {
            (*ptr).as_id = id.as_id;
            (*ptr).id = id.id as i16;
            (*ptr).base_gfn = mapping.gfns.start.0;
            (*ptr).npages = mapping.npages() as usize;
            (*ptr).flags = mapping.flags.0;
            (*ptr).userspace_addr = mapping.hva.0 as usize;
        }
        // INVARIANT: Allocated and initialised above.
        Ok(Self(slot))
    }

    /// A copy of `slot` that makes page faults retry. It shares bitmap and the architecture's data
    /// with `slot`.
    pub(super) fn invalid_copy(
        slot: Slot<'_>,
        arch: &ArchLocked<'_, '_>,
    ) -> Result<Self, AllocError> {
        let mut mapping = slot.mapping();
        mapping.flags = mapping.flags.union(INVALID);
        let copy = Self::new(slot.id(), mapping)?;
        // SAFETY: No list holds the copy, so no reader sees it. It is allocated, and no `Slot`
        // names it before the next line.
        unsafe { (*copy.0.as_ptr()).dirty_bitmap = slot.dirty_bitmap().cast() };
        // SAFETY: No list holds the copy, so no reader sees it.
        unsafe { copy.slot().copy_arch(slot, arch) };
        Ok(copy)
    }

    /// Takes back a slot that was left to the lists: that of a box which was not dropped, but
    /// forgotten.
    ///
    /// # Safety
    ///
    /// `slot` is that of a box which was forgotten, and is taken back once. No list holds it, and
    /// no reader sees it.
    pub(super) unsafe fn from_raw(slot: NonNull<bindings::kvm_memory_slot>) -> Self {
        // INVARIANT: The box that was forgotten got it from `new`, and the caller guarantees that
        // nobody else frees it.
        Self(slot)
    }

    /// Names the slot while `self` owns it.
    pub(super) fn slot(&self) -> Slot<'_> {
        // SAFETY: By the type invariant the slot is initialised, and stays allocated while `self`
        // is borrowed. Fields are written through `as_mut_ptr`, which borrows `self` mutably, only.
        unsafe { Slot::from_raw(self.0) }
    }

    /// For writing to fields that no reader looks at yet.
    pub(super) fn as_mut_ptr(&mut self) -> *mut bindings::kvm_memory_slot {
        self.0.as_ptr()
    }
}

impl Drop for SlotBox {
    fn drop(&mut self) {
        let slot = self
            .0
            .as_ptr()
            .cast::<MaybeUninit<bindings::kvm_memory_slot>>();
        // SAFETY: By the type invariant this is the pointer to a box of that type, which `new`
        // made, and nobody else frees it.
        drop(unsafe { KBox::from_raw(slot) });
    }
}
