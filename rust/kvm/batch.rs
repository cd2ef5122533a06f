// SPDX-License-Identifier: GPL-2.0-only

//! Second and third phase of a memslot update: make ready all that can fail, then publish.
//!
//! The steps are types, each made by using up the one before, so that no other order compiles:
//!
//! ```text
//! Plan --prepare--> Prepared --invalidate--> Invalidated --publish--> Published --finish--> ()
//! ```
//!
//! * [`prepare`] allocates: new slots, INVALID copies, dirty bitmaps, the architecture's data. It binds
//!   a guest_memfd. Nothing is visible yet; dropping [`Prepared`] undoes it.
//! * [`Prepared::invalidate`] puts an INVALID copy in the place of every slot that goes away or moves, in
//!   both lists (one swap), and flushes the second-level page tables once. From here on page faults on
//!   these slots retry, and KVM's own accesses go on through the copies. Without such a slot in the batch
//!   the step does nothing. The one thing in it that can fail puts the old slots back.
//! * [`Invalidated::publish`] makes the final slots the active ones, in one swap of each address space,
//!   all with the same grace period, gives dirty bits to successors, and brings the lists that were
//!   active up to date.
//! * [`Published::finish`] counts, tells the architecture, and frees.
//!
//! # Why reading through an INVALID slot is safe
//!
//! Whoever accesses guest memory holds `kvm->srcu` from looking up the slot to the last access, or looks
//! it up again if the generation changed. The INVALID copy names the same memory as the slot did. When
//! `publish` has waited, no reader that found an INVALID copy is left, so nothing can be written to memory
//! that only an old slot named once the batch is over; all such writes count as made before it.
//!
//! # What vCPUs do meanwhile
//!
//! Between the two swaps slots_arch_lock is free, and a vCPU that needs the first shadow root gives rmaps
//! to all slots *in the lists*. `invalidate` therefore looks again, under the lock, at what was prepared:
//! arch data is copied from INVALID slots back to the old ones, and from old ones to those that only change
//! flags, and new slots get the rmaps that they missed.

use crate::check::{self, NetKind, Origin, Plan, Relog, Scratch, View};
use crate::slots::{kvm_memslot_batch, ArchLocked, List, Slot, SlotBox, SlotsLocked};
use crate::types::{Change, Entry, GfnRange, Mapping, SlotFlags, SlotId, PAGE_SHIFT};
use core::ptr::{null, null_mut, NonNull};
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::bitmap::Bitmap;
use kernel::error::to_result;
use kernel::prelude::*;

/// The guest_memfd that a new slot is bound to.
#[derive(Clone, Copy)]
pub(crate) struct GuestMemfd {
    pub(crate) fd: u32,
    pub(crate) offset: u64,
}

/// Has a batch checked and carried out.
pub(crate) fn run(
    slots: &SlotsLocked<'_>,
    entries: &[Entry],
    origin: Origin,
    memfd: Option<GuestMemfd>,
    scratch: Scratch<'_>,
) -> Result {
    let swaps = slots.swaps();
    let mut changes = 0;
    let result = check::check(slots, entries, origin, scratch)
        .map_err(|refused| Error::from(refused.error))
        .and_then(|plan| {
            if plan.net_changes().next().is_some() {
                let prepared = prepare(slots, &plan, memfd)?;
                changes = prepared.items.len();
                prepared.invalidate()?.publish().finish();
            }
            Ok(())
        });
    let swaps = slots.swaps().wrapping_sub(swaps);
    let error = result.as_ref().err().map_or(0, |error| error.to_errno());
    // SAFETY: The tracepoint takes plain values.
    unsafe { kvm_memslot_batch(entries.len() as u32, changes as u32, swaps as u32, error) };
    result
}

/// A new slot with what hangs on it, until it is published. Dropping it frees all of that.
struct NewSlot {
    kvm: *mut bindings::kvm,
    slot: Option<SlotBox>,
    owns_bitmap: bool,
    owns_arch: bool,
    memfd: Option<BoundFile>,
}

/// A reference to the file behind a guest_memfd.
struct BoundFile {
    file: NonNull<bindings::file>,
    bound: bool,
}

impl Drop for BoundFile {
    fn drop(&mut self) {
        // SAFETY: The reference was taken by kvm_memory_gmem_prepare() and is dropped here only.
        unsafe { bindings::fput(self.file.as_ptr()) };
    }
}

impl NewSlot {
    /// Allocates the slot for `new`, with its dirty bitmap. It takes the bitmap of `old` over if logging
    /// goes on.
    fn new(
        slots: &SlotsLocked<'_>,
        id: SlotId,
        new: Mapping,
        old: Option<Slot>,
        relog: Relog,
    ) -> Result<Self> {
        let slot = SlotBox::new(id, new)?;
        let ptr = slot.slot().as_ptr();
        let mut this = Self {
            kvm: slots.as_ptr(),
            slot: Some(slot),
            owns_bitmap: false,
            owns_arch: false,
            memfd: None,
        };
        if new.flags.contains(SlotFlags::LOG_DIRTY) {
            let bitmap = old.map_or(null_mut(), Slot::dirty_bitmap);
            if !bitmap.is_null() && relog == Relog::No {
                // SAFETY: Nobody else sees the new slot.
                unsafe { (*ptr).dirty_bitmap = bitmap.cast() };
            } else {
                // SAFETY: As above; the VM is alive.
                if !unsafe { bindings::kvm_memory_alloc_dirty_bitmap(this.kvm, ptr) } {
                    return Err(ENOMEM);
                }
                this.owns_bitmap = true;
            }
        }
        Ok(this)
    }

    fn slot(&self) -> Result<Slot> {
        self.slot.as_ref().map(SlotBox::slot).ok_or(EIO)
    }

    /// Has the architecture prepare its part.
    fn prepare_arch(
        &mut self,
        _arch: &ArchLocked<'_, '_>,
        old: Option<Slot>,
        change: bindings::kvm_mr_change,
    ) -> Result {
        let old = old.map_or(null(), |old| old.as_ptr().cast_const());
        let new = self.slot()?.as_ptr();
        // SAFETY: The VM is alive, its locks are held, and the slots are valid.
        to_result(unsafe { bindings::kvm_arch_prepare_memory_region(self.kvm, old, new, change) })?;
        // A slot that only changes flags shares the data of the old one.
        self.owns_arch = change != bindings::kvm_mr_change_KVM_MR_FLAGS_ONLY;
        Ok(())
    }

    /// Takes a reference to the guest_memfd for the slot.
    fn open_memfd(&mut self, memfd: GuestMemfd) -> Result {
        let slot = self.slot()?.as_ptr();
        // SAFETY: The VM is alive, and nobody else sees the slot.
        unsafe {
            to_result(bindings::kvm_memory_gmem_prepare(
                self.kvm,
                slot,
                memfd.fd,
                memfd.offset,
            ))?;
            self.memfd = Some(BoundFile {
                file: NonNull::new(bindings::kvm_memory_gmem_file(slot)).ok_or(EIO)?,
                bound: false,
            });
        }
        Ok(())
    }

    /// Binds the guest_memfd, if there is one, to the slot.
    fn bind_memfd(&mut self) -> Result {
        let slot = self.slot()?.as_ptr();
        if let Some(memfd) = &mut self.memfd {
            // SAFETY: The VM is alive, slots_lock is held, and the reference to the file as well.
            to_result(unsafe { bindings::kvm_memory_gmem_bind(self.kvm, slot) })?;
            memfd.bound = true;
        }
        Ok(())
    }

    /// Leaves the slot, and what hangs on it, to the list that it is in.
    fn into_slot(mut self) -> Option<Slot> {
        self.slot.take().map(SlotBox::into_slot)
    }
}

impl Drop for NewSlot {
    fn drop(&mut self) {
        let Some(slot) = &self.slot else { return };
        let ptr = slot.slot().as_ptr();
        // In the reverse order of how it came about.
        // SAFETY: The slot was never published, so nobody else uses what hangs on it.
        unsafe {
            if self.memfd.as_ref().is_some_and(|memfd| memfd.bound) {
                bindings::kvm_memory_gmem_unbind(ptr);
            }
            if self.owns_arch {
                bindings::kvm_arch_free_memslot(self.kvm, ptr);
            }
            if self.owns_bitmap {
                bindings::kvfree((*ptr).dirty_bitmap.cast());
            }
        }
    }
}

/// What is to happen to one slot.
enum Item {
    Create {
        new: NewSlot,
    },
    Delete {
        old: Slot,
        invalid: SlotBox,
    },
    Move {
        old: Slot,
        invalid: SlotBox,
        new: NewSlot,
        relog: Relog,
    },
    FlagsOnly {
        old: Slot,
        new: NewSlot,
        relog: Relog,
    },
}

impl Item {
    /// The slot that goes away or moves, and its INVALID copy.
    fn invalidated(&self) -> Option<(Slot, Slot)> {
        match self {
            Item::Delete { old, invalid } | Item::Move { old, invalid, .. } => {
                Some((*old, invalid.slot()))
            }
            _ => None,
        }
    }

    /// The slot that there is afterwards.
    fn successor(&self) -> Option<Slot> {
        match self {
            Item::Create { new } | Item::Move { new, .. } | Item::FlagsOnly { new, .. } => {
                new.slot().ok()
            }
            Item::Delete { .. } => None,
        }
    }

    fn as_bit(&self) -> u32 {
        let slot = self.invalidated().map(|(old, _)| old).or(self.successor());
        slot.map_or(0, |slot| 1 << slot.id().as_id)
    }
}

type Items = KVVec<Item>;

/// The address spaces of `items`.
fn as_mask<'i>(items: impl Iterator<Item = &'i Item>) -> u32 {
    items.fold(0, |mask, item| mask | item.as_bit())
}

/// A batch that has all it needs.
#[must_use]
pub(crate) struct Prepared<'a, 'vm> {
    items: Items,
    arch: ArchLocked<'a, 'vm>,
}

fn prepare<'a, 'vm, V: View>(
    slots: &'a SlotsLocked<'vm>,
    plan: &Plan<'_, V>,
    memfd: Option<GuestMemfd>,
) -> Result<Prepared<'a, 'vm>> {
    let mut prepared = Prepared {
        items: Items::with_capacity(plan.max_changes(), GFP_KERNEL_ACCOUNT)?,
        arch: slots.lock_arch(),
    };
    for net in plan.net_changes() {
        let old = slots.find(net.slot);
        if let NetKind::Delete | NetKind::Replace(_) = net.kind {
            let old = old.ok_or(EIO)?;
            prepared.push(Item::Delete {
                old,
                invalid: SlotBox::invalid_copy(old, &prepared.arch)?,
            })?;
        }
        match net.kind {
            NetKind::Delete => {}
            NetKind::Create(mapping) | NetKind::Replace(mapping) => {
                let mut new = NewSlot::new(slots, net.slot, mapping, None, Relog::No)?;
                if let Some(memfd) = memfd {
                    new.open_memfd(memfd)?;
                }
                new.prepare_arch(&prepared.arch, None, bindings::kvm_mr_change_KVM_MR_CREATE)?;
                new.bind_memfd()?;
                prepared.push(Item::Create { new })?;
            }
            NetKind::Move(mapping, relog) => {
                let old = old.ok_or(EIO)?;
                let mut new = NewSlot::new(slots, net.slot, mapping, Some(old), relog)?;
                new.prepare_arch(
                    &prepared.arch,
                    Some(old),
                    bindings::kvm_mr_change_KVM_MR_MOVE,
                )?;
                prepared.push(Item::Move {
                    old,
                    invalid: SlotBox::invalid_copy(old, &prepared.arch)?,
                    new,
                    relog,
                })?;
            }
            NetKind::FlagsOnly(mapping, relog) => {
                let old = old.ok_or(EIO)?;
                let mut new = NewSlot::new(slots, net.slot, mapping, Some(old), relog)?;
                new.prepare_arch(
                    &prepared.arch,
                    Some(old),
                    bindings::kvm_mr_change_KVM_MR_FLAGS_ONLY,
                )?;
                prepared.push(Item::FlagsOnly { old, new, relog })?;
            }
        }
    }
    Ok(prepared)
}

impl<'a, 'vm> Prepared<'a, 'vm> {
    fn push(&mut self, item: Item) -> Result {
        Ok(self.items.push(item, GFP_KERNEL_ACCOUNT)?)
    }

    /// Puts INVALID copies in the place of all slots that go away or move.
    fn invalidate(self) -> Result<Invalidated<'a, 'vm>> {
        let Self { items, mut arch } = self;
        let invalidated = || items.iter().filter_map(Item::invalidated);
        let mask = as_mask(items.iter().filter(|item| item.invalidated().is_some()));

        if mask != 0 {
            for (old, invalid) in invalidated() {
                // SAFETY: The old slot is in the list, and the copy takes its place.
                unsafe { arch.replace(Some(old), Some(invalid)) };
            }
            let slots = arch.swap(mask);
            for (old, invalid) in invalidated() {
                // SAFETY: As above, in the list that was active until the swap.
                unsafe { slots.replace_in_inactive(Some(old), Some(invalid)) };
            }
            flush(slots, invalidated().map(|(old, _)| old));

            arch = slots.lock_arch();
            if let Err(error) = refresh(&arch, &items) {
                // The old slots are complete and in no list: back with them, in both.
                for (old, invalid) in invalidated() {
                    // SAFETY: The copy is in the list, and the old slot takes its place.
                    unsafe { arch.replace(Some(invalid), Some(old)) };
                }
                let slots = arch.swap(mask);
                for (old, invalid) in invalidated() {
                    // SAFETY: As above, in the list that was active until the swap.
                    unsafe { slots.replace_in_inactive(Some(invalid), Some(old)) };
                }
                return Err(error);
            }
        }
        Ok(Invalidated { items, arch })
    }
}

/// Removes all that the second-level page tables have of the slots `olds`, which readers now see as
/// INVALID: nothing new can be put there.
fn flush(slots: &SlotsLocked<'_>, olds: impl Iterator<Item = Slot>) {
    let kvm = slots.as_ptr();
    let mut flushed = false;
    for old in olds {
        let memfd = old.mapping().flags.contains(SlotFlags::GUEST_MEMFD);
        // SAFETY: The VM is alive, slots_lock is held, slots_arch_lock is not, and the slot is valid.
        unsafe {
            // A flush of everything is enough once, but for what hangs on a guest_memfd.
            if !flushed || memfd || !bindings::kvm_arch_flush_shadow_is_global(kvm) {
                bindings::kvm_arch_flush_shadow_memslot(kvm, old.as_ptr());
                flushed = true;
            }
        }
    }
    // SAFETY: The VM is alive.
    unsafe { bindings::kvm_arch_guest_memory_reclaimed(kvm) };
}

/// Brings the architecture's part of all slots in `items` up to date, after slots_arch_lock was free.
fn refresh(arch: &ArchLocked<'_, '_>, items: &Items) -> Result {
    // First what cannot fail, so that old slots can be put back.
    for (old, invalid) in items.iter().filter_map(Item::invalidated) {
        old.copy_arch(arch, invalid);
    }
    for item in items {
        match item {
            Item::FlagsOnly { old, new, .. } => new.slot()?.copy_arch(arch, *old),
            Item::Create { new } | Item::Move { new, .. } => {
                let new = new.slot()?;
                // Somebody may have begun to track writes, which forbids moves.
                if matches!(item, Item::Move { .. })
                    && !arch.slots.arch_allows(Change::Move, new.mapping().gfns)
                {
                    return Err(EINVAL);
                }
                // SAFETY: The VM is alive, its locks are held, and the new slot is private to us.
                to_result(unsafe {
                    bindings::kvm_arch_refresh_memory_region(arch.slots.as_ptr(), new.as_ptr())
                })?;
            }
            Item::Delete { .. } => {}
        }
    }
    Ok(())
}

/// A batch of which nothing can fail any more, and which is not to be dropped: readers may see its INVALID
/// copies.
#[must_use]
struct Invalidated<'a, 'vm> {
    items: Items,
    arch: ArchLocked<'a, 'vm>,
}

impl<'a, 'vm> Invalidated<'a, 'vm> {
    /// Makes the final slots the active ones.
    fn publish(self) -> Published<'a, 'vm> {
        let Self { items, arch } = self;
        // SAFETY: `install` takes out what is in the list and puts in what is not; the plan has been checked
        // for overlaps.
        install(&items, |old, new| unsafe { arch.replace(old, new) });
        let slots = arch.swap(as_mask(items.iter()));

        // The lists that were active still tell which slots went from where. Where the batch takes nothing
        // away, there is no INVALID slot.
        for item in &items {
            if let Item::Create { new } | Item::Move { new, .. } = item {
                if let Ok(new) = new.slot() {
                    for as_id in 0..slots.limits().address_spaces {
                        carry_dirty_bits(slots.inactive(as_id), new);
                    }
                }
            }
        }
        // SAFETY: As above: this list is as the other one was.
        install(&items, |old, new| unsafe {
            slots.replace_in_inactive(old, new)
        });
        Published { items, slots }
    }
}

/// Has `replace` put the final slots in a list. What goes is taken out first: slots in a list do not
/// overlap.
fn install(items: &Items, mut replace: impl FnMut(Option<Slot>, Option<Slot>)) {
    for (_, invalid) in items.iter().filter_map(Item::invalidated) {
        replace(Some(invalid), None);
    }
    for item in items {
        let old = match item {
            Item::FlagsOnly { old, .. } => Some(*old),
            _ => None,
        };
        if let Some(new) = item.successor() {
            replace(old, Some(new));
        }
    }
}

/// Sets the bits in the dirty bitmap of `new` for pages that a slot of `before` logged, which this batch
/// deleted or moved, and that `new` has at the same gfn and the same host address.
///
/// Called when no reader sees `before` any more, so that all bits are there.
fn carry_dirty_bits(before: List, new: Slot) {
    let to = new.mapping();
    if new.dirty_bitmap().is_null() {
        return;
    }
    let mut rest = to.gfns;
    while let Some(old) = before.first_in(rest) {
        let from = old.mapping();
        let Some(shared) = from.gfns.intersection(rest) else {
            return;
        };
        let same_host = hva_of_frame_0(from) == hva_of_frame_0(to);
        if old.is_invalid() && same_host && !old.dirty_bitmap().is_null() {
            or_bits((old, from), (new, to), shared);
        }
        rest.start = shared.end;
    }
}

/// Where frame 0 would be if the mapping reached there: equal for mappings that agree on the frames that
/// they share.
fn hva_of_frame_0(mapping: Mapping) -> u64 {
    let bytes = mapping.gfns.start.0 << PAGE_SHIFT;
    mapping.hva.0.wrapping_sub(bytes)
}

/// Sets the bits for `gfns` in the second slot's bitmap where they are set in the first's.
fn or_bits(from: (Slot, Mapping), to: (Slot, Mapping), gfns: GfnRange) {
    let npages = (gfns.end.0 - gfns.start.0) as usize;
    // The bitmap up to the last of `gfns`, and the bit of the first.
    let bits = |(slot, mapping): (Slot, Mapping)| {
        let start = (gfns.start.0 - mapping.gfns.start.0) as usize;
        // SAFETY: Both slots have a bitmap of a bit a page, at most i32::MAX of them, and contain `gfns`.
        // Bitmaps are freed only in `Published::finish`, and others change bits atomically.
        let bitmap = unsafe { Bitmap::from_raw(slot.dirty_bitmap(), start + npages) };
        (bitmap, start)
    };
    let ((source, source_start), (target, target_start)) = (bits(from), bits(to));

    // A log that starts with all bits set has nothing to gain.
    if target.next_zero_bit(target_start).is_none() {
        return;
    }
    let mut page = 0;
    while page < npages {
        let Some(bit) = source.next_bit(source_start + page) else {
            break;
        };
        page = bit - source_start;
        target.set_bit_atomic(target_start + page);
        page += 1;
    }
}

/// A batch that readers see, and which is not to be dropped but finished.
#[must_use]
struct Published<'a, 'vm> {
    items: Items,
    slots: &'a SlotsLocked<'vm>,
}

impl Published<'_, '_> {
    /// Counts, tells the architecture, and frees what is gone, deletions first.
    fn finish(self) {
        let Self { items, slots } = self;
        // The architecture bounds its shadow pages by this, and is not to see what is in between.
        for item in &items {
            match item {
                Item::Delete { old, .. } => slots.add_pages(old.mapping().npages().wrapping_neg()),
                Item::Create { new } => {
                    if let Ok(new) = new.slot() {
                        slots.add_pages(new.mapping().npages());
                    }
                }
                // They keep their size.
                Item::Move { .. } | Item::FlagsOnly { .. } => {}
            }
        }
        for item in &items {
            if let Item::Delete { old, .. } = item {
                commit(
                    slots,
                    Some(*old),
                    None,
                    bindings::kvm_mr_change_KVM_MR_DELETE,
                );
                // SAFETY: The VM is alive. The slot is in no list and no reader sees it; it is not used
                // after this, nor is what hangs on it.
                unsafe { bindings::kvm_free_memslot(slots.as_ptr(), old.as_ptr()) };
            }
        }
        for item in items {
            match item {
                Item::Delete { .. } => {}
                Item::Create { new } => {
                    commit(
                        slots,
                        None,
                        new.into_slot(),
                        bindings::kvm_mr_change_KVM_MR_CREATE,
                    );
                }
                Item::Move {
                    old, new, relog, ..
                } => {
                    replaced(slots, old, new, relog, bindings::kvm_mr_change_KVM_MR_MOVE);
                }
                Item::FlagsOnly { old, new, relog } => {
                    replaced(
                        slots,
                        old,
                        new,
                        relog,
                        bindings::kvm_mr_change_KVM_MR_FLAGS_ONLY,
                    );
                }
            }
        }
    }
}

/// Commits a change that handed on what hangs on `old`, then frees `old`.
fn replaced(
    slots: &SlotsLocked<'_>,
    old: Slot,
    new: NewSlot,
    relog: Relog,
    change: bindings::kvm_mr_change,
) {
    let new = new.into_slot();
    if relog == Relog::Yes && old.logs_dirty() {
        // Logging was off for a moment that nobody saw. The architecture has to see it, to protect the
        // pages that the new bitmap says are clean.
        // SAFETY: The slot is in no list and no reader sees it.
        unsafe { (*old.as_ptr()).flags &= !SlotFlags::LOG_DIRTY.0 };
        slots.add_logging(-1);
    }
    commit(slots, Some(old), new, change);

    let bitmap = old.dirty_bitmap();
    if new.is_none_or(|new| new.dirty_bitmap() != bitmap) {
        // SAFETY: No reader sees the old slot, and the new one has another bitmap or none.
        unsafe { bindings::kvfree(bitmap.cast()) };
    }
    // SAFETY: The slot is in no list and no reader sees it. The rest of what hung on it is the new
    // slot's now, or was freed by the architecture (MOVE).
    drop(unsafe { SlotBox::from_slot(old) });
}

/// Counts the slots that log, for one change, and tells the architecture.
fn commit(
    slots: &SlotsLocked<'_>,
    old: Option<Slot>,
    new: Option<Slot>,
    change: bindings::kvm_mr_change,
) {
    let logs = |slot: Option<Slot>| i32::from(slot.is_some_and(Slot::logs_dirty));
    slots.add_logging(logs(new) - logs(old));

    let ptr = |slot: Option<Slot>| slot.map_or(null_mut(), Slot::as_ptr);
    // SAFETY: The VM is alive, slots_lock is held, and the slots are valid. `old` is in no list.
    unsafe { bindings::kvm_arch_commit_memory_region(slots.as_ptr(), ptr(old), ptr(new), change) };
}

#[kernel::macros::kunit_tests(kvm_memory_batch)]
mod tests {
    use super::*;
    use crate::types::{Gfn, Hva};

    /// A slot on `gfns` with host memory such that frame 0 would be at `hva_of_frame_0`, whose dirty
    /// bitmap is `bitmap`.
    fn logging(gfns: (u64, u64), hva_of_frame_0: u64, bitmap: &mut [usize]) -> Result<SlotBox> {
        let mapping = Mapping {
            gfns: GfnRange {
                start: Gfn(gfns.0),
                end: Gfn(gfns.1),
            },
            hva: Hva(hva_of_frame_0.wrapping_add(gfns.0 << PAGE_SHIFT)),
            flags: SlotFlags::LOG_DIRTY,
        };
        let slot = SlotBox::new(SlotId { as_id: 0, id: 0 }, mapping)?;
        // SAFETY: The slot is private to the test, which the bitmap outlives.
        unsafe { (*slot.slot().as_ptr()).dirty_bitmap = bitmap.as_mut_ptr().cast() };
        Ok(slot)
    }

    #[test]
    fn dirty_bits_go_to_the_same_frames() -> Result {
        // Frames 100..200 are split: 120..200 become a slot of their own. Pages 100, 119, 120, 183, 184
        // and 199 are dirty.
        let (mut old, mut new) = ([0usize; 2], [0usize; 2]);
        for frame in [100, 119, 120, 183, 184, 199] {
            let bit = frame - 100;
            old[bit / 64] |= 1 << (bit % 64);
        }
        let from = logging((100, 200), 0x10000, &mut old)?;
        let to = logging((120, 200), 0x10000, &mut new)?;
        let (from, to) = (from.slot(), to.slot());
        assert_eq!(hva_of_frame_0(from.mapping()), hva_of_frame_0(to.mapping()));

        let shared = from.mapping().gfns.intersection(to.mapping().gfns);
        let shared = shared.ok_or(EINVAL)?;
        or_bits((from, from.mapping()), (to, to.mapping()), shared);
        let dirty = |frame: usize| new[(frame - 120) / 64] & (1 << ((frame - 120) % 64)) != 0;
        for frame in 120..200 {
            assert_eq!(dirty(frame), [120, 183, 184, 199].contains(&frame));
        }
        Ok(())
    }
}
