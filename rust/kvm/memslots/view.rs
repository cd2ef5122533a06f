// SPDX-License-Identifier: GPL-2.0-only

//! A VM's active memslots, as the check of a batch looks at them.

use super::{
    check::{
        self,
        Limits,
        View, //
    },
    few::Few,
    locks::SlotsLocked,
    memfd::Memfds,
    slot::Slot,
    types::{
        Change,
        FilePages,
        Mapping,
        SlotFlags,
        SlotId,
        Spaces, //
    }, //
};

use crate::types::{
    GfnRange,
    Hva,
    PAGE_SHIFT, //
};

use core::cell::Cell;

use kernel::{
    alloc::AllocError,
    bindings,
    prelude::*, //
};

impl SlotsLocked<'_> {
    /// Returns the id of the lowest slot of address space `as_id` that shares a frame with `gfns`, and
    /// what it maps.
    pub(crate) fn first_slot_in(&self, as_id: u16, gfns: GfnRange) -> Option<(u16, Mapping)> {
        let slot = self.active(as_id).first_in(gfns)?;
        Some((slot.id().id, slot.mapping()))
    }

    /// Returns whether a slot may be at `gfns`, and have its memory at `hva`, if that is given.
    pub(crate) fn allows(&self, gfns: GfnRange, hva: Option<Hva>) -> bool {
        let size = gfns.npages() << PAGE_SHIFT;
        self.arch_allows(Change::Create, gfns) && hva.is_none_or(|hva| is_user_range(hva, size))
    }
}

/// Returns whether the current task can have memory at `[hva, hva + size)`, in bytes.
fn is_user_range(hva: Hva, size: u64) -> bool {
    // SAFETY: The function only looks at the current task.
    unsafe { bindings::kvm_memory_is_user_range(hva.0, size) }
}

/// The active slots of a VM, with an optional index by id, and the guest_memfds of a batch.
///
/// A batch with many entries needs the index: KVM hashes ids to so few buckets that a VM with
/// thousands of slots has long chains.
pub(super) struct ActiveSlots<'a, 'm, 'vm> {
    locked: &'a SlotsLocked<'vm>,
    /// The address spaces in the index.
    spaces: Spaces,
    /// By address space and id. Empty if there is no index.
    index: Few<Option<Slot<'a>>>,
    /// What the last look-up without an index has found. Each change looks its slot up several times.
    last: Cell<Option<(SlotId, Option<Slot<'a>>)>>,
    memfds: &'m Memfds,
}

impl<'a, 'm, 'vm> ActiveSlots<'a, 'm, 'vm> {
    /// Makes one pass over all slots in `indexed`, where ids then are found in constant time. Fails
    /// only if the index cannot be allocated.
    pub(super) fn new(
        locked: &'a SlotsLocked<'vm>,
        memfds: &'m Memfds,
        indexed: Spaces,
    ) -> Result<Self, AllocError> {
        let limits = locked.limits();
        let mut this = Self {
            locked,
            spaces: Spaces::of(indexed.iter().filter(|&id| id < limits.address_spaces)),
            index: Few::new(),
            last: Cell::new(None),
            memfds,
        };
        let len = this.spaces.iter().count() * usize::from(limits.slots);
        this.index = Few::from_elem(None, len)?;
        for as_id in this.spaces.iter() {
            for slot in locked.active(as_id).slots() {
                if let Some(at) = this.index_of(slot.id()) {
                    if let Some(entry) = this.index.get_mut(at) {
                        *entry = Some(slot);
                    }
                }
            }
        }
        Ok(this)
    }

    /// Returns where the index has slot `id`, if it has its address space.
    fn index_of(&self, id: SlotId) -> Option<usize> {
        let slots = self.locked.limits().slots;
        let (first, end) = self.spaces.bounds();
        (first <= id.as_id && id.as_id < end && id.id < slots)
            .then(|| usize::from(id.as_id - first) * usize::from(slots) + usize::from(id.id))
    }

    /// Returns the proof of `slots_lock`, which outlives this.
    pub(super) fn locked(&self) -> &'a SlotsLocked<'vm> {
        self.locked
    }

    /// Returns the guest_memfds of the batch.
    pub(super) fn memfds(&self) -> &'m Memfds {
        self.memfds
    }

    /// Returns the slot `id` that readers see, or [`None`] if there is none.
    pub(super) fn find(&self, id: SlotId) -> Option<Slot<'a>> {
        if !self.index.is_empty() {
            return *self.index.get(self.index_of(id)?)?;
        }
        if let Some((last, slot)) = self.last.get() {
            if last == id {
                return slot;
            }
        }
        let slot = self.locked.find(id);
        self.last.set(Some((id, slot)));
        slot
    }
}

impl View for ActiveSlots<'_, '_, '_> {
    fn limits(&self) -> Limits {
        let limits = self.locked.limits();
        Limits {
            address_spaces: limits.address_spaces,
            slots: limits.slots,
            user_slots: limits.user_slots,
            max_user_pages: limits.max_user_pages,
            flags: SlotFlags(limits.flags),
            bitmaps: limits.bitmaps,
        }
    }

    fn nr_pages(&self) -> u64 {
        self.locked.nr_pages()
    }

    fn slot(&self, id: SlotId) -> Option<Mapping> {
        Some(self.find(id)?.mapping())
    }

    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)> {
        let slot = self.locked.active(as_id).first_in(gfns)?;
        Some((slot.id(), slot.mapping().gfns))
    }

    fn is_user_range(&self, hva: Hva, size: u64) -> bool {
        is_user_range(hva, size)
    }

    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        self.locked.arch_allows(change, gfns)
    }

    fn memfd(&self, index: usize) -> Result<FilePages, check::Error> {
        self.memfds.pages(index)
    }

    fn first_bound(&self, pages: FilePages) -> Option<(SlotId, u64)> {
        self.memfds.first_bound(pages)
    }
}
