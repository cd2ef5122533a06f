// SPDX-License-Identifier: GPL-2.0-only

//! A slot that a batch takes out of the lists, from its look-up until it is freed.

use super::{
    locks::SlotsLocked,
    slot::{
        Slot,
        SlotBox, //
    },
    types::SlotFlags, //
};

use core::ptr::NonNull;

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// A slot that was in the lists when the batch began, and that the batch takes out of them.
///
/// Dropping it does nothing, because the slot then is in the lists still, or again.
///
/// # Invariants
///
/// * `slot` points to an initialised slot, which only [`Self::free`] and
///   [`Self::free_with_resources`] free. Both consume `self`, and no other `OldSlot` exists for the
///   slot.
/// * `unbound` is the file of a guest_memfd that the slot was bound to in this batch.
pub(super) struct OldSlot {
    slot: NonNull<bindings::kvm_memory_slot>,
    unbound: Option<NonNull<bindings::file>>,
}

impl OldSlot {
    /// # Safety
    ///
    /// `slot` is in the lists. The caller's batch makes no other `OldSlot` for it, and holds
    /// slots_lock for as long as the result exists.
    pub(super) unsafe fn new(slot: Slot<'_>) -> Self {
        // INVARIANT: By the invariant of `Slot` the slot is initialised. Slots in the lists are
        // freed under slots_lock only, which the caller's batch holds; the caller guarantees that
        // this is the batch's only `OldSlot` for it.
        Self {
            slot: slot.as_non_null(),
            unbound: None,
        }
    }

    pub(super) fn slot(&self) -> Slot<'_> {
        // SAFETY: By the type invariant the slot is initialised, and not freed while `self` is
        // borrowed. Only `stop_logging` writes to the fields of a `Slot`. It borrows `self` mutably,
        // and the batch has dropped what it found in the lists before it changed them.
        unsafe { Slot::from_raw(self.slot) }
    }

    /// Clears `KVM_MEM_LOG_DIRTY_PAGES` in the slot.
    ///
    /// # Safety
    ///
    /// No list contains the slot, and no reader sees it.
    pub(super) unsafe fn stop_logging(&mut self) {
        // SAFETY: By the type invariant the slot is allocated. The caller guarantees that no list
        // contains it and no reader sees it, so that nobody else accesses its flags.
        unsafe { (*self.slot.as_ptr()).flags &= !SlotFlags::LOG_DIRTY.0 };
    }

    /// Unbinds the slot from its guest_memfd, if it is bound to one.
    ///
    /// # Safety
    ///
    /// Readers see an INVALID copy instead of the slot, and the slot is not mapped. slots_lock is held
    /// until [`Self::rebind_memfd`] is called, or the slot is freed.
    pub(super) unsafe fn unbind_memfd(&mut self) {
        if !self.slot().mapping().has_guest_memfd() {
            return;
        }
        // SAFETY: By the type invariant the slot is allocated. The caller guarantees that slots_lock
        // is held, and that no reader looks for pages of the file through the slot.
        unsafe {
            self.unbound = NonNull::new(bindings::kvm_memory_gmem_file(self.slot.as_ptr()));
            bindings::kvm_memory_gmem_unbind(self.slot.as_ptr());
        }
    }

    /// Undoes [`Self::unbind_memfd`]. Nothing else is bound to what the slot was bound to.
    pub(super) fn rebind_memfd(&mut self) {
        if let Some(file) = self.unbound.take() {
            // SAFETY: By the type invariant the slot is allocated, and was bound to the file. A file is
            // not released as long as slots_lock is held, which the caller of unbind_memfd() has held
            // since.
            unsafe { bindings::kvm_memory_gmem_rebind(self.slot.as_ptr(), file.as_ptr()) };
        }
    }

    /// Copies the dirty bits of the slot to the user address `address`. Fails with `EFAULT`.
    ///
    /// # Safety
    ///
    /// The slot has a dirty bitmap. No list contains the slot, and no reader sees it.
    pub(super) unsafe fn copy_log(&self, address: u64) -> Result {
        // SAFETY: By the type invariant the slot is allocated. The caller guarantees that it has a
        // bitmap, which nobody else accesses any more.
        to_result(unsafe { bindings::kvm_memory_copy_log(self.slot.as_ptr(), address) })
    }

    /// Frees the slot, but not its resources.
    ///
    /// # Safety
    ///
    /// No list contains the slot, and no reader sees it.
    pub(super) unsafe fn free(self) {
        // SAFETY: A slot gets into the lists by `NewSlot::leak`, which forgets its box. By the type
        // invariant nothing else frees it. The caller guarantees that no list contains it and no
        // reader sees it.
        drop(unsafe { SlotBox::from_raw(self.slot) });
    }

    /// Frees the slot and its resources.
    ///
    /// # Safety
    ///
    /// No list contains the slot, and no reader sees it. It shares no resource with a slot that
    /// stays.
    pub(super) unsafe fn free_with_resources(self, slots: &SlotsLocked<'_>) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. By the type invariant nothing else
        // frees the slot. The caller guarantees that no list contains it, no reader sees it, and
        // nothing shares its resources.
        unsafe { bindings::kvm_free_memslot(slots.as_ptr(), self.slot.as_ptr()) };
    }
}
