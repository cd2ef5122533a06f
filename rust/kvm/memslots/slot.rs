// SPDX-License-Identifier: GPL-2.0-only

//! A memslot (`struct kvm_memory_slot`), borrowed ([`Slot`]) or owned ([`SlotBox`]).
//!
//! Neither makes a reference to the C struct, because vCPUs write to it concurrently (rmaps, counts
//! of huge pages). [`Slot`] is a pointer, with accessors for the fields that do not change.

use super::{
    locks::ArchLocked,
    types::{
        Mapping,
        SlotFlags,
        SlotId, //
    }, //
};

use crate::types::{
    Gfn,
    GfnRange,
    Hva,
    PAGE_SHIFT, //
};

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    alloc::{
        flags::GFP_KERNEL_ACCOUNT,
        AllocError, //
    },
    bindings,
    prelude::*, //
};

/// `KVM_MEMSLOT_INVALID`: page faults on the slot retry until another takes its place.
const INVALID: SlotFlags = SlotFlags(bindings::KVM_MEMSLOT_INVALID);

// The pure files define these values for themselves, as they do not use the bindings.
const _: () = {
    assert!(SlotFlags::LOG_DIRTY.0 == bindings::KVM_MEM_LOG_DIRTY_PAGES);
    assert!(SlotFlags::READONLY.0 == bindings::KVM_MEM_READONLY);
    assert!(SlotFlags::GUEST_MEMFD.0 == bindings::KVM_MEM_GUEST_MEMFD);
    assert!(PAGE_SHIFT as usize == kernel::page::PAGE_SHIFT);
};

/// A memslot that is not freed during `'s`. It borrows from the lock that keeps it in its list, or
/// from its owner.
///
/// # Invariants
///
/// `slot` points to an initialised `struct kvm_memory_slot`. During `'s` it stays allocated, and
/// its ids, base, size, address, flags and the pointer to its dirty bitmap do not change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot<'s> {
    slot: NonNull<bindings::kvm_memory_slot>,
    _borrow: PhantomData<&'s ()>,
}

impl Slot<'_> {
    /// # Safety
    ///
    /// `slot` points to an initialised slot. During the lifetime of the result it is not freed, and
    /// its ids, base, size, address, flags and bitmap pointer do not change.
    pub(super) unsafe fn from_raw(slot: NonNull<bindings::kvm_memory_slot>) -> Self {
        // INVARIANT: The caller guarantees that the slot is initialised and not freed, and that
        // these fields do not change.
        Self {
            slot,
            _borrow: PhantomData,
        }
    }

    pub(super) fn as_ptr(self) -> *mut bindings::kvm_memory_slot {
        self.slot.as_ptr()
    }

    pub(super) fn as_non_null(self) -> NonNull<bindings::kvm_memory_slot> {
        self.slot
    }

    pub(super) fn mapping(self) -> Mapping {
        let slot = self.as_ptr();
        // SAFETY: By the type invariant the slot is allocated, and these fields do not change.
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
                // No overflow: the check of a batch refuses such slots.
                end: Gfn(base.wrapping_add(npages as u64)),
            },
            hva: Hva(hva as u64),
            flags: SlotFlags(flags),
        }
    }

    pub(super) fn id(self) -> SlotId {
        let slot = self.as_ptr();
        // SAFETY: By the type invariant the slot is allocated, and its ids do not change.
        let (as_id, id) = unsafe { ((*slot).as_id, (*slot).id) };
        SlotId {
            as_id,
            id: id as u16,
        }
    }

    pub(super) fn logs_dirty(self) -> bool {
        self.mapping().flags.contains(SlotFlags::LOG_DIRTY)
    }

    /// Returns the dirty bitmap, a bit for each page, or null if there is none.
    pub(super) fn dirty_bitmap(self) -> *mut usize {
        // SAFETY: By the type invariant the slot is allocated, and this pointer does not change.
        unsafe { (*self.as_ptr()).dirty_bitmap.cast() }
    }

    /// Copies the architecture's data from `from`, which maps the same memory, to this slot. Both
    /// then share what the data points to.
    ///
    /// # Safety
    ///
    /// No reader of `kvm->srcu` sees this slot.
    pub(super) unsafe fn copy_arch(self, from: Slot<'_>, _arch: &ArchLocked<'_, '_>) {
        // SAFETY: By the type invariant both slots are allocated. The data of `from` changes under
        // slots_arch_lock only, which `_arch` proves to be held. The caller guarantees that nobody
        // else uses the data of `self`. What the data points to (counters, rmaps), which vCPUs
        // write to, is not accessed here.
        unsafe { (*self.as_ptr()).arch = (*from.as_ptr()).arch };
    }

    /// Copies the architecture's data back to this slot from its INVALID copy `copy`.
    ///
    /// # Safety
    ///
    /// No reader of `kvm->srcu` sees this slot.
    pub(super) unsafe fn copy_arch_back(self, copy: Slot<'_>, arch: &ArchLocked<'_, '_>) {
        // SAFETY: By the type invariant both slots are allocated. The data of `copy` changes under
        // slots_arch_lock only, which `arch` proves to be held. The caller guarantees that no
        // reader of `kvm->srcu` uses the data of `self`. guest_memfd, which may still have the slot
        // in its bindings, uses it under mmu_lock, which the function takes.
        unsafe {
            bindings::kvm_memory_copy_arch_back(arch.slots().as_ptr(), self.as_ptr(), copy.as_ptr())
        };
    }
}

/// Owns the memory of a slot, but none of its resources (bitmap, the architecture's data, binding
/// to a guest_memfd).
///
/// # Invariants
///
/// Points to an initialised slot that [`Self::new`] allocated, and that nobody else frees. All
/// accesses, including those of C and of vCPUs, use pointers derived from this one.
pub(super) struct SlotBox(NonNull<bindings::kvm_memory_slot>);

impl SlotBox {
    /// Allocates a slot that maps `mapping`, without resources. It is in no list.
    pub(super) fn new(id: SlotId, mapping: Mapping) -> Result<Self, AllocError> {
        let slot = KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        let slot: NonNull<bindings::kvm_memory_slot> =
            NonNull::new(KBox::into_raw(slot)).ok_or(AllocError)?.cast();
        let ptr = slot.as_ptr();
        // SAFETY: `ptr` points to memory that was allocated for a `kvm_memory_slot` above, and that
        // is all zeroes, which is valid for that type. Nobody else has the pointer.
        unsafe {
            (*ptr).as_id = id.as_id;
            (*ptr).id = id.id as i16;
            (*ptr).base_gfn = mapping.gfns.start.0;
            (*ptr).npages = mapping.npages() as usize;
            (*ptr).flags = mapping.flags.0;
            (*ptr).userspace_addr = mapping.hva.0 as usize;
        }
        // INVARIANT: The slot was allocated and initialised above, and nobody else has a pointer to
        // it.
        Ok(Self(slot))
    }

    /// Makes a copy of `slot` that is INVALID: page faults on it retry. Both share the bitmap and
    /// what the architecture's data points to.
    pub(super) fn invalid_copy(
        slot: Slot<'_>,
        arch: &ArchLocked<'_, '_>,
    ) -> Result<Self, AllocError> {
        let mut mapping = slot.mapping();
        mapping.flags = mapping.flags.union(INVALID);
        let mut copy = Self::new(slot.id(), mapping)?;
        // SAFETY: The copy was allocated above. It is in no list, so that no reader sees it, and no
        // `Slot` for it exists yet.
        unsafe { (*copy.as_mut_ptr()).dirty_bitmap = slot.dirty_bitmap().cast() };
        // SAFETY: The copy is in no list, so that no reader sees it.
        unsafe { copy.slot().copy_arch(slot, arch) };
        Ok(copy)
    }

    /// Takes back a slot that was left to the lists, by forgetting its box.
    ///
    /// # Safety
    ///
    /// `slot` was in a box that was forgotten, and is taken back only once. No list contains it, and
    /// no reader sees it.
    pub(super) unsafe fn from_raw(slot: NonNull<bindings::kvm_memory_slot>) -> Self {
        // INVARIANT: The caller guarantees that the slot was in a box, which `new` allocated, and
        // that nobody else takes it back.
        Self(slot)
    }

    /// Borrows the slot.
    pub(super) fn slot(&self) -> Slot<'_> {
        // SAFETY: By the type invariant the slot is initialised, and it is not freed while `self` is
        // borrowed. The fields that the invariant of `Slot` names are only written through
        // `as_mut_ptr`, which borrows `self` mutably.
        unsafe { Slot::from_raw(self.0) }
    }

    /// Returns a pointer for writing to a slot that no reader sees yet.
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
        // SAFETY: By the type invariant `new` got the pointer from a box of this type, and nobody
        // else frees it.
        drop(unsafe { KBox::from_raw(slot) });
    }
}
