// SPDX-License-Identifier: GPL-2.0-only

//! What a batch asks and tells the rest of KVM: the architecture's hooks, the VM's counters and
//! statistics, and tracing.

use super::{
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    slot::Slot,
    types::Change, //
};

use crate::types::{
    Gfn,
    GfnRange, //
};

use core::ptr::null_mut;

use kernel::{
    bindings,
    error::to_result,
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
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that its
        // slots_lock is held.
        to_result(unsafe {
            bindings::kvm_arch_check_memory_region(
                self.as_ptr(),
                gfns.start.0,
                gfns.npages() as usize,
                change.as_kvm_mr_change(),
            )
        })
        .is_ok()
    }

    /// Removes the mappings of the slots `olds` from the second-level page tables. Readers see these
    /// slots as INVALID, so that no new mapping is made.
    pub(super) fn flush<'s>(&self, olds: impl Iterator<Item = Slot<'s>>) {
        let kvm = self.as_ptr();
        let mut all_flushed = false;
        for old in olds {
            let memfd = old.mapping().has_guest_memfd();
            // One global flush is enough for all slots except those with a guest_memfd.
            if memfd || !all_flushed {
                // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that
                // slots_lock is held. By the invariant of `Slot` the slot is allocated.
                unsafe { bindings::kvm_arch_flush_shadow_memslot(kvm, old.as_ptr()) };
                // Userspace can put an end to global flushes at any time, and cannot bring them back:
                // if the next one would be global, this one was.
                // SAFETY: By the invariant of `Vm` the VM is not freed.
                all_flushed = unsafe { bindings::kvm_arch_flush_shadow_is_global(kvm) };
            }
        }
        // SAFETY: By the invariant of `Vm` the VM is not freed.
        unsafe { bindings::kvm_arch_guest_memory_reclaimed(kvm) };
    }

    /// Returns whether hardware logs writes, which vCPUs only enter in the dirty log when they exit.
    pub(super) fn logs_late(&self) -> bool {
        // SAFETY: By the invariant of `Vm` the VM is not freed.
        unsafe { bindings::kvm_arch_logs_late(self.as_ptr()) }
    }

    /// Has all vCPUs log the writes that hardware has logged, in slots that readers see now: at the
    /// latest in the read sections that the next swap waits for.
    pub(super) fn drain_dirty_log(&self) {
        // SAFETY: By the invariant of `Vm` the VM is not freed.
        unsafe { bindings::kvm_arch_drain_dirty_log(self.as_ptr()) };
    }

    /// Removes the mappings of `gfns`, or the write access of these, from the second-level page
    /// tables. Readers see the slots that map the frames as INVALID, so that no new mapping is made.
    pub(super) fn take(&self, gfns: &[bindings::kvm_memory_gfns]) {
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that slots_lock
        // is held. `gfns` points to as many ranges as its length says.
        unsafe { bindings::kvm_arch_take_gfns(self.as_ptr(), gfns.as_ptr(), gfns.len()) };
    }

    /// Splits the huge pages of address space `as_id` that map frames on both sides of `edge`.
    pub(super) fn split_at(&self, as_id: u16, edge: Gfn) {
        // SAFETY: By the invariant of `Vm` the VM is not freed.
        unsafe { bindings::kvm_arch_split_at(self.as_ptr(), as_id.into(), edge.0) };
    }

    /// Undoes a split at `edge`, which is inside of `slot`, where that had been a huge page. `slot` does
    /// not log.
    pub(super) fn join_at(&self, slot: Slot<'_>, edge: Gfn) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. By the invariant of `Slot` the slot
        // is allocated. Slots in the lists have the architecture's data.
        unsafe { bindings::kvm_arch_join_at(self.as_ptr(), slot.as_ptr(), edge.0) };
    }

    /// Makes the mappings of `slot`, which no longer logs, huge again where they can be.
    pub(super) fn recover_huge_pages(&self, slot: Slot<'_>) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. By the invariant of `Slot` the slot
        // is allocated. Slots in the lists have the architecture's data.
        unsafe { bindings::kvm_arch_recover_huge_pages(self.as_ptr(), slot.as_ptr()) };
    }

    /// Has writes to `gfns`, which `slot` maps, logged from now on.
    pub(super) fn start_logging(&self, slot: Slot<'_>, gfns: GfnRange) {
        let (start, end) = (gfns.start.0, gfns.end.0);
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that slots_lock
        // is held. By the invariant of `Slot` the slot is allocated.
        unsafe { bindings::kvm_arch_start_logging(self.as_ptr(), slot.as_ptr(), start, end) };
    }

    /// Returns how many pages [`Self::flush`] flushes for slots that have `npages` pages.
    pub(super) fn flushed_pages(&self, npages: u64) -> u64 {
        // SAFETY: By the invariant of `Vm` the VM is not freed.
        let is_global = unsafe { bindings::kvm_arch_flush_shadow_is_global(self.as_ptr()) };
        match (npages, is_global) {
            (0, _) => 0,
            (_, true) => self.nr_pages(),
            (npages, false) => npages,
        }
    }

    /// Completes one change: updates the number of slots that log dirty pages, and calls the
    /// architecture. No list contains `old` any more.
    pub(super) fn commit(&self, old: Option<Slot<'_>>, new: Option<Slot<'_>>, change: Change) {
        let logs = |slot: Option<Slot<'_>>| i32::from(slot.is_some_and(Slot::logs_dirty));
        self.add_logging(logs(new) - logs(old));

        let ptr = |slot: Option<Slot<'_>>| slot.map_or(null_mut(), Slot::as_ptr);
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that slots_lock
        // is held. By the invariant of `Slot` both slots are allocated.
        unsafe {
            bindings::kvm_arch_commit_memory_region(
                self.as_ptr(),
                ptr(old),
                ptr(new),
                change.as_kvm_mr_change(),
            )
        };
    }

    /// Returns whether vCPUs have dirty rings.
    pub(super) fn has_dirty_ring(&self) -> bool {
        // SAFETY: By the invariant of `Vm` the VM is not freed. C writes the size as an aligned
        // u32, before the VM has vCPUs: the guest has nothing mapped then, so that the answer may
        // be out of date.
        let size = unsafe { Atomic::from_ptr(&raw mut (*self.as_ptr()).dirty_ring_size) };
        size.load(Relaxed) != 0
    }

    /// Returns the number of pages in all slots of all address spaces.
    pub(super) fn nr_pages(&self) -> u64 {
        // SAFETY: By the invariant of `Vm` the VM is not freed. The field is written under
        // slots_lock only, which `self` proves to be held.
        unsafe { (*self.as_ptr()).nr_memslot_pages as u64 }
    }

    /// Adds to the number of pages in all slots, modulo 2⁶⁴.
    pub(super) fn add_pages(&self, npages: u64) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. The field is written under
        // slots_lock only, which `self` proves to be held.
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
        // SAFETY: By the invariant of `Vm` the VM is not freed. C accesses the counter as an
        // atomic_t only.
        let counter = unsafe {
            Atomic::from_ptr(&raw mut (*self.as_ptr()).nr_memslots_dirty_logging.counter)
        };
        counter.add(slots, Relaxed);
    }

    /// Counts a list of `entries` entries in the VM's statistics.
    pub(super) fn count_list(&self, entries: u64) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. Only this function counts here,
        // under slots_lock; clearing the statistics through debugfs may race with it, and lose a
        // count.
        unsafe {
            (*self.as_ptr()).stat.generic.memslot_list_calls += 1;
            (*self.as_ptr()).stat.generic.memslot_list_entries += entries;
        }
    }

    /// Counts a batch that has published its INVALID copies.
    pub(super) fn count_window(&self, copies: usize) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. Statistics of memslots change under
        // slots_lock only, which `self` proves to be held; clearing them through debugfs may race
        // with it.
        unsafe {
            (*self.as_ptr()).stat.generic.memslot_windows += 1;
            (*self.as_ptr()).stat.generic.memslot_invalid_copies += copies as u64;
        }
    }

    /// Counts the pages of the slots that a batch has removed: those that were kept and those that
    /// are gone, and how many the guest has lost its mappings of.
    pub(super) fn count_pages(&self, kept: u64, gone: u64, zapped: u64) {
        // SAFETY: By the invariant of `Vm` the VM is not freed. Statistics of memslots change under
        // slots_lock only, which `self` proves to be held; clearing them through debugfs may race
        // with it.
        unsafe {
            let stat = &raw mut (*self.as_ptr()).stat.generic;
            (*stat).memslot_kept_pages += kept;
            (*stat).memslot_gone_pages += gone;
            (*stat).memslot_zapped_pages += zapped;
        }
    }

    /// Returns whether batches are traced.
    pub(super) fn traces_batches(&self) -> bool {
        // SAFETY: The function only reads the state of the tracepoint.
        unsafe { bindings::kvm_memory_traces_batches() }
    }

    /// Traces a batch that has completed or failed.
    pub(super) fn trace_batch(&self, report: &bindings::kvm_memory_report) {
        // SAFETY: The tracepoint reads from the report, which outlives the call.
        unsafe { kvm_memslot_batch(report) };
    }
}

impl ArchLocked<'_, '_> {
    /// Returns whether the architecture can reshape slots: whether mappings may stay when the slots
    /// that they were made from are replaced. It does not change while slots_arch_lock is held.
    pub(super) fn can_reshape(&self) -> bool {
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that
        // slots_arch_lock is held.
        unsafe { bindings::kvm_arch_can_reshape_memslots(self.slots().as_ptr()) }
    }
}

kernel::tracepoint::declare_trace! {
    /// A batch has completed or failed.
    unsafe fn kvm_memslot_batch(report: *const bindings::kvm_memory_report);
}
