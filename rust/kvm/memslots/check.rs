// SPDX-License-Identifier: GPL-2.0-only

//! First phase of a memslot update: decide what every entry of a list means, or refuse the list.
//!
//! [`check`] gives a list the meaning of its entries applied one by one, in order, and finds the
//! error of the first that would fail, without applying any. What comes out is a [`Plan`]: for each
//! slot that ends up different, the one [`NetChange`] that leads there.
//!
//! The phase is pure. It sees the present slots and the rules of the architecture through [`View`],
//! writes to nothing but the [`Scratch`] that the caller hands in, and cannot allocate. That makes
//! it testable on the host against an oracle that does apply entry by entry.
//!
//! # How earlier entries are counted in
//!
//! Slots that no earlier entry touched are asked of the view. For the others the latest entry on
//! the slot says what it is: entries are sorted by slot once, so that each knows its predecessor.
//! The ranges of slots that earlier entries left in place are kept by rank in the gfn order of all
//! entries, as bits of a [`RankSet`]: as live slots never overlap, the live neighbours left and
//! right of an entry's rank are the only ones that can collide with it.
//!
//! Whatever the n entries and the N slots are, an entry takes O(log N) look-ups on average: runs of
//! slots that the list has already superseded are skipped in one step the second time
//! (`Step::skip`).
//!
//! # Alternatives
//!
//! Applying the entries to the inactive list as they are checked needs no overlay, but then a
//! refusal has to be rolled back, and the phase could not be separated from the kernel's lists.
//! Loading all the slots into a scratch map makes a list of two entries cost as much as the VM has
//! slots.

use super::rank_set::RankSet;
use super::types::Change;
use super::types::Entry;
use super::types::Mapping;
use super::types::SlotFlags;
use super::types::SlotId;
use crate::types::Gfn;
use crate::types::GfnRange;
use crate::types::Hva;
use crate::types::PAGE_SHIFT;
use crate::types::PAGE_SIZE;

/// Why a list is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// `-EINVAL`: an argument breaks a rule.
    Invalid,
    /// `-EEXIST`: the range overlaps another slot.
    Exists,
    /// `-EIO`: the VM's page count does not fit its slots, a bug of the kernel.
    Corrupt,
}

/// A refused list: the position of the first entry that would have failed, and its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Position in the list, from 0.
    pub index: usize,
    /// What a single update with this entry would have given.
    pub error: Error,
}

/// Where entries come from; decides which of them may carry a guest_memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `KVM_SET_USER_MEMORY_REGION_LIST`.
    List,
    /// A single update.
    Single {
        /// In bytes; used with [`SlotFlags::GUEST_MEMFD`] only.
        guest_memfd_offset: u64,
    },
}

/// The rules of a VM that do not change while slots do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of address spaces.
    pub address_spaces: u16,
    /// Number of slot ids, internal ones included.
    pub slots: u16,
    /// Number of slot ids for userspace; the internal ones stand above.
    pub user_slots: u16,
    /// Largest size of a user slot, in pages.
    pub max_user_pages: u64,
    /// All flags that the VM knows.
    pub flags: SlotFlags,
}

/// The VM as [`check`] sees it, before the first entry.
pub trait View {
    /// The fixed rules.
    fn limits(&self) -> Limits;
    /// The pages of all slots in all address spaces.
    fn nr_pages(&self) -> u64;
    /// What slot `id` maps, if it exists.
    fn slot(&self, id: SlotId) -> Option<Mapping>;
    /// The lowest slot of address space `as_id` that shares a frame with `gfns`: none if that is
    /// empty, or ends before it starts.
    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)>;
    /// Whether `[hva, hva + size)` can be memory of the calling process.
    fn is_user_range(&self, hva: Hva, size: u64) -> bool;
    /// Whether the architecture lets `gfns` be the target of `change` (CREATE or MOVE).
    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool;
}

const NONE: u32 = u32::MAX;

/// What [`check`] notes about one entry.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    change: Change,
    /// The entry before this one on the same slot, or [`NONE`].
    prev: u32,
    /// Position in the gfn order of all entries.
    rank: u32,
    /// For the first entry on a slot: all slots of the view from that slot up to this frame are
    /// superseded.
    skip: u64,
}

impl Step {
    /// A step to fill scratch memory with.
    pub const EMPTY: Self = Self {
        change: Change::Nothing,
        prev: NONE,
        rank: 0,
        skip: 0,
    };
}

/// Working memory for a list of n entries.
pub struct Scratch<'a> {
    /// n steps.
    pub steps: &'a mut [Step],
    /// n entry numbers, to be sorted by slot.
    pub by_slot: &'a mut [u32],
    /// n entry numbers, to be sorted by gfn.
    pub by_gfn: &'a mut [u32],
    /// [`RankSet::words`] of n words, all 0.
    pub ranks: &'a mut [u64],
}

/// The one change that brings a slot from before the list to after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetChange {
    /// The slot that changes.
    pub slot: SlotId,
    /// How it changes.
    pub kind: NetKind,
}

/// Kinds of [`NetChange`], with what the slot maps afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetKind {
    /// The slot did not exist.
    Create(Mapping),
    /// The slot ceases to exist.
    Delete,
    /// The slot was deleted, and created again.
    Replace(Mapping),
    /// The slot goes to other frames, maybe with other flags.
    Move(Mapping, Relog),
    /// The slot gets other flags, or starts its dirty log anew.
    FlagsOnly(Mapping, Relog),
}

/// Whether the list has dirty logging off in between, so that the log starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relog {
    /// The log goes on.
    No,
    /// The log starts anew.
    Yes,
}

/// A list that has been checked: nothing in it can be refused any more, only fail for lack of
/// resources.
pub struct Plan<'a, V> {
    view: &'a V,
    entries: &'a [Entry],
    steps: &'a [Step],
    by_slot: &'a [u32],
}

/// The part of `check` that looks things up.
struct Checker<'a, V> {
    view: &'a V,
    limits: Limits,
    entries: &'a [Entry],
    steps: &'a mut [Step],
    by_slot: &'a [u32],
    by_gfn: &'a [u32],
    live: RankSet<'a>,
}

/// Checks `entries` against the slots of `view`.
///
/// The slices in `scratch` are as long as [`Scratch`] says; `entries` has fewer than 2³² elements.
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

    let mut nr_pages = view.nr_pages();
    let mut checker = Checker {
        view,
        limits: view.limits(),
        entries,
        steps,
        by_slot,
        by_gfn,
        live: RankSet::new(ranks, entries.len()),
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

/// What an entry maps if it is not a deletion. The entry has been checked, or is about to be.
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

const fn is_page_aligned(value: u64) -> bool {
    value % PAGE_SIZE == 0
}

impl<V: View> Checker<'_, V> {
    /// Checks entry `i`, all before it having passed.
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

                // A slot on a guest_memfd can only be deleted.
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

        if prev != NONE {
            self.live.remove(self.steps[prev as usize].rank as usize);
        }
        if let (Change::Create | Change::Move, Some(new)) = (change, new) {
            if self.collides(i, id, new.gfns) {
                return Err(Error::Exists);
            }
            // The errors of a guest_memfd come before those of the architecture, and are found only
            // when it is bound; the architecture's hook then looks again.
            if !new.flags.contains(SlotFlags::GUEST_MEMFD)
                && !self.view.arch_allows(change, new.gfns)
            {
                return Err(Error::Invalid);
            }
        }

        if change != Change::Delete {
            self.live.insert(self.steps[i].rank as usize);
        }
        self.steps[i].change = change;
        Ok(())
    }

    /// The rules that an entry can break by itself. Gives what it maps, [`None`] for a deletion.
    fn arguments(&self, entry: &Entry, origin: Origin) -> Result<Option<Mapping>, Error> {
        let limits = &self.limits;
        let flags = SlotFlags(entry.flags);
        let id = entry.slot_id();
        let npages = entry.memory_size >> PAGE_SHIFT;
        let memfd = flags.contains(SlotFlags::GUEST_MEMFD);

        let mut known = limits.flags;
        if memfd {
            // Neither logging nor write protection exists for private memory.
            known = SlotFlags(known.0 & SlotFlags::GUEST_MEMFD.0);
        }
        let memfd_ok = match origin {
            Origin::List => !memfd,
            Origin::Single { guest_memfd_offset } => {
                !memfd
                    || (is_page_aligned(guest_memfd_offset)
                        && guest_memfd_offset.checked_add(entry.memory_size).is_some())
            }
        };

        let valid = known.contains(flags)
            && memfd_ok
            && entry.padding == [0; 31]
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

    /// What the slot of entry `i`, which has passed, maps after it.
    fn result(&self, i: u32) -> Option<Mapping> {
        match self.steps[i as usize].change {
            Change::Delete => None,
            _ => mapping(&self.entries[i as usize]),
        }
    }

    /// Whether `gfns` shares a frame with a slot other than `id`, as things stand before entry `i`.
    /// What earlier entries made of slot `id` itself is not in `live` any more.
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
        self.skip_superseded(i, id.as_id, gfns);
        false
    }

    /// Lets later look-ups pass over `gfns`, in which all slots of the view are superseded, in one
    /// step.
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

    /// If entry `i` or one before it touches slot `id`, so that the view no longer tells what it
    /// is: the first that does.
    fn superseded(&self, id: SlotId, i: usize) -> Option<usize> {
        let entry = |i: u32| &self.entries[i as usize];
        let at = self.by_slot.partition_point(|&j| entry(j).slot_id() < id);
        let first = *self.by_slot.get(at)?;
        (entry(first).slot_id() == id && (first as usize) <= i).then_some(first as usize)
    }
}

impl<V: View> Plan<'_, V> {
    /// What each entry does to its slot, in the order of the list.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.steps.iter().map(|step| step.change)
    }

    /// An upper bound of the changes to make; a replacement counts as two.
    pub fn max_changes(&self) -> usize {
        self.entries.len()
    }

    /// The slots that end up different, in the order of address space and id.
    pub fn net_changes(&self) -> impl Iterator<Item = NetChange> + '_ {
        self.by_slot
            .chunk_by(|&a, &b| self.entry(a).slot == self.entry(b).slot)
            .filter_map(|run| {
                let slot = self.entry(*run.first()?).slot_id();
                let kind = self.net_change(slot, run)?;
                Some(NetChange { slot, kind })
            })
    }

    fn entry(&self, i: u32) -> &Entry {
        &self.entries[i as usize]
    }

    /// Composes the entries `run`, which are all those on `slot`, in the order of the list.
    fn net_change(&self, slot: SlotId, run: &[u32]) -> Option<NetKind> {
        let change = |i: u32| self.steps[i as usize].change;
        let old = self.view.slot(slot);
        let last = *run.last()?;

        if change(last) == Change::Delete {
            return old.map(|_| NetKind::Delete);
        }
        let new = mapping(self.entry(last))?;
        let Some(old) = old else {
            return Some(NetKind::Create(new));
        };
        if run.iter().any(|&i| change(i) == Change::Create) {
            return Some(NetKind::Replace(new));
        }

        let logs = |i: u32| SlotFlags(self.entry(i).flags).contains(SlotFlags::LOG_DIRTY);
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
