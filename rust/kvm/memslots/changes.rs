// SPDX-License-Identifier: GPL-2.0-only

//! The slots that a batch takes out of the lists, and those that it puts in.
//!
//! The state of the lists is a type, and each step uses up the one before, so that no other order
//! compiles:
//!
//! ```text
//! Plan --prepare--> Prepared --invalidate--> Invalidated --publish--> Published --finish--> ()
//! ```
//!
//! Every step that edits lists edits the inactive ones, swaps, and then edits the others in the
//! same way: between steps both lists of an address space are equal, node for node. All that edits
//! lists and frees slots is here.

use super::check::NetKind;
use super::check::Plan;
use super::check::Relog;
use super::dirty;
use super::locked::ArchLocked;
use super::locked::Slots;
use super::locked::SlotsLocked;
use super::new_slot::GuestMemfd;
use super::new_slot::NewSlot;
use super::slot::Slot;
use super::slot::SlotBox;
use super::types::Change;
use super::types::SlotFlags;
use core::ptr::NonNull;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::prelude::*;

/// A slot that was in the lists when the batch began, and that the batch takes out of them.
///
/// Dropping it does nothing: the slot is in the lists again, or still.
///
/// # Invariants
///
/// Points to an initialised slot that nothing frees but [`Self::free`] and [`Self::free_with_all`],
/// which use this up. It is the only `OldSlot` for its slot.
struct OldSlot(NonNull<bindings::kvm_memory_slot>);

impl OldSlot {
    /// # Safety
    ///
    /// `slot` is in the lists. The caller's batch makes no other `OldSlot` for it, and holds
    /// slots_lock for as long as the result exists.
    unsafe fn new(slot: Slot<'_>) -> Result<Self> {
        // INVARIANT: Slots in the lists are freed under slots_lock only, and the caller guarantees
        // the rest.
        Ok(Self(NonNull::new(slot.as_ptr()).ok_or(EIO)?))
    }

    fn slot(&self) -> Slot<'_> {
        // SAFETY: By the type invariant the slot is initialised and not freed while `self` is
        // borrowed. Its fields are written by `stop_logging` only, which borrows `self` mutably, and
        // runs when what was looked up before the batch changed anything is dropped.
        unsafe { Slot::from_raw(self.0) }
    }

    /// Makes the slot look like one that does not log.
    ///
    /// # Safety
    ///
    /// No list holds the slot, and no reader sees it.
    unsafe fn stop_logging(&mut self) {
        // SAFETY: By the type invariant the slot is allocated, and the caller guarantees that
        // nobody else uses it.
        unsafe { (*self.0.as_ptr()).flags &= !SlotFlags::LOG_DIRTY.0 };
    }

    /// Frees the slot, but not what hangs on it.
    ///
    /// # Safety
    ///
    /// No list holds the slot, and no reader sees it.
    unsafe fn free(self) {
        // SAFETY: Slots in the lists come from `NewSlot::leak`. By the type invariant nothing else
        // frees this one, and the caller guarantees the rest.
        drop(unsafe { SlotBox::from_raw(self.0) });
    }

    /// Frees the slot and all that hangs on it.
    ///
    /// # Safety
    ///
    /// No list holds the slot, and no reader sees it. It shares nothing with a slot that stays.
    unsafe fn free_with_all(self, slots: &SlotsLocked<'_>) {
        // SAFETY: The VM lives. By the type invariant nothing else frees the slot, and the caller
        // guarantees the rest.
        unsafe { bindings::kvm_free_memslot(slots.vm().as_ptr(), self.0.as_ptr()) };
    }
}

/// What happens to one slot.
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
    /// The slot that goes away or moves, and its INVALID copy.
    fn invalidated(&self) -> Option<(Slot<'_>, Slot<'_>)> {
        match self {
            Item::Delete { old, invalid } | Item::Move { old, invalid, .. } => {
                Some((old.slot(), invalid.slot()))
            }
            Item::Create { .. } | Item::FlagsOnly { .. } => None,
        }
    }

    /// The slot that there is afterwards.
    fn successor(&self) -> Option<&NewSlot<'vm>> {
        match self {
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                Some(new)
            }
            Item::Delete { .. } => None,
        }
    }

    /// The address space, as a bit.
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

/// What a batch changes.
///
/// # Invariants
///
/// Each slot of the lists occurs once at most. What the items bring overlaps neither itself nor
/// what stays in the lists.
struct Items<'vm>(KVVec<Item<'vm>>);

impl<'vm> Items<'vm> {
    /// The address spaces in which a slot goes away or moves.
    fn invalidated_spaces(&self) -> u32 {
        let gone = self.0.iter().filter(|item| item.invalidated().is_some());
        gone.fold(0, |mask, item| mask | item.as_bit())
    }

    /// The address spaces that change.
    fn spaces(&self) -> u32 {
        self.0.iter().fold(0, |mask, item| mask | item.as_bit())
    }

    /// In the inactive lists, puts INVALID copies in the place of the slots that go away or move;
    /// or the other way round.
    ///
    /// # Safety
    ///
    /// What is replaced is in the inactive lists. If these will be swapped in next, slots_arch_lock
    /// is held.
    unsafe fn put_copies(&self, slots: &SlotsLocked<'_>, back: bool) {
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            let (from, to) = if back { (invalid, old) } else { (old, invalid) };
            // SAFETY: The caller guarantees that `from` is in the list, and then `to` is not: it
            // takes the same frames. Both stay allocated while the batch exists, which takes out of
            // the lists what it frees.
            unsafe { slots.inactive(old.id().as_id).replace(Some(from), Some(to)) };
        }
    }

    /// Puts the final slots in the inactive lists. What goes is taken out first: slots in a list do
    /// not overlap.
    ///
    /// # Safety
    ///
    /// The INVALID copies are in the inactive lists, and the old slots that change flags only. If
    /// the lists will be swapped in next, slots_arch_lock is held.
    unsafe fn put_final(&self, slots: &SlotsLocked<'_>) {
        for (_, invalid) in self.0.iter().filter_map(Item::invalidated) {
            // SAFETY: The caller guarantees that the copy is in the list.
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
                // SAFETY: The caller guarantees that the old slot is in the list, if there is one.
                // By the type invariant the new one overlaps nothing that stays; it is left to the
                // lists when the batch ends.
                unsafe { slots.inactive(new.id().as_id).replace(old, Some(new)) };
            }
        }
    }
}

/// A batch that has all it needs. Both lists of each address space are as they were; dropping it
/// undoes it.
#[must_use]
pub(super) struct Prepared<'a, 'vm> {
    items: Items<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'a, 'vm> Prepared<'a, 'vm> {
    /// Makes all that `plan`, which is one of `slots`, needs and that can fail: new slots, INVALID
    /// copies, dirty bitmaps, the architecture's data. Binds the guest_memfd.
    pub(super) fn new(
        slots: &Slots<'a, 'vm>,
        plan: &Plan<'_, Slots<'a, 'vm>>,
        memfd: Option<GuestMemfd>,
    ) -> Result<Self> {
        let locked = slots.locked;
        let arch = locked.lock_arch();
        let mut items = KVVec::with_capacity(plan.max_changes(), GFP_KERNEL_ACCOUNT)?;
        for net in plan.net_changes() {
            let old = || -> Result<OldSlot> {
                // SAFETY: `find` gives slots in the lists. A plan has one net change for each slot,
                // from which one `OldSlot` is made. The lock is held while the result exists, as
                // `arch` borrows it.
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
        // INVARIANT: The check that made the plan has found no overlap, and slots_lock has been
        // held since.
        Ok(Self {
            items: Items(items),
            arch,
        })
    }

    /// The number of changes; a replacement is two.
    pub(super) fn len(&self) -> usize {
        self.items.0.len()
    }

    /// Puts INVALID copies in the place of all slots that go away or move, in both lists, by one
    /// swap, and flushes what the second-level page tables have of them. Does nothing if there are
    /// none. The one thing in it that can fail puts the old slots back.
    pub(super) fn invalidate(self) -> Result<Invalidated<'a, 'vm>> {
        let Self {
            mut items,
            mut arch,
        } = self;
        let spaces = items.invalidated_spaces();
        if spaces == 0 {
            return Ok(Invalidated { items, arch });
        }

        // SAFETY: Both lists have the old slots, and `arch` proves that slots_arch_lock is held.
        unsafe { items.put_copies(arch.slots, false) };
        let slots = arch.swap(spaces);
        // SAFETY: The lists that were active until the swap still have the old slots.
        unsafe { items.put_copies(slots, false) };
        let gone = items.0.iter().filter_map(Item::invalidated);
        slots.flush(gone.map(|(old, _)| old));

        arch = slots.lock_arch();
        if let Err(error) = items.refresh(&arch) {
            // The old slots are complete and in no list: back with them, in both.
            // SAFETY: Both lists have the copies, and `arch` proves that slots_arch_lock is held.
            unsafe { items.put_copies(arch.slots, true) };
            let slots = arch.swap(spaces);
            // SAFETY: The lists that were active until the swap still have the copies.
            unsafe { items.put_copies(slots, true) };
            return Err(error);
        }
        Ok(Invalidated { items, arch })
    }
}

impl<'vm> Items<'vm> {
    /// Brings the architecture's part of all slots up to date, after slots_arch_lock was free: the
    /// first shadow root of the VM may have been made, or an external page tracker registered.
    fn refresh(&mut self, arch: &ArchLocked<'_, 'vm>) -> Result {
        // First what cannot fail, so that old slots can be put back.
        for (old, invalid) in self.0.iter().filter_map(Item::invalidated) {
            // SAFETY: The lists have the copies, and no reader that found the old slot is left
            // after the swap.
            unsafe { old.copy_arch(invalid, arch) };
        }
        for item in &mut self.0 {
            match item {
                // SAFETY: The new slot is in no list, so no reader sees it.
                Item::FlagsOnly { old, new, .. } => unsafe {
                    new.slot().copy_arch(old.slot(), arch);
                },
                Item::Create { new } => new.refresh_arch(arch)?,
                Item::Move { new, .. } => {
                    // Somebody may have begun to track writes, which forbids moves.
                    if !arch
                        .slots
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

/// A batch of which nothing can fail any more. Both lists have its INVALID copies, which readers
/// may see: it must be published, not dropped.
#[must_use]
pub(super) struct Invalidated<'a, 'vm> {
    items: Items<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'a, 'vm> Invalidated<'a, 'vm> {
    /// Makes the final slots the active ones, in one swap, gives dirty bits to successors, and
    /// brings the lists that were active up to date.
    pub(super) fn publish(self) -> Published<'a, 'vm> {
        let Self { items, arch } = self;
        // SAFETY: Both lists have the copies and the other old slots, and `arch` proves that
        // slots_arch_lock is held.
        unsafe { items.put_final(arch.slots) };
        let slots = arch.swap(items.spaces());

        // The lists that were active still tell which slots went from where. Where the batch takes
        // nothing away, there is no INVALID slot.
        for item in &items.0 {
            if let Item::Create { new } | Item::Move { new, .. } = item {
                for as_id in 0..slots.address_spaces() {
                    dirty::carry(slots.inactive(as_id), new.slot());
                }
            }
        }
        // SAFETY: The lists that were active until the swap still have the copies and the other old
        // slots.
        unsafe { items.put_final(slots) };
        Published { items, slots }
    }
}

/// A batch that readers see. Both lists have the final slots; it must be finished, not dropped.
#[must_use]
pub(super) struct Published<'a, 'vm> {
    items: Items<'vm>,
    slots: &'a SlotsLocked<'vm>,
}

impl Published<'_, '_> {
    /// Counts, tells the architecture, and frees what is gone, deletions first.
    pub(super) fn finish(self) {
        let Self { items, slots } = self;
        // The architecture bounds its shadow pages by this, and must not see what is in between.
        for item in &items.0 {
            match item {
                Item::Delete { old, .. } => {
                    slots.add_pages(old.slot().mapping().npages().wrapping_neg());
                }
                Item::Create { new } => slots.add_pages(new.slot().mapping().npages()),
                // They keep their size.
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
                // SAFETY: The lists have the final slots, and no reader that found another is left
                // after the swap. A deleted slot shares nothing with a slot that stays.
                Item::Delete { old, .. } => unsafe { old.free_with_all(slots) },
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

/// Commits a change that handed on what hangs on `old`, then frees `old`, which no reader sees.
fn replaced(
    slots: &SlotsLocked<'_>,
    mut old: OldSlot,
    new: NewSlot<'_>,
    relog: Relog,
    change: Change,
) {
    if relog == Relog::Yes && old.slot().logs_dirty() {
        // Logging was off for a moment that nobody saw. The architecture must see it, to protect
        // the pages that the new bitmap says are clean.
        // SAFETY: The lists have the new slot, and no reader that found the old one is left after
        // the swap.
        unsafe { old.stop_logging() };
        slots.add_logging(-1);
    }
    slots.commit(Some(old.slot()), Some(new.slot()), change);

    let bitmap = old.slot().dirty_bitmap();
    if new.slot().dirty_bitmap() != bitmap {
        // SAFETY: No reader sees the old slot, and the new one has another bitmap or none.
        unsafe { bindings::kvfree(bitmap.cast()) };
    }
    new.leak();
    // SAFETY: The lists have the new slot, and no reader that found the old one is left. What else
    // hung on it is the new slot's now, or was freed by the architecture (MOVE).
    unsafe { old.free() };
}
