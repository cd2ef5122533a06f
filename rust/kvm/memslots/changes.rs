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
//! Of these, only [`Prepared`] leaves this file: dropping a later one would free slots that are in the
//! lists.
//!
//! A batch that reshapes slots ([`super::reshape`]) and takes no frames from the guest needs no INVALID
//! copies.
//!
//! A step that changes lists changes the inactive ones, swaps, and then changes the others in the
//! same way. So between steps both lists of an address space contain the same slots. Nothing else
//! in the core changes lists, or frees slots that were in them.

use super::{
    check::{
        NetChange,
        NetKind,
        Plan,
        Relog, //
    },
    few::Few,
    items::{
        Item,
        Items, //
    },
    last_log::StartedLogs,
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    new_slot::NewSlot,
    old_slot::OldSlot,
    reshape::Reshape,
    types::Change,
    view::ActiveSlots, //
};

use core::mem;

use kernel::{
    bindings,
    prelude::*, //
};

/// What a batch changes. The states of the batch borrow it: moving it from one to the next would take
/// longer than the changes of a single update.
pub(super) struct Changes<'vm> {
    items: Items<'vm>,
    reshape: Reshape,
}

impl Changes<'_> {
    /// Returns no changes.
    pub(super) const fn new() -> Self {
        Self {
            // INVARIANT: There are no changes.
            items: Items(Few::new()),
            reshape: Reshape::new(),
        }
    }
}

/// A batch that has allocated everything. The lists have not changed. Dropping the changes undoes it.
///
/// # Invariants
///
/// Both lists contain the old slots.
#[must_use]
pub(super) struct Prepared<'b, 'a, 'vm> {
    changes: &'b mut Changes<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'b, 'a, 'vm> Prepared<'b, 'a, 'vm> {
    /// Prepares `net_changes`, those of `plan`, which was made from `slots`, and puts them in `changes`,
    /// which must be empty: new slots, INVALID copies, dirty bitmaps, the architecture's data, bindings
    /// to guest_memfds. Slots are only reshaped if `may_reshape`.
    ///
    /// Fails with the error of an allocation, of the architecture's hook or of the guest_memfd.
    pub(super) fn new(
        changes: &'b mut Changes<'vm>,
        slots: &ActiveSlots<'a, '_, 'vm>,
        plan: &Plan<'_, ActiveSlots<'a, '_, 'vm>>,
        net_changes: impl Iterator<Item = NetChange>,
        may_reshape: bool,
    ) -> Result<Self> {
        let locked = slots.locked();
        let arch = locked.lock_arch();
        let items = &mut changes.items;
        // INVARIANT: The plan has at most one net change for each slot. Its check has found no overlap,
        // and slots_lock has been held since.
        items.0 = Few::with_capacity(plan.max_changes())?;
        for net in net_changes {
            let old = || -> Result<OldSlot> {
                let slot = slots.find(net.slot).ok_or(EIO)?;
                // SAFETY: `find` returns slots in the lists. A plan has at most one net change for
                // each slot, for which one `OldSlot` is made. Every state of the batch borrows
                // `SlotsLocked`, so that slots_lock is held.
                Ok(unsafe { OldSlot::new(slot) })
            };
            if let NetKind::Delete | NetKind::Replace(_) = net.kind {
                let delete = Item::Delete {
                    old: old()?,
                    invalid: None,
                    last_log: net.last_log,
                };
                items.0.push(delete)?;
            }
            let item = match net.kind {
                NetKind::Delete => continue,
                NetKind::Create(mapping) | NetKind::Replace(mapping) => {
                    let mut new = NewSlot::new(locked, net.slot, mapping, None, Relog::No)?;
                    if let Some(memfd) = slots.memfds().file(net.last) {
                        new.open_memfd(plan.entry(net.last), memfd)?;
                    }
                    new.prepare_arch(&arch, None, Change::Create)?;
                    Item::Create { new }
                }
                NetKind::Move(mapping, relog) => {
                    let old = old()?;
                    let mut new = NewSlot::new(locked, net.slot, mapping, Some(old.slot()), relog)?;
                    new.prepare_arch(&arch, Some(old.slot()), Change::Move)?;
                    Item::Move {
                        invalid: None,
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
            items.0.push(item)?;
        }
        let may_take = may_reshape && arch.can_reshape() && !items.removes_bound();
        let in_place = may_take && items.can_reshape(locked);
        items.compare(locked, may_take, in_place, &mut changes.reshape)?;
        if !in_place || !changes.reshape.taken.is_empty() {
            items.copy_invalid(&arch)?;
        }
        if items.invalidated_spaces().is_empty() {
            // Otherwise, take_over_memfds() binds the new slots later. Punching a hole in a
            // guest_memfd zaps the slots that are bound to it, which needs their complete data of
            // the architecture: refresh() completes it. The pages may also be bound to slots that
            // are deleted, which readers use until the swap.
            items.bind_memfds()?;
        }
        // INVARIANT: The old slots were found in the active lists, which are equal to the inactive
        // ones. Nothing above changes lists.
        Ok(Self { changes, arch })
    }

    /// Reports what the batch is going to do.
    pub(super) fn report(&self, report: &mut bindings::kvm_memory_report) {
        let Changes { items, reshape } = &*self.changes;
        report.changes = items.0.len() as u32;
        report.invalid = items.0.iter().filter_map(Item::invalidated).count() as u32;
        report.kept = reshape.kept_pages;
        report.gone = reshape.gone_pages;
    }

    /// Makes the changes.
    ///
    /// Fails if [`Items::refresh`] or [`Items::take_over_memfds`] does: the lists then contain the old
    /// slots. Fails with `EFAULT` if userspace has unmapped what receives last dirty bits since
    /// `started` was made: the batch is complete then.
    pub(super) fn commit(self, started: &StartedLogs) -> Result {
        self.invalidate()?.publish().finish(started)
    }

    /// Replaces all slots that are deleted or moved with INVALID copies, in both lists, by one swap,
    /// and flushes their mappings from the second-level page tables. Does nothing if there are none.
    ///
    /// Fails if [`Items::refresh`] or [`Items::take_over_memfds`] does, after putting the old slots back.
    fn invalidate(self) -> Result<Invalidated<'b, 'a, 'vm>> {
        let Self { changes, mut arch } = self;
        let Changes { items, reshape } = &mut *changes;
        let spaces = items.invalidated_spaces();
        if spaces.is_empty() {
            if items.gives_last_log() {
                // As KVM_GET_DIRTY_LOG does.
                arch.slots().drain_dirty_log();
            }
            // INVARIANT: There are no INVALID copies, and both lists contain the old slots.
            return Ok(Invalidated { changes, arch });
        }

        // SAFETY: By the type invariant both lists contain the old slots. `arch` proves that
        // slots_arch_lock is held.
        unsafe { items.put_copies(arch.slots(), false) };
        let slots = arch.swap(spaces);
        slots.count_window(items.0.iter().filter_map(Item::invalidated).count());
        // SAFETY: The lists that were active until the swap have not changed, so that they contain
        // the old slots. The next swap does not happen before slots_arch_lock is taken again.
        unsafe { items.put_copies(slots, false) };
        if reshape.taken.is_empty() {
            slots.flush(items.0.iter().filter_map(Item::removed));
        } else {
            // Splitting comes first: taking a part of a huge page would take all of it.
            reshape.split_edges(slots);
            slots.take(&reshape.taken);
        }
        if items.hands_log_on() {
            // The guest can write no more to what is gone. Once the next swap has been made, a page
            // would be logged where the new slots have its frame.
            slots.drain_dirty_log();
        }

        arch = slots.lock_arch();
        let mut ready = items.refresh(&arch);
        if ready.is_ok() {
            // SAFETY: The swap has waited for readers that had found slots that are deleted. Slots with
            // a guest_memfd are not reshaped, so that they have been flushed. `slots` proves that
            // slots_lock is held, and outlives the batch.
            ready = unsafe { items.take_over_memfds() };
        }
        if let Err(error) = ready {
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
        // INVARIANT: put_copies() has put the copies in both lists.
        Ok(Invalidated { changes, arch })
    }
}

/// A batch that can no longer fail. Readers see its INVALID copies, if it has any: it must be
/// published, and its changes must not be dropped.
///
/// # Invariants
///
/// Both lists contain the INVALID copies, and the old slots that have none.
#[must_use]
struct Invalidated<'b, 'a, 'vm> {
    changes: &'b mut Changes<'vm>,
    arch: ArchLocked<'a, 'vm>,
}

impl<'b, 'a, 'vm> Invalidated<'b, 'a, 'vm> {
    /// Publishes the final slots by one swap, carries dirty bits to them, and puts them in the lists
    /// that were active.
    fn publish(self) -> Published<'b, 'a, 'vm> {
        let Self { changes, arch } = self;
        let Changes { items, reshape } = &*changes;
        // SAFETY: By the type invariant both lists contain the copies, and the old slots that have
        // none. `arch` proves that slots_arch_lock is held.
        unsafe { items.put_final(arch.slots()) };
        let slots = arch.swap(items.spaces());

        items.carry_dirty(reshape);
        slots.count_pages(
            reshape.kept_pages,
            reshape.gone_pages,
            reshape.zapped_pages(slots),
        );
        // SAFETY: The lists that were active until the swap have not changed, so that they contain
        // the copies and the other old slots. No swap of this batch follows.
        unsafe { items.put_final(slots) };
        // INVARIANT: put_final() has put the final slots in both lists, in place of the others. The
        // swap has waited for readers that had found these.
        Published { changes, slots }
    }
}

/// A batch that readers see: it must be finished, and its changes must not be dropped.
///
/// # Invariants
///
/// Both lists contain the final slots, and neither old slots nor INVALID copies. No reader sees
/// either of these.
#[must_use]
struct Published<'b, 'a, 'vm> {
    changes: &'b mut Changes<'vm>,
    slots: &'a SlotsLocked<'vm>,
}

impl Published<'_, '_, '_> {
    /// Updates the counts, calls the architecture's commit hooks, creations first, brings the mappings
    /// of kept frames in line with the new slots, hands out last dirty bits, and frees the old slots.
    ///
    /// Fails with `EFAULT` if userspace has unmapped what receives last dirty bits since `started` was
    /// made. The batch is complete then, too.
    fn finish(self, started: &StartedLogs) -> Result {
        let Self { changes, slots } = self;
        let Changes { items, reshape } = changes;
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
        // CPUs that log dirty pages do so while any slot logs. They must begin before the mappings of
        // kept frames are made to log, and not stop because no slot logs between two hooks.
        for item in &items.0 {
            if let Item::Create { new } = item {
                slots.commit(None, Some(new.slot()), Change::Create);
            }
        }
        items.settle(slots, reshape);
        for item in &items.0 {
            if let Item::Delete { old, .. } = item {
                slots.commit(Some(old.slot()), None, Change::Delete);
            }
        }
        let mut result = started.copy(slots);
        for item in mem::take(&mut items.0) {
            match item {
                Item::Delete { old, last_log, .. } => {
                    if last_log != 0 {
                        // SAFETY: By the type invariant no list contains the slot, and no reader sees
                        // it. The check has found that it logs to a bitmap.
                        result = result.and(unsafe { old.copy_log(last_log) });
                    }
                    // SAFETY: By the type invariant no list contains the slot, and no reader sees it.
                    // It shares resources with its INVALID copy only, which frees none of them.
                    unsafe { old.free_with_resources(slots) };
                }
                Item::Create { new } => new.leak(),
                Item::Move {
                    old, new, relog, ..
                } => {
                    // SAFETY: By the type invariant both lists contain the new slot and not the old
                    // one, which no reader sees.
                    unsafe { replaced(slots, old, new, relog, Change::Move) };
                }
                Item::FlagsOnly { old, new, relog } => {
                    // SAFETY: By the type invariant both lists contain the new slot and not the old
                    // one, which no reader sees.
                    unsafe { replaced(slots, old, new, relog, Change::FlagsOnly) };
                }
            }
        }
        result
    }
}

/// Commits a MOVE or FLAGS_ONLY, and frees `old`, without the resources that `new` has taken over.
///
/// # Safety
///
/// Both lists contain `new` and not `old`, which no reader sees.
unsafe fn replaced(
    slots: &SlotsLocked<'_>,
    mut old: OldSlot,
    new: NewSlot<'_>,
    relog: Relog,
    change: Change,
) {
    if relog == Relog::Yes && old.slot().logs_dirty() {
        // The list turned logging off and on again. The architecture must see logging start, to
        // write-protect the pages that the new bitmap says are clean.
        // SAFETY: The caller guarantees that no list contains the old slot, and no reader sees it.
        unsafe { old.stop_logging() };
        slots.add_logging(-1);
    }
    slots.commit(Some(old.slot()), Some(new.slot()), change);

    let bitmap = old.slot().dirty_bitmap();
    if new.slot().dirty_bitmap() != bitmap {
        // SAFETY: The caller guarantees that no reader sees the old slot, and the new one has not
        // taken over its bitmap.
        unsafe { bindings::kvfree(bitmap.cast()) };
    }
    new.leak();
    // SAFETY: The caller guarantees that no list contains the old slot, and no reader sees it. Its
    // other resources belong to the new slot, or were freed by the commit hook (MOVE).
    unsafe { old.free() };
}
