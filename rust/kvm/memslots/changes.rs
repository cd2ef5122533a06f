// SPDX-License-Identifier: GPL-2.0-only

//! Phases 2 and 3 of a batch: preparing the slots that it adds and removes, and committing them.
//!
//! Each state of the lists is a type, and each step consumes the state before it, so that no other
//! order of steps compiles:
//!
//! ```text
//! Plan --prepare--> Prepared --invalidate--> Invalidated --publish--> Published --finish--> ()
//! ```
//!
//! A step that changes lists changes the inactive ones, swaps, and then changes the others in the
//! same way. So between steps both lists of an address space contain the same slots. Nothing else
//! in the core changes lists, or frees slots that were in them.

use super::{
    check::{
        NetKind,
        Plan,
        Relog, //
    },
    dirty,
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    new_slot::{
        GuestMemfd,
        NewSlot, //
    },
    old_slot::OldSlot,
    slot::{
        Slot,
        SlotBox, //
    },
    types::Change,
    view::ActiveSlots, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    bindings,
    prelude::*, //
};

/// One change of the lists. `invalid` is the INVALID copy of `old`.
enum Item<'vm> {
    Create {
        new: NewSlot<'vm>,
    },
    Delete {
        old: OldSlot,
        invalid: SlotBox,
    },
    Move {
        old: OldSlot,
        invalid: SlotBox,
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
    /// Returns the slot that is deleted or moved, and its INVALID copy.
    fn invalidated(&self) -> Option<(Slot<'_>, Slot<'_>)> {
        match self {
            Item::Delete { old, invalid } | Item::Move { old, invalid, .. } => {
                Some((old.slot(), invalid.slot()))
            }
            Item::Create { .. } | Item::FlagsOnly { .. } => None,
        }
    }

    /// Returns the slot that the batch adds.
    fn successor(&self) -> Option<&NewSlot<'vm>> {
        match self {
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                Some(new)
            }
            Item::Delete { .. } => None,
        }
    }

    /// Returns the address space as a mask.
    fn as_bit(&self) -> u32 {
        let slot = match self {
            Item::Delete { old, .. } => old.slot(),
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                new.slot()
            }
        };
        1 << slot.id().as_id
    }
}

/// The changes of a batch.
///
/// # Invariants
///
/// Each slot in the lists occurs at most once. The slots that the items add overlap neither each
/// other nor the slots that stay in the lists.
struct Items<'vm>(KVVec<Item<'vm>>);

impl<'vm> Items<'vm> {
    /// Returns the mask of the address spaces in which a slot is deleted or moved.
    fn invalidated_spaces(&self) -> u32 {
        let gone = self.0.iter().filter(|item| item.invalidated().is_some());
        gone.fold(0, |mask, item| mask | item.as_bit())
    }

    /// Returns the mask of the address spaces that change.
    fn spaces(&self) -> u32 {
        self.0.iter().fold(0, |mask, item| mask | item.as_bit())
    }

    /// In the inactive lists, replaces the slots that are deleted or moved with their INVALID
    /// copies, or if `back` the copies with the slots.
    ///
    /// # Safety
    ///
    /// The inactive lists contain what is replaced. If the next swap publishes them, the current
    /// task holds slots_arch_lock.
    unsafe fn put_copies(&self, slots: &SlotsLocked<'_>, back: bool) {
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            let (from, to) = if back { (invalid, old) } else { (old, invalid) };
            // SAFETY: No reader sees the inactive list, and `slots` proves that slots_lock is held.
            // The caller guarantees that `from` is in the list; `to` maps the same frames, so that
            // it is not, and overlaps nothing else. The batch frees neither before it is out of the
            // lists.
            unsafe { slots.inactive(old.id().as_id).replace(Some(from), Some(to)) };
        }
    }

    /// Puts the final slots in the inactive lists, after removing the INVALID copies: slots in a
    /// list must not overlap.
    ///
    /// # Safety
    ///
    /// The inactive lists contain the INVALID copies, and the old slots of which only the flags
    /// change. If the next swap publishes the lists, the current task holds slots_arch_lock.
    unsafe fn put_final(&self, slots: &SlotsLocked<'_>) {
        for (_, invalid) in self.0.iter().filter_map(Item::invalidated) {
            // SAFETY: No reader sees the inactive list, and `slots` proves that slots_lock is held.
            // The caller guarantees that the copy is in the list.
            unsafe {
                slots
                    .inactive(invalid.id().as_id)
                    .replace(Some(invalid), None)
            };
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
}

/// A batch that has allocated everything. The lists have not changed. Dropping it undoes it.
#[must_use]
pub(super) struct Prepared<'a, 'vm> {
    items: Items<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'a, 'vm> Prepared<'a, 'vm> {
    /// Prepares the changes of `plan`, which was made from `slots`: new slots, INVALID copies, dirty
    /// bitmaps, the architecture's data, the binding to `memfd`.
    ///
    /// Fails with the error of an allocation, of the architecture's hook or of the guest_memfd.
    pub(super) fn new(
        slots: &ActiveSlots<'a, 'vm>,
        plan: &Plan<'_, ActiveSlots<'a, 'vm>>,
        memfd: Option<GuestMemfd>,
    ) -> Result<Self> {
        let locked = slots.locked();
        let arch = locked.lock_arch();
        let mut items = KVVec::with_capacity(plan.max_changes(), GFP_KERNEL_ACCOUNT)?;
        for net in plan.net_changes() {
            let old = || -> Result<OldSlot> {
                // SAFETY: `find` returns slots in the lists. A plan has at most one net change for
                // each slot, for which one `OldSlot` is made. Every state of the batch borrows
                // `SlotsLocked`, so that slots_lock is held.
                unsafe { OldSlot::new(slots.find(net.slot).ok_or(EIO)?) }
            };
            if let NetKind::Delete | NetKind::Replace(_) = net.kind {
                let old = old()?;
                let invalid = SlotBox::invalid_copy(old.slot(), &arch)?;
                items.push(Item::Delete { old, invalid }, GFP_KERNEL_ACCOUNT)?;
            }
            let item = match net.kind {
                NetKind::Delete => continue,
                NetKind::Create(mapping) | NetKind::Replace(mapping) => {
                    let mut new = NewSlot::new(locked, net.slot, mapping, None, Relog::No)?;
                    if let Some(memfd) = memfd {
                        new.open_memfd(memfd)?;
                    }
                    new.prepare_arch(&arch, None, Change::Create)?;
                    new.bind_memfd()?;
                    Item::Create { new }
                }
                NetKind::Move(mapping, relog) => {
                    let old = old()?;
                    let mut new = NewSlot::new(locked, net.slot, mapping, Some(old.slot()), relog)?;
                    new.prepare_arch(&arch, Some(old.slot()), Change::Move)?;
                    Item::Move {
                        invalid: SlotBox::invalid_copy(old.slot(), &arch)?,
                        old,
                        new,
                        relog,
                    }
                }
                NetKind::FlagsOnly(mapping, relog) => {
                    let old = old()?;
                    let mut new = NewSlot::new(locked, net.slot, mapping, Some(old.slot()), relog)?;
                    new.prepare_arch(&arch, Some(old.slot()), Change::FlagsOnly)?;
                    Item::FlagsOnly { old, new, relog }
                }
            };
            items.push(item, GFP_KERNEL_ACCOUNT)?;
        }
        // INVARIANT: The plan has at most one net change for each slot. Its check has found no
        // overlap, and slots_lock has been held since.
        Ok(Self {
            items: Items(items),
            arch,
        })
    }

    /// Returns the number of changes. A replacement counts as two.
    pub(super) fn len(&self) -> usize {
        self.items.0.len()
    }

    /// Replaces all slots that are deleted or moved with INVALID copies, in both lists, by one swap,
    /// and flushes their mappings from the second-level page tables. Does nothing if there are none.
    ///
    /// Fails if [`Items::refresh`] does, after putting the old slots back.
    pub(super) fn invalidate(self) -> Result<Invalidated<'a, 'vm>> {
        let Self {
            mut items,
            mut arch,
        } = self;
        let spaces = items.invalidated_spaces();
        if spaces == 0 {
            return Ok(Invalidated { items, arch });
        }

        // SAFETY: No step has changed the lists, so that both contain the old slots. `arch` proves
        // that slots_arch_lock is held.
        unsafe { items.put_copies(arch.slots(), false) };
        let slots = arch.swap(spaces);
        // SAFETY: The lists that were active until the swap have not changed, so that they contain
        // the old slots. The next swap does not happen before slots_arch_lock is taken again.
        unsafe { items.put_copies(slots, false) };
        let gone = items.0.iter().filter_map(Item::invalidated);
        slots.flush(gone.map(|(old, _)| old));

        arch = slots.lock_arch();
        if let Err(error) = items.refresh(&arch) {
            // Put the old slots back, whose data has been refreshed, before anything is freed.
            // SAFETY: Both lists contain the copies, which put_copies() above put there. `arch`
            // proves that slots_arch_lock is held.
            unsafe { items.put_copies(arch.slots(), true) };
            let slots = arch.swap(spaces);
            // SAFETY: The lists that were active until the swap have not changed, so that they
            // contain the copies.
            unsafe { items.put_copies(slots, true) };
            return Err(error);
        }
        Ok(Invalidated { items, arch })
    }
}

impl<'vm> Items<'vm> {
    /// Brings the architecture's data of all slots up to date. While slots_arch_lock was free, a
    /// vCPU may have made the VM's first shadow root, or an external page tracker registered.
    ///
    /// Fails with `ENOMEM`, or with `EINVAL` if the page tracker forbids a move.
    fn refresh(&mut self, arch: &ArchLocked<'_, 'vm>) -> Result {
        // This cannot fail and comes first, because a roll-back puts these slots back.
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            // SAFETY: The lists contain the copy instead of the old slot, and the swap has waited
            // for readers that had found the old slot.
            unsafe { old.copy_arch(invalid, arch) };
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

/// A batch that can no longer fail. Both lists contain its INVALID copies, if it has any, and
/// readers see these: it must be published, not dropped.
#[must_use]
pub(super) struct Invalidated<'a, 'vm> {
    items: Items<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'a, 'vm> Invalidated<'a, 'vm> {
    /// Publishes the final slots by one swap, carries dirty bits to them, and puts them in the lists
    /// that were active.
    pub(super) fn publish(self) -> Published<'a, 'vm> {
        let Self { items, arch } = self;
        // SAFETY: Both lists contain the copies, from invalidate(), and the other old slots, which
        // no step has replaced. `arch` proves that slots_arch_lock is held.
        unsafe { items.put_final(arch.slots()) };
        let slots = arch.swap(items.spaces());

        // The lists that were active still contain the INVALID copies. An address space in which no
        // slot is deleted or moved has none.
        for item in &items.0 {
            if let Item::Create { new } | Item::Move { new, .. } = item {
                for as_id in 0..slots.limits().address_spaces {
                    dirty::carry(slots.inactive(as_id), new.slot());
                }
            }
        }
        // SAFETY: The lists that were active until the swap have not changed, so that they contain
        // the copies and the other old slots. No swap of this batch follows.
        unsafe { items.put_final(slots) };
        Published { items, slots }
    }
}

/// A batch that readers see. Both lists contain the final slots: it must be finished, not dropped.
#[must_use]
pub(super) struct Published<'a, 'vm> {
    items: Items<'vm>,
    slots: &'a SlotsLocked<'vm>,
}

impl Published<'_, '_> {
    /// Updates the counts, calls the architecture's commit hooks, deletions first, and frees the old
    /// slots.
    pub(super) fn finish(self) {
        let Self { items, slots } = self;
        // Count everything before the first hook: the architecture limits its shadow pages by the
        // count, and must not see an intermediate one.
        for item in &items.0 {
            match item {
                Item::Delete { old, .. } => {
                    slots.add_pages(old.slot().mapping().npages().wrapping_neg());
                }
                Item::Create { new } => slots.add_pages(new.slot().mapping().npages()),
                // The size stays the same.
                Item::Move { .. } | Item::FlagsOnly { .. } => {}
            }
        }
        for item in &items.0 {
            if let Item::Delete { old, .. } = item {
                slots.commit(Some(old.slot()), None, Change::Delete);
            }
        }
        for item in items.0 {
            match item {
                // SAFETY: Both lists contain the final slots only, and the swap has waited for readers
                // that had found others. A deleted slot shares resources with its INVALID copy only,
                // which frees none of them.
                Item::Delete { old, .. } => unsafe { old.free_with_resources(slots) },
                Item::Create { new } => {
                    slots.commit(None, Some(new.slot()), Change::Create);
                    new.leak();
                }
                Item::Move {
                    old, new, relog, ..
                } => replaced(slots, old, new, relog, Change::Move),
                Item::FlagsOnly { old, new, relog } => {
                    replaced(slots, old, new, relog, Change::FlagsOnly);
                }
            }
        }
    }
}

/// Commits a MOVE or FLAGS_ONLY, and frees `old`, which no reader sees, without the resources that
/// `new` has taken over.
fn replaced(
    slots: &SlotsLocked<'_>,
    mut old: OldSlot,
    new: NewSlot<'_>,
    relog: Relog,
    change: Change,
) {
    if relog == Relog::Yes && old.slot().logs_dirty() {
        // The list turned logging off and on again. The architecture must see logging start, to
        // write-protect the pages that the new bitmap says are clean.
        // SAFETY: Both lists contain the new slot instead of the old one, and the swap has waited
        // for readers that had found the old one.
        unsafe { old.stop_logging() };
        slots.add_logging(-1);
    }
    slots.commit(Some(old.slot()), Some(new.slot()), change);

    let bitmap = old.slot().dirty_bitmap();
    if new.slot().dirty_bitmap() != bitmap {
        // SAFETY: No reader sees the old slot any more, and the new one has not taken over its
        // bitmap.
        unsafe { bindings::kvfree(bitmap.cast()) };
    }
    new.leak();
    // SAFETY: Both lists contain the new slot instead of the old one, and the swap has waited for
    // readers that had found the old one. Its other resources belong to the new slot, or were freed
    // by the commit hook (MOVE).
    unsafe { old.free() };
}
