// SPDX-License-Identifier: GPL-2.0-only

//! What a batch asks and tells the rest of KVM: the architecture's hooks, the VM's counters and
//! statistics, and tracing.

use super::{
    locks::SlotsLocked,
    slot::Slot,
    types::{
        Change,
        SlotFlags, //
    }, //
};

use crate::types::GfnRange;
use core::ptr::null_mut;

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

impl Change {
    pub(super) fn as_kvm_mr_change(self) -> bindings::kvm_mr_change {
        match self {
            Change::Create => bindings::kvm_mr_change_KVM_MR_CREATE,
            Change::Delete => bindings::kvm_mr_change_KVM_MR_DELETE,
            Change::Move => bindings::kvm_mr_change_KVM_MR_MOVE,
            // No hook is called for a slot that does not change.
            Change::FlagsOnly | Change::Nothing => bindings::kvm_mr_change_KVM_MR_FLAGS_ONLY,
        }
    }
}

impl SlotsLocked<'_> {
    /// Returns whether the architecture allows `change` (CREATE or MOVE) to put a slot at `gfns`.
    pub(super) fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        let npages = gfns.end.0 - gfns.start.0;
        // SAFETY: The VM is not freed, and `self` proves that its slots_lock is held.
        to_result(unsafe {
            bindings::kvm_arch_check_memory_region(
                self.as_ptr(),
                gfns.start.0,
                npages as usize,
                change.as_kvm_mr_change(),
            )
        })
        .is_ok()
    }

    /// Removes the mappings of the slots `olds` from the second-level page tables. Readers see these
    /// slots as INVALID, so that no new mapping is made.
    pub(super) fn flush<'s>(&self, olds: impl Iterator<Item = Slot<'s>>) {
        let kvm = self.as_ptr();
        // SAFETY: The VM is not freed.
        let is_global = unsafe { bindings::kvm_arch_flush_shadow_is_global(kvm) };
        let mut flushed = false;
        for old in olds {
            let memfd = old.mapping().flags.contains(SlotFlags::GUEST_MEMFD);
            // One global flush is enough for all slots except those with a guest_memfd.
            if !flushed || memfd || !is_global {
                // SAFETY: The VM is not freed, and `self` proves that slots_lock is held. By the
                // invariant of `Slot` the slot is allocated.
                unsafe { bindings::kvm_arch_flush_shadow_memslot(kvm, old.as_ptr()) };
                flushed = true;
            }
        }
        // SAFETY: The VM is not freed.
        unsafe { bindings::kvm_arch_guest_memory_reclaimed(kvm) };
    }

    /// Completes one change: updates the number of slots that log dirty pages, and calls the
    /// architecture. No list contains `old` any more.
    pub(super) fn commit(&self, old: Option<Slot<'_>>, new: Option<Slot<'_>>, change: Change) {
        let logs = |slot: Option<Slot<'_>>| i32::from(slot.is_some_and(Slot::logs_dirty));
        self.add_logging(logs(new) - logs(old));

        let ptr = |slot: Option<Slot<'_>>| slot.map_or(null_mut(), Slot::as_ptr);
        // SAFETY: The VM is not freed, and `self` proves that slots_lock is held. By the invariant
        // of `Slot` both slots are allocated.
        unsafe {
            bindings::kvm_arch_commit_memory_region(
                self.as_ptr(),
                ptr(old),
                ptr(new),
                change.as_kvm_mr_change(),
            )
        };
    }

    /// Returns the number of pages in all slots of all address spaces.
    pub(super) fn nr_pages(&self) -> u64 {
        // SAFETY: The VM is not freed. The field is written under slots_lock only, which `self`
        // proves to be held.
        unsafe { (*self.as_ptr()).nr_memslot_pages as u64 }
    }

    /// Adds to the number of pages in all slots, modulo 2⁶⁴.
    pub(super) fn add_pages(&self, npages: u64) {
        // SAFETY: The VM is not freed. The field is written under slots_lock only, which `self`
        // proves to be held.
        unsafe {
            let nr_pages = &raw mut (*self.as_ptr()).nr_memslot_pages;
            *nr_pages = (*nr_pages).wrapping_add(npages as usize);
        }
    }

    /// Adds to the number of slots that log dirty pages.
    pub(super) fn add_logging(&self, slots: i32) {
        if slots == 0 {
            return;
        }
        // SAFETY: The VM is not freed. C accesses the counter as an atomic_t only.
        let counter = unsafe {
            Atomic::from_ptr(&raw mut (*self.as_ptr()).nr_memslots_dirty_logging.counter)
        };
        counter.add(slots, Relaxed);
    }

    /// Counts a list of `entries` entries in the VM's statistics.
    pub(super) fn count_list(&self, entries: u64) {
        // SAFETY: The VM is not freed. Only this function counts here, under slots_lock; clearing
        // the statistics through debugfs may race with it, and lose a count.
        unsafe {
            (*self.as_ptr()).stat.generic.memslot_list_calls += 1;
            (*self.as_ptr()).stat.generic.memslot_list_entries += entries;
        }
    }

    /// Traces a batch that has completed or failed.
    pub(super) fn trace_batch(&self, entries: usize, changes: usize, swaps: u64, result: Result) {
        let error = result.err().map_or(0, |error| error.to_errno());
        // SAFETY: The tracepoint takes integers only.
        unsafe { kvm_memslot_batch(entries as u32, changes as u32, swaps as u32, error) };
    }
}

kernel::tracepoint::declare_trace! {
    /// A batch has completed or failed.
    unsafe fn kvm_memslot_batch(entries: u32, changes: u32, swaps: u32, error: i32);
}
