// SPDX-License-Identifier: GPL-2.0-only

//! The first phase of a batch: decides what each entry means, or refuses the batch.
//!
//! A list means what its entries mean when they are applied one by one, in order. [`check`] finds
//! that meaning, or the error of the first entry that would fail, without applying any. The result
//! is a [`Plan`]: for each slot that ends up different, the one [`NetChange`] that makes it so.
//!
//! The phase is pure. It sees the active slots and the rules of the architecture through [`View`],
//! writes only to the [`Scratch`] that its caller provides, and does not allocate. So tests on the
//! host can compare it with an oracle that does apply entry by entry.
//!
//! # Taking earlier entries into account
//!
//! If no earlier entry touched a slot, the view says what it maps; otherwise the latest entry on the
//! slot does. Entries are sorted by slot once, so that each knows its predecessor. A [`RankSet`] holds
//! the live entries, those whose slot still exists as they left it, by their rank in the gfn order of
//! all entries. Live slots do not overlap, so that an entry can only collide with its live
//! neighbours in that order.
//!
//! An entry takes O(log N) look-ups on average, whatever the n entries and the N slots are: when a
//! range of slots that the list has superseded is searched again, it is skipped in one step
//! (`Step::skip`).
//!
//! # Alternatives
//!
//! Applying the entries to the inactive list while checking needs no overlay of earlier entries, but
//! a refusal has to be rolled back, and checking could not be separated from the kernel's lists.
//! Loading all slots into a scratch map makes the cost of a list of two entries proportional to the
//! VM's slots.

use super::{
    rank_set::RankSet,
    types::{
        Change,
        Entry,
        FilePages,
        Mapping,
        SlotFlags,
        SlotId, //
    }, //
};

use crate::types::{
    Gfn,
    GfnRange,
    Hva,
    PAGE_SHIFT,
    PAGE_SIZE, //
};

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// `-EINVAL`: an argument is invalid.
    Invalid,
    /// `-EEXIST`: the range overlaps another slot.
    Exists,
    /// `-EBADF`: the guest_memfd is not an open file.
    BadFile,
    /// `-ENXIO`: the VM has dirty rings in place of dirty bitmaps.
    NoBitmap,
    /// `-EIO`: the VM's page count is less than the pages of its slots, which is a kernel bug.
    Corrupt,
}

/// A refused batch: the first entry that would have failed, and its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Position of the entry in the list, from 0.
    pub index: usize,
    /// The error that a single update with this entry would have returned.
    pub error: Error,
}

/// Where entries come from, which decides whether they may use internal slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `KVM_SET_USER_MEMORY_REGION_LIST`.
    List,
    /// A single update.
    Single,
}

/// What a VM allows its slots to be (`struct kvm_memory_limits`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of address spaces.
    pub address_spaces: u16,
    /// Number of slot ids, internal ones included.
    pub slots: u16,
    /// Number of slot ids for userspace. Internal ids follow them.
    pub user_slots: u16,
    /// Largest size of a user slot, in pages.
    pub max_user_pages: u64,
    /// Flags that a slot may have.
    pub flags: SlotFlags,
    /// Whether slots that log have dirty bitmaps.
    pub bitmaps: bool,
}

/// The VM as it is before the first entry.
pub trait View {
    /// Returns what the VM allows its slots to be.
    fn limits(&self) -> Limits;
    /// Returns the number of pages in all slots of all address spaces.
    fn nr_pages(&self) -> u64;
    /// Returns what slot `id` maps, or [`None`] if it does not exist.
    fn slot(&self, id: SlotId) -> Option<Mapping>;
    /// Returns the lowest slot of address space `as_id` that shares a frame with `gfns`, and its
    /// frames. Returns [`None`] if there is no such slot, or `gfns.start >= gfns.end`.
    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)>;
    /// Returns whether `[hva, hva + size)`, in bytes, is in the user address space.
    fn is_user_range(&self, hva: Hva, size: u64) -> bool;
    /// Returns whether the architecture allows `change` (CREATE or MOVE) to put a slot at `gfns`.
    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool;
    /// Returns the pages of a guest_memfd that entry number `index` wants its slot to be bound to, or
    /// why it cannot be.
    fn memfd(&self, index: usize) -> Result<FilePages, Error>;
    /// Returns the lowest slot in the file that is bound to any of `pages`, and the end of what it is
    /// bound to.
    fn first_bound(&self, pages: FilePages) -> Option<(SlotId, u64)>;
}

/// No entry, where the number of one is expected.
const NONE: u32 = u32::MAX;

/// What [`check`] records about one entry.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    change: Change,
    /// The entry before this one on the same slot, or [`NONE`].
    prev: u32,
    /// Position of the entry in the gfn order of all entries.
    rank: u32,
    /// Position of the entry among those with a guest_memfd, in the order of files and pages.
    file_rank: u32,
    /// For the first entry on a slot: the list has superseded all slots of the view from this one up
    /// to this frame number.
    skip: u64,
}

impl Step {
    /// The value that scratch memory must be initialised with.
    pub const EMPTY: Self = Self {
        change: Change::Nothing,
        prev: NONE,
        rank: 0,
        file_rank: 0,
        skip: 0,
    };
}

/// Working memory for a list of n entries.
pub struct Scratch<'a> {
    /// n times [`Step::EMPTY`].
    pub steps: &'a mut [Step],
    /// Room for n entry numbers, which are sorted by slot.
    pub by_slot: &'a mut [u32],
    /// Room for n entry numbers, which are sorted by gfn.
    pub by_gfn: &'a mut [u32],
    /// [`RankSet::words`]`(n)` words of 0.
    pub ranks: &'a mut [u64],
    /// Room for m entry numbers, where m is the number of entries with a guest_memfd that the view
    /// knows. These are sorted by file and page.
    pub by_file: &'a mut [u32],
    /// [`RankSet::words`]`(m)` words of 0.
    pub file_ranks: &'a mut [u64],
}

/// The one change that has the same effect on a slot as all entries on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetChange {
    /// The slot that changes.
    pub slot: SlotId,
    /// The change.
    pub kind: NetKind,
    /// Number of the last entry on the slot.
    pub last: usize,
    /// The user address that receives the last bits of the dirty log that the slot has had since before
    /// the list, or 0. Only where the list deletes the slot.
    pub last_log: u64,
}

/// Kinds of [`NetChange`], with what the slot maps after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetKind {
    /// The slot did not exist, and exists after the list.
    Create(Mapping),
    /// The slot existed, and does not exist after the list.
    Delete,
    /// The list deletes the slot and creates it again.
    Replace(Mapping),
    /// The slot moves to other frames, and its flags may change.
    Move(Mapping, Relog),
    /// The flags change, or the dirty log starts anew.
    FlagsOnly(Mapping, Relog),
}

/// A dirty log whose last bits a deletion asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastLog {
    /// Number of the entry.
    pub entry: usize,
    /// Size of the slot in pages.
    pub npages: u64,
    /// The user address that receives the bits.
    pub address: u64,
    /// Whether the list has started the log, so that no vCPU has written to it.
    pub started: bool,
}

/// Whether the list turns dirty logging off and on again, so that the log starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relog {
    /// The log continues.
    No,
    /// The log starts anew.
    Yes,
}

/// A batch that has passed the check. Carrying it out can still fail for lack of resources, or
/// because of a guest_memfd.
pub struct Plan<'a, V> {
    view: &'a V,
    entries: &'a [Entry],
    steps: &'a [Step],
    by_slot: &'a [u32],
}

/// The state of [`check`] from one entry to the next.
struct Checker<'a, V> {
    view: &'a V,
    limits: Limits,
    entries: &'a [Entry],
    steps: &'a mut [Step],
    by_slot: &'a [u32],
    by_gfn: &'a [u32],
    live: RankSet<'a>,
    by_file: &'a [u32],
    /// The live entries with a guest_memfd, by their rank.
    bound: RankSet<'a>,
}

/// Checks `entries`, taken together, against the slots of `view`.
///
/// `entries` must have fewer than 2³² elements. `scratch` must be as [`Scratch`] says.
///
/// Returns the first entry that would fail if all were applied one by one, and its error.
pub fn check<'a, V: View>(
    view: &'a V,
    entries: &'a [Entry],
    origin: Origin,
    scratch: Scratch<'a>,
) -> Result<Plan<'a, V>, Refused> {
    let Scratch {
        steps,
        by_slot,
        by_gfn,
        ranks,
        by_file,
        file_ranks,
    } = scratch;
    let entry = |i: u32| &entries[i as usize];

    for (n, i) in by_slot.iter_mut().enumerate() {
        *i = n as u32;
    }
    by_gfn.copy_from_slice(by_slot);
    by_slot.sort_unstable_by_key(|&i| (entry(i).slot_id(), i));
    by_gfn.sort_unstable_by_key(|&i| (entry(i).slot_id().as_id, entry(i).guest_phys_addr));
    for pair in by_slot.windows(2) {
        if entry(pair[0]).slot == entry(pair[1]).slot {
            steps[pair[1] as usize].prev = pair[0];
        }
    }
    for (rank, &i) in by_gfn.iter().enumerate() {
        steps[i as usize].rank = rank as u32;
    }
    if !by_file.is_empty() {
        let known = (0..entries.len()).filter(|&i| view.memfd(i).is_ok());
        for (at, i) in by_file.iter_mut().zip(known) {
            *at = i as u32;
        }
        by_file.sort_unstable_by_key(|&i| (view.memfd(i as usize).ok(), i));
        for (rank, &i) in by_file.iter().enumerate() {
            steps[i as usize].file_rank = rank as u32;
        }
    }

    let mut nr_pages = view.nr_pages();
    let mut checker = Checker {
        view,
        limits: view.limits(),
        entries,
        steps,
        by_slot,
        by_gfn,
        live: RankSet::new(ranks, entries.len()),
        bound: RankSet::new(file_ranks, by_file.len()),
        by_file,
    };
    for index in 0..entries.len() {
        checker
            .entry(index, origin, &mut nr_pages)
            .map_err(|error| Refused { index, error })?;
    }

    let steps = checker.steps;
    Ok(Plan {
        view,
        entries,
        steps,
        by_slot,
    })
}

/// Returns what an entry maps that is not a deletion, or [`None`] if its frame numbers overflow.
fn mapping(entry: &Entry) -> Option<Mapping> {
    Some(Mapping {
        gfns: GfnRange::new(
            Gfn(entry.guest_phys_addr >> PAGE_SHIFT),
            entry.memory_size >> PAGE_SHIFT,
        )?,
        hva: Hva(entry.userspace_addr),
        flags: SlotFlags(entry.flags),
    })
}

const fn logs(entry: &Entry) -> bool {
    SlotFlags(entry.flags).contains(SlotFlags::LOG_DIRTY)
}

const fn is_page_aligned(value: u64) -> bool {
    value % PAGE_SIZE == 0
}

impl<V: View> Checker<'_, V> {
    /// Checks entry `i`. All entries before it have passed.
    fn entry(&mut self, i: usize, origin: Origin, nr_pages: &mut u64) -> Result<(), Error> {
        let entry = &self.entries[i];
        let id = entry.slot_id();
        let new = self.arguments(entry, origin)?;
        let prev = self.steps[i].prev;
        let old = match prev {
            NONE => self.view.slot(id),
            prev => self.result(prev),
        };

        let change = match (old, new) {
            (None, None) => return Err(Error::Invalid),
            (Some(old), None) => {
                *nr_pages = nr_pages.checked_sub(old.npages()).ok_or(Error::Corrupt)?;
                Change::Delete
            }
            (None, Some(new)) => {
                *nr_pages = nr_pages.checked_add(new.npages()).ok_or(Error::Invalid)?;
                Change::Create
            }
            (Some(old), Some(new)) => {
                const FIXED: SlotFlags = SlotFlags::READONLY.union(SlotFlags::GUEST_MEMFD);

                // A slot with a guest_memfd can only be deleted.
                if new.flags.contains(SlotFlags::GUEST_MEMFD)
                    || new.hva != old.hva
                    || new.npages() != old.npages()
                    || new.flags.difference(old.flags).intersects(FIXED)
                {
                    return Err(Error::Invalid);
                }
                if new.gfns != old.gfns {
                    Change::Move
                } else if new.flags != old.flags {
                    Change::FlagsOnly
                } else {
                    Change::Nothing
                }
            }
        };
        let invalidates = matches!(change, Change::Delete | Change::Move);
        if entry.invalidate_slot > u8::from(invalidates) {
            return Err(Error::Invalid);
        }

        // Only the log of a slot that goes can have last bits.
        let logged =
            old.is_some_and(|old| old.flags.contains(SlotFlags::LOG_DIRTY)) && new.is_none();
        if entry.dirty_bitmap != 0 && !logged {
            return Err(Error::Invalid);
        }
        if entry.dirty_bitmap != 0 && !self.limits.bitmaps {
            return Err(Error::NoBitmap);
        }

        if prev != NONE {
            let step = self.steps[prev as usize];
            self.live.remove(step.rank as usize);
            if self.entries[prev as usize].wants_memfd() {
                self.bound.remove(step.file_rank as usize);
            }
        }
        if let (Change::Create | Change::Move, Some(new)) = (change, new) {
            if self.collides(i, id, new.gfns) {
                return Err(Error::Exists);
            }
            let memfd = new
                .flags
                .contains(SlotFlags::GUEST_MEMFD)
                .then(|| self.view.memfd(i));
            let pages = memfd.transpose()?;
            if !self.view.arch_allows(change, new.gfns) {
                return Err(Error::Invalid);
            }
            if let Some(pages) = pages {
                self.bind(i, pages)?;
            }
        }

        if change != Change::Delete {
            self.live.insert(self.steps[i].rank as usize);
        }
        self.steps[i].change = change;
        Ok(())
    }

    /// Checks the rules that concern the entry alone. Returns what it maps, or [`None`] for a
    /// deletion.
    fn arguments(&self, entry: &Entry, origin: Origin) -> Result<Option<Mapping>, Error> {
        let limits = &self.limits;
        let flags = SlotFlags(entry.flags);
        let id = entry.slot_id();
        let npages = entry.memory_size >> PAGE_SHIFT;
        let memfd = flags.contains(SlotFlags::GUEST_MEMFD);

        let mut known = limits.flags;
        if memfd {
            // KVM can neither log nor write-protect private memory.
            known = SlotFlags(known.0 & SlotFlags::GUEST_MEMFD.0);
        }
        let memfd_ok = if memfd {
            entry.memfd_range().is_some()
        } else {
            entry.guest_memfd == 0 && entry.guest_memfd_offset == 0
        };

        let valid = known.contains(flags)
            && memfd_ok
            && entry.pad1 == [0; 3]
            && entry.pad2 == [0; 8]
            && entry.invalidate_slot <= 1
            && is_page_aligned(entry.memory_size)
            && is_page_aligned(entry.guest_phys_addr)
            && is_page_aligned(entry.userspace_addr)
            && self
                .view
                .is_user_range(Hva(entry.userspace_addr), entry.memory_size)
            && id.as_id < limits.address_spaces
            && id.id < limits.slots
            && (origin != Origin::List || id.id < limits.user_slots)
            && entry
                .guest_phys_addr
                .checked_add(entry.memory_size)
                .is_some()
            && (id.id >= limits.user_slots || npages <= limits.max_user_pages);
        if !valid {
            return Err(Error::Invalid);
        }
        if npages == 0 {
            return Ok(None);
        }
        mapping(entry).map(Some).ok_or(Error::Invalid)
    }

    /// Returns what the slot of entry `i` maps after that entry, which has passed.
    fn result(&self, i: u32) -> Option<Mapping> {
        match self.steps[i as usize].change {
            Change::Delete => None,
            _ => mapping(&self.entries[i as usize]),
        }
    }

    /// Returns whether `gfns` shares a frame with a slot other than `id`, as slots are before entry
    /// `i`. The caller has removed the earlier entry on slot `id`, if there is one, from `live`.
    fn collides(&mut self, i: usize, id: SlotId, gfns: GfnRange) -> bool {
        let rank = self.steps[i].rank as usize;
        let neighbours = [self.live.before(rank), self.live.after(rank)];
        for rank in neighbours.into_iter().flatten() {
            let other = self.by_gfn[rank];
            if self.entries[other as usize].slot_id().as_id == id.as_id
                && self
                    .result(other)
                    .is_some_and(|other| other.gfns.intersection(gfns).is_some())
            {
                return true;
            }
        }

        let mut rest = gfns;
        while let Some((other, other_gfns)) = self.view.first_in(id.as_id, rest) {
            let Some(first) = self.superseded(other, i) else {
                return true;
            };
            rest.start = Gfn(self.steps[first].skip).max(other_gfns.end);
        }
        if rest.start != gfns.start {
            self.skip_superseded(i, id.as_id, gfns);
        }
        false
    }

    /// Binds the slot that entry `i` creates to `pages` of a guest_memfd, or fails if another slot is
    /// bound to one of them, as slots are before entry `i`.
    fn bind(&mut self, i: usize, pages: FilePages) -> Result<(), Error> {
        let rank = self.steps[i].file_rank as usize;
        let neighbours = [self.bound.before(rank), self.bound.after(rank)];
        for rank in neighbours.into_iter().flatten() {
            let other = self.by_file[rank] as usize;
            if self
                .view
                .memfd(other)
                .is_ok_and(|other| other.overlaps(pages))
            {
                return Err(Error::Exists);
            }
        }

        let mut rest = pages;
        while let Some((other, end)) = self.view.first_bound(rest) {
            // A slot with a guest_memfd only changes by being deleted.
            if self.superseded(other, i).is_none() {
                return Err(Error::Exists);
            }
            rest.start = end;
        }
        self.bound.insert(rank);
        Ok(())
    }

    /// Makes later look-ups skip `gfns` in one step. The list has superseded all slots of the view in
    /// this range.
    fn skip_superseded(&mut self, i: usize, as_id: u16, mut gfns: GfnRange) {
        while let Some((other, other_gfns)) = self.view.first_in(as_id, gfns) {
            gfns.start = other_gfns.end;
            if let Some(first) = self.superseded(other, i) {
                let skip = &mut self.steps[first].skip;
                gfns.start = gfns.start.max(Gfn(*skip));
                *skip = gfns.end.0.max(*skip);
            }
        }
    }

    /// Returns the first entry on slot `id`, or [`None`] if that comes after entry `i`, so that the
    /// view still says what the slot maps.
    fn superseded(&self, id: SlotId, i: usize) -> Option<usize> {
        let entry = |i: u32| &self.entries[i as usize];
        let at = self.by_slot.partition_point(|&j| entry(j).slot_id() < id);
        let first = *self.by_slot.get(at)?;
        (entry(first).slot_id() == id && (first as usize) <= i).then_some(first as usize)
    }
}

impl<V: View> Plan<'_, V> {
    /// Returns what each entry does to its slot, in the order of the list. For tests, which compare
    /// that with what an oracle does.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.steps.iter().map(|step| step.change)
    }

    /// Returns an upper bound on the number of changes. A replacement counts as two.
    pub fn max_changes(&self) -> usize {
        self.entries.len()
    }

    /// Returns the slots that end up different, in the order of address space and id.
    pub fn net_changes(&self) -> impl Iterator<Item = NetChange> + '_ {
        self.by_slot
            .chunk_by(|&a, &b| self.entry(a as usize).slot == self.entry(b as usize).slot)
            .filter_map(|run| {
                let slot = self.entry(*run.first()? as usize).slot_id();
                let kind = self.net_change(slot, run)?;
                let last_log = match kind {
                    NetKind::Delete | NetKind::Replace(_) => self.last_log(run),
                    _ => 0,
                };
                Some(NetChange {
                    slot,
                    kind,
                    last: *run.last()? as usize,
                    last_log,
                })
            })
    }

    /// Returns the number and the size in pages of each deletion that asks for the last dirty bits of
    /// its slot, and where they go. They are those of the log that the slot had before the list, or of a
    /// log that the list has started.
    pub fn last_logs(&self) -> impl Iterator<Item = LastLog> + '_ {
        let asks = |&i: &usize| self.entries[i].dirty_bitmap != 0;
        (0..self.entries.len()).filter(asks).filter_map(|i| {
            let entry = &self.entries[i];
            let old = match self.steps[i].prev {
                NONE => self.view.slot(entry.slot_id()),
                prev => mapping(self.entry(prev as usize)),
            };
            Some(LastLog {
                entry: i,
                npages: old?.npages(),
                address: entry.dirty_bitmap,
                started: self.log_started(i),
            })
        })
    }

    /// Returns whether the log of the slot that entry `i` deletes was started by an entry of the list.
    fn log_started(&self, i: usize) -> bool {
        let mut prev = self.steps[i].prev;
        while prev != NONE {
            let step = &self.steps[prev as usize];
            if step.change == Change::Create || !logs(self.entry(prev as usize)) {
                return true;
            }
            prev = step.prev;
        }
        !self
            .view
            .slot(self.entries[i].slot_id())
            .is_some_and(|old| old.flags.contains(SlotFlags::LOG_DIRTY))
    }

    /// Returns the user address that receives the last bits of the log that the slot of the entries
    /// `run` had before the list, or 0.
    fn last_log(&self, run: &[u32]) -> u64 {
        let first = run
            .iter()
            .find(|&&i| self.steps[i as usize].change == Change::Delete);
        match first {
            Some(&i) if !self.log_started(i as usize) => self.entry(i as usize).dirty_bitmap,
            _ => 0,
        }
    }

    /// Returns entry number `i`.
    pub fn entry(&self, i: usize) -> &Entry {
        &self.entries[i]
    }

    /// Combines the entries `run`, which are all those on `slot`, in the order of the list.
    fn net_change(&self, slot: SlotId, run: &[u32]) -> Option<NetKind> {
        let change = |i: u32| self.steps[i as usize].change;
        let old = self.view.slot(slot);
        let last = *run.last()?;

        if change(last) == Change::Delete {
            return old.map(|_| NetKind::Delete);
        }
        let new = mapping(self.entry(last as usize))?;
        let Some(old) = old else {
            return Some(NetKind::Create(new));
        };
        if run.iter().any(|&i| change(i) == Change::Create) {
            return Some(NetKind::Replace(new));
        }

        let logs = |i: u32| logs(self.entry(i as usize));
        let relog = if logs(last) && run.iter().any(|&i| !logs(i)) {
            Relog::Yes
        } else {
            Relog::No
        };
        if new.gfns != old.gfns {
            Some(NetKind::Move(new, relog))
        } else if new.flags != old.flags || relog == Relog::Yes {
            Some(NetKind::FlagsOnly(new, relog))
        } else {
            None
        }
    }
}
