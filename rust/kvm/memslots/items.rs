// SPDX-License-Identifier: GPL-2.0-only

//! The changes of a batch: the slots that it adds to the lists, and those that it removes.

use super::{
    check::Relog,
    dirty,
    few::Few,
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    new_slot::NewSlot,
    old_slot::OldSlot,
    reshape::{
        self,
        Reshape,
        Sides, //
    },
    slot::{
        Slot,
        SlotBox, //
    },
    types::{
        Change,
        Spaces, //
    }, //
};

use kernel::prelude::*;

/// One change of the lists. `invalid` is the INVALID copy of `old`, if the batch needs one.
pub(super) enum Item<'vm> {
    Create {
        new: NewSlot<'vm>,
    },
    Delete {
        old: OldSlot,
        invalid: Option<SlotBox>,
        /// The user address that receives the last dirty bits, or 0.
        last_log: u64,
    },
    Move {
        old: OldSlot,
        invalid: Option<SlotBox>,
        new: NewSlot<'vm>,
        relog: Relog,
    },
    FlagsOnly {
        old: OldSlot,
        new: NewSlot<'vm>,
        relog: Relog,
    },
}

impl<'vm> Item<'vm> {
    /// Returns the slot that is deleted or moved.
    pub(super) fn removed(&self) -> Option<Slot<'_>> {
        match self {
            Item::Delete { old, .. } | Item::Move { old, .. } => Some(old.slot()),
            Item::Create { .. } | Item::FlagsOnly { .. } => None,
        }
    }

    /// Returns the slot that is deleted or moved, and its INVALID copy if it has one.
    pub(super) fn invalidated(&self) -> Option<(Slot<'_>, Slot<'_>)> {
        match self {
            Item::Delete { old, invalid, .. } | Item::Move { old, invalid, .. } => {
                Some((old.slot(), invalid.as_ref()?.slot()))
            }
            Item::Create { .. } | Item::FlagsOnly { .. } => None,
        }
    }

    /// Returns whether the last bits of the slot's dirty log go to userspace.
    fn gives_last_log(&self) -> bool {
        matches!(self, Item::Delete { last_log, .. } if *last_log != 0)
    }

    /// Returns the slot that is created or moved.
    pub(super) fn added(&self) -> Option<Slot<'_>> {
        match self {
            Item::Create { new } | Item::Move { new, .. } => Some(new.slot()),
            Item::Delete { .. } | Item::FlagsOnly { .. } => None,
        }
    }

    /// Returns the slot that the batch adds.
    pub(super) fn successor(&self) -> Option<&NewSlot<'vm>> {
        match self {
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                Some(new)
            }
            Item::Delete { .. } => None,
        }
    }

    /// Returns the address space.
    fn as_id(&self) -> u16 {
        let slot = match self {
            Item::Delete { old, .. } => old.slot(),
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                new.slot()
            }
        };
        slot.id().as_id
    }
}

/// The changes of a batch.
///
/// # Invariants
///
/// Each slot in the lists occurs at most once. The slots that the items add overlap neither each
/// other nor the slots that stay in the lists.
pub(super) struct Items<'vm>(pub(super) Few<Item<'vm>>);

impl<'vm> Items<'vm> {
    /// Returns the address spaces in which a slot is deleted or moved.
    pub(super) fn invalidated_spaces(&self) -> Spaces {
        let gone = self.0.iter().filter(|item| item.invalidated().is_some());
        Spaces::of(gone.map(Item::as_id))
    }

    /// Returns the address spaces that change.
    pub(super) fn spaces(&self) -> Spaces {
        Spaces::of(self.0.iter().map(Item::as_id))
    }

    /// In the inactive lists, replaces the slots that are deleted or moved with their INVALID
    /// copies, or if `back` the copies with the slots.
    ///
    /// # Safety
    ///
    /// The inactive lists contain what is replaced. If the next swap publishes them, the current
    /// task holds slots_arch_lock.
    pub(super) unsafe fn put_copies(&self, slots: &SlotsLocked<'_>, back: bool) {
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            let (from, to) = if back { (invalid, old) } else { (old, invalid) };
            // SAFETY: No reader sees the inactive list, and `slots` proves that slots_lock is held.
            // The caller guarantees that `from` is in the list; `to` maps the same frames, so that
            // it is not, and overlaps nothing else. The batch frees neither before it is out of the
            // lists.
            unsafe { slots.inactive(old.id().as_id).replace(Some(from), Some(to)) };
        }
    }

    /// Puts the final slots in the inactive lists, after removing those that are deleted or moved, or
    /// their INVALID copies: slots in a list must not overlap.
    ///
    /// # Safety
    ///
    /// The inactive lists contain the INVALID copies, the slots that have none, and those of which
    /// only the flags change. If the next swap publishes the lists, the current task holds
    /// slots_arch_lock.
    pub(super) unsafe fn put_final(&self, slots: &SlotsLocked<'_>) {
        for item in &self.0 {
            let invalid = item.invalidated().map(|(_, invalid)| invalid);
            if let Some(slot) = invalid.or(item.removed()) {
                // SAFETY: No reader sees the inactive list, and `slots` proves that slots_lock is
                // held. The caller guarantees that the slot is in the list.
                unsafe { slots.inactive(slot.id().as_id).replace(Some(slot), None) };
            }
        }
        for item in &self.0 {
            let old = match item {
                Item::FlagsOnly { old, .. } => Some(old.slot()),
                _ => None,
            };
            if let Some(new) = item.successor().map(NewSlot::slot) {
                // SAFETY: No reader sees the inactive list, and `slots` proves that slots_lock is
                // held. The caller guarantees that the old slot, if there is one, is in the list. By
                // the type invariant the new one overlaps nothing that stays. When the batch ends,
                // it leaves the new one to the lists.
                unsafe { slots.inactive(new.id().as_id).replace(old, Some(new)) };
            }
        }
    }

    /// Returns whether a slot is removed that is bound to a guest_memfd.
    pub(super) fn removes_bound(&self) -> bool {
        self.0
            .iter()
            .filter_map(Item::removed)
            .any(|old| old.mapping().has_guest_memfd())
    }

    /// Returns whether all slots that are deleted, created and moved can be reshaped.
    pub(super) fn can_reshape(&self, slots: &SlotsLocked<'vm>) -> bool {
        // Userspace resets entries of the dirty ring by slot id, and other slots may have the ids by
        // then. If a new log starts with all pages dirty, no ring has entries for them.
        let ring = slots.has_dirty_ring();
        let simple = |slot: Slot<'_>| {
            let in_ring = ring && slot.logs_dirty();
            !(slot.mapping().has_guest_memfd() || in_ring)
        };
        self.0
            .iter()
            .flat_map(|item| [item.removed(), item.added()])
            .flatten()
            .all(simple)
    }

    /// Makes INVALID copies of all slots that are deleted or moved.
    pub(super) fn copy_invalid(&mut self, arch: &ArchLocked<'_, 'vm>) -> Result {
        for item in &mut self.0 {
            if let Item::Delete { old, invalid, .. } | Item::Move { old, invalid, .. } = item {
                *invalid = Some(SlotBox::invalid_copy(old.slot(), arch)?);
            }
        }
        Ok(())
    }

    /// Binds the new slots that take over pages of a guest_memfd from slots that are deleted. Fails with
    /// the error of binding one, after binding the old slots again.
    ///
    /// # Safety
    ///
    /// Readers see the INVALID copies of all slots that are deleted, and nothing is mapped of those
    /// that have a guest_memfd. slots_lock is held until the batch ends.
    pub(super) unsafe fn take_over_memfds(&mut self) -> Result {
        let waits = |item: &Item<'vm>| item.successor().is_some_and(NewSlot::waits_for_memfd);
        if !self.0.iter().any(waits) {
            return Ok(());
        }
        for item in &mut self.0 {
            if let Item::Delete { old, .. } = item {
                // SAFETY: The caller guarantees that readers see an INVALID copy of the slot, that
                // nothing is mapped of it if it has a guest_memfd, and that slots_lock is held until
                // the batch ends.
                unsafe { old.unbind_memfd() };
            }
        }
        let result = self.bind_memfds();
        if result.is_err() {
            for item in &mut self.0 {
                if let Item::Create { new } = item {
                    new.unbind_memfd();
                }
            }
            for item in &mut self.0 {
                if let Item::Delete { old, .. } = item {
                    old.rebind_memfd();
                }
            }
        }
        result
    }

    /// Binds all slots that are created with a guest_memfd. Their architecture's data is complete, and
    /// slots_arch_lock stays held until readers see them.
    pub(super) fn bind_memfds(&mut self) -> Result {
        self.0.iter_mut().try_for_each(|item| match item {
            Item::Create { new } => new.bind_memfd(),
            _ => Ok(()),
        })
    }

    /// Compares the slots that are removed with those that are added. Clears the dirty bits of frames
    /// that stay and are logged before and after: these have the bits that they had. `may_take` says
    /// whether frames can be taken from the guest one by one, `in_place` whether slots are reshaped.
    pub(super) fn compare(
        &mut self,
        slots: &SlotsLocked<'vm>,
        may_take: bool,
        in_place: bool,
        reshape: &mut Reshape,
    ) -> Result {
        reshape.in_place = in_place;
        if let [item] = &*self.0 {
            // A slot that moves has none of its frames in common with itself.
            if let Some(old) = item.removed() {
                let gfns = old.mapping().gfns;
                reshape.gone_pages = gfns.npages();
                if may_take {
                    reshape
                        .taken
                        .push(reshape::taken(old.id().as_id, gfns, false))?;
                }
            }
            return Ok(());
        }
        let olds = Sides::new(self.0.len(), |item| self.removed(item))?;
        if olds.is_empty() {
            // Most batches create slots or change flags.
            return Ok(());
        }
        let news = Sides::new(self.0.len(), |item| self.added(item))?;
        let moves = |item: u32| matches!(self.0.get(item as usize), Some(Item::Move { .. }));
        reshape.compare(&olds, &news, self.spaces(), moves)?;
        if may_take && !in_place {
            for old in self.0.iter().filter_map(Item::removed) {
                let all = reshape::taken(old.id().as_id, old.mapping().gfns, false);
                reshape.taken.push(all)?;
            }
        }
        let logs_late = in_place && slots.logs_late();
        for shared in &reshape.shared {
            let logged = |old: &Slot<'_>| shared.here && !old.dirty_bitmap().is_null();
            let Some(old) = self.removed(shared.old).filter(logged) else {
                continue;
            };
            let asked = self.0.get(shared.old).is_some_and(Item::gives_last_log);
            let ends = self.added(shared.new).is_some_and(|new| !new.logs_dirty());
            if logs_late && asked && ends {
                // The last writes would be logged in the new slot, which has no log.
                let written = reshape::taken(old.id().as_id, shared.gfns, true);
                reshape.taken.push(written)?;
            }
            if let Some(Item::Create { new }) = self.0.get_mut(shared.new) {
                new.clear_dirty(shared.gfns);
            }
        }
        Ok(())
    }

    /// Returns the slot that is removed by change number `item`.
    pub(super) fn removed(&self, item: usize) -> Option<Slot<'_>> {
        self.0.get(item)?.removed()
    }

    /// Returns the slot that is added by change number `item`.
    pub(super) fn added(&self, item: usize) -> Option<Slot<'_>> {
        self.0.get(item)?.added()
    }

    /// Returns whether the last bits of a dirty log go to userspace.
    pub(super) fn gives_last_log(&self) -> bool {
        self.0.iter().any(Item::gives_last_log)
    }

    /// Returns whether the dirty log of a slot that is removed may be needed afterwards.
    pub(super) fn hands_log_on(&self) -> bool {
        let logs = |slot: Option<Slot<'_>>| slot.is_some_and(Slot::logs_dirty);
        self.gives_last_log()
            || self.0.iter().any(|item| logs(item.removed()))
                && self.0.iter().any(|item| logs(item.added()))
    }

    /// Carries dirty bits from the slots that are removed, which no reader sees any more.
    pub(super) fn carry_dirty(&self, reshape: &Reshape) {
        for shared in &reshape.shared {
            if let (Some(old), Some(new)) = (self.removed(shared.old), self.added(shared.new)) {
                dirty::carry(old, new, shared.gfns);
            }
        }
    }

    /// If slots were reshaped, brings the mappings of kept frames in line with the new slots: huge
    /// pages, and what it takes to log writes. No reader sees the removed slots any more. The count
    /// of slots that log includes the new slots: CPUs that log dirty pages do so already.
    pub(super) fn settle(&self, slots: &SlotsLocked<'vm>, reshape: &Reshape) {
        if !reshape.in_place {
            return;
        }
        if reshape.taken.is_empty() {
            // Otherwise, they were split before frames were taken.
            reshape.split_edges(slots);
        }
        let mut recovered = None;
        for shared in reshape.shared.iter().filter(|shared| shared.here) {
            let (Some(old), Some(new)) = (self.removed(shared.old), self.added(shared.new)) else {
                continue;
            };
            match (old.logs_dirty(), new.logs_dirty()) {
                (false, true) => slots.start_logging(new, shared.gfns),
                // Huge pages may reach beyond the frames that were logged.
                (true, false) if recovered != Some(shared.new) => {
                    slots.recover_huge_pages(new);
                    recovered = Some(shared.new);
                }
                _ => {}
            }
        }
        for &(new, edge) in &reshape.joined {
            if let Some(new) = self.added(new).filter(|new| !new.logs_dirty()) {
                slots.join_at(new, edge);
            }
        }
    }

    /// Brings the architecture's data of all slots up to date. While slots_arch_lock was free, a
    /// vCPU may have made the VM's first shadow root, or an external page tracker registered.
    ///
    /// Fails with `ENOMEM`, or with `EINVAL` if the page tracker forbids a move.
    pub(super) fn refresh(&mut self, arch: &ArchLocked<'_, 'vm>) -> Result {
        // This cannot fail and comes first, because a roll-back puts these slots back.
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            // SAFETY: The lists contain the copy instead of the old slot, and the swap has waited
            // for readers that had found the old slot.
            unsafe { old.copy_arch_back(invalid, arch) };
        }
        for item in &mut self.0 {
            match item {
                // SAFETY: The final slots are in no list yet, so that no reader sees this one.
                Item::FlagsOnly { old, new, .. } => unsafe {
                    new.slot().copy_arch(old.slot(), arch);
                },
                Item::Create { new } => new.refresh_arch(arch)?,
                Item::Move { new, .. } => {
                    // An external page tracker, which forbids moves, may have registered.
                    if !arch
                        .slots()
                        .arch_allows(Change::Move, new.slot().mapping().gfns)
                    {
                        return Err(EINVAL);
                    }
                    new.refresh_arch(arch)?;
                }
                Item::Delete { .. } => {}
            }
        }
        Ok(())
    }
}
