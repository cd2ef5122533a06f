// SPDX-License-Identifier: GPL-2.0-only

//! What mapping segments to an address space, and unmapping them, means for its memslots.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.
//!
//! An *extent* is a memslot of the address space. Extents need not be segments: [`Change::entries`]
//! makes one extent of segments that follow each other in the guest and in user memory, so that few
//! memslots describe much memory. It removes the extents that a range overlaps, and adds what takes
//! their place; the batch that carries this out leaves alone the mappings of all frames that stay.
//!
//! Memslots have metadata for each 2 MiB. Replacing one costs time that grows with its size. So there
//! are limits: segments are joined to an extent within one GiB, and a range is mapped by extents of
//! at most 16 GiB. Only when ids run short are extents joined beyond the first limit.
//!
//! # Alternatives
//!
//! A second tree of segments beside the memslots would say the same again, and could differ from
//! them. Extents of one segment each need no joining, but 32 GiB of memory would exhaust the ids.

use crate::{
    memslots::types::{
        Entry,
        Mapping,
        SlotFlags, //
    },
    types::{
        Gfn,
        GfnRange,
        Hva,
        PAGE_SHIFT, //
    },
};

/// Bytes in a segment. Guest and user addresses are multiples of it.
pub const SEGMENT_SIZE: u64 = 1 << 20;

/// Segments are joined within one aligned block of this many frames: 1 GiB.
pub const JOIN_PAGES: u64 = 1 << (30 - PAGE_SHIFT);

/// An extent does not cross a multiple of this many frames: 16 GiB.
pub const EXTENT_PAGES: u64 = 1 << (34 - PAGE_SHIFT);

/// A memslot of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its id within the address space.
    pub id: u16,
    /// What it maps.
    pub mapping: Mapping,
}

/// The address space as it is before a change.
pub trait Extents {
    /// Returns the lowest extent that shares a frame with `gfns`. Returns [`None`] if there is none,
    /// or `gfns.start >= gfns.end`.
    fn first_in(&self, gfns: GfnRange) -> Option<Extent>;

    /// Returns the lowest id of at least `from` that no extent has.
    fn free_id(&self, from: u16) -> Option<u16>;
}

/// Why a change is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// There are not enough ids for the extents that it takes.
    NoIds,
    /// The caller could not take an entry.
    Caller(E),
}

/// A range of guest frames that is mapped to user memory, or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    gfns: GfnRange,
    /// The user address of the first frame, or [`None`] to unmap.
    to: Option<Hva>,
}

/// A change, with what it overlaps taken into account.
#[derive(Clone, Copy)]
struct Plan {
    /// The frames that change, and those of the extents that are joined.
    joined: GfnRange,
    /// What precedes `joined` in the first extent that it overlaps.
    before: Option<Mapping>,
    /// What follows `joined` in the last extent that it overlaps.
    after: Option<Mapping>,
    /// Where frame 0 would be if the new mapping extended to it, or [`None`] to unmap.
    base: Option<u64>,
}

/// How far extents are joined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Join {
    /// As long as that is cheap.
    Cheap,
    /// As far as possible, because ids run short.
    All,
}

/// Returns the part of `mapping` in `gfns`, which must not be empty.
fn part(mapping: &Mapping, gfns: GfnRange) -> Mapping {
    let start = gfns.start.0 << PAGE_SHIFT;
    Mapping {
        gfns,
        hva: Hva(mapping.hva_of_frame_0().wrapping_add(start)),
        flags: mapping.flags,
    }
}

/// Returns the frames of `gfns` up to the next multiple of `EXTENT_PAGES`.
fn first_piece(gfns: GfnRange) -> GfnRange {
    let limit = (gfns.start.0 | (EXTENT_PAGES - 1)).saturating_add(1);
    GfnRange {
        start: gfns.start,
        end: gfns.end.min(Gfn(limit)),
    }
}

/// Cuts `gfns` at the multiples of `EXTENT_PAGES`.
fn pieces(gfns: GfnRange) -> impl Iterator<Item = GfnRange> + Clone {
    let mut rest = gfns;
    core::iter::from_fn(move || {
        let piece = first_piece(rest);
        rest.start = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

impl Change {
    /// Maps `length` bytes from guest address `vcpu_addr` to user memory at `user_addr`, or unmaps them
    /// if that is [`None`].
    ///
    /// Returns [`None`] if an address or the length is not a multiple of [`SEGMENT_SIZE`], the length
    /// is 0, or a range wraps around.
    pub fn new(vcpu_addr: u64, length: u64, user_addr: Option<u64>) -> Option<Self> {
        let user_start = user_addr.unwrap_or(0);
        if length == 0 || (vcpu_addr | length | user_start) % SEGMENT_SIZE != 0 {
            return None;
        }
        vcpu_addr.checked_add(length - 1)?;
        user_start.checked_add(length - 1)?;
        Some(Self {
            gfns: GfnRange::new(Gfn(vcpu_addr >> PAGE_SHIFT), length >> PAGE_SHIFT)?,
            to: user_addr.map(Hva),
        })
    }

    /// Returns the guest frames that are mapped or unmapped.
    pub const fn gfns(&self) -> GfnRange {
        self.gfns
    }

    /// Returns the user address that the first frame is mapped to, or [`None`] to unmap.
    pub const fn to(&self) -> Option<Hva> {
        self.to
    }

    /// Calls `emit` with the updates of memslots that make the change in address space `as_id`, in an
    /// order in which one after the other is possible. There are none if all is as it should be.
    ///
    /// Fails if there are not enough ids, or with the first error of `emit`. The caller must then
    /// forget what has been emitted.
    pub fn entries<E>(
        &self,
        map: &impl Extents,
        as_id: u16,
        mut emit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), Error<E>> {
        let Some(change) = self.without_what_stays(map) else {
            return Ok(());
        };
        let plan = [Join::Cheap, Join::All]
            .into_iter()
            .map(|join| change.plan(map, join))
            .find(|plan| plan.has_ids(map))
            .ok_or(Error::NoIds)?;

        let slot = |id: u16| (u32::from(as_id) << 16) | u32::from(id);
        for old in plan.removed(map) {
            let delete = Entry {
                slot: slot(old.id),
                ..Entry::default()
            };
            emit(delete).map_err(Error::Caller)?;
        }
        let mut ids = plan.ids(map);
        for new in plan.added() {
            let create = Entry {
                slot: slot(ids.next().ok_or(Error::NoIds)?),
                flags: new.flags.0,
                guest_phys_addr: new.gfns.start.0 << PAGE_SHIFT,
                memory_size: new.npages() << PAGE_SHIFT,
                userspace_addr: new.hva.0,
                ..Entry::default()
            };
            emit(create).map_err(Error::Caller)?;
        }
        Ok(())
    }

    /// Returns where frame 0 would be if the new mapping extended to it, or [`None`] to unmap.
    fn base(&self) -> Option<u64> {
        let new = Mapping {
            gfns: self.gfns,
            hva: self.to?,
            flags: SlotFlags::default(),
        };
        Some(new.hva_of_frame_0())
    }

    /// Returns the change without the frames at both ends that are mapped as they should be, or
    /// [`None`] if nothing is left. So the extents that map these are not replaced.
    fn without_what_stays(mut self, map: &impl Extents) -> Option<Self> {
        let Some(wanted) = self.base() else {
            // Unmapping what is not mapped changes nothing.
            return map.first_in(self.gfns).map(|_| self);
        };
        let here = |gfn: u64| {
            let gfns = GfnRange::new(Gfn(gfn), 1)?;
            let extent = map.first_in(gfns)?.mapping;
            (extent.hva_of_frame_0() == wanted).then_some(extent.gfns)
        };
        while let Some(extent) = here(self.gfns.start.0) {
            self.gfns.start = extent.end;
            if self.gfns.start >= self.gfns.end {
                return None;
            }
        }
        // The start is not mapped as it should be, so that the end stays above it.
        while let Some(extent) = here(self.gfns.end.0 - 1) {
            self.gfns.end = extent.start;
        }
        self.to = Some(Hva(wanted.wrapping_add(self.gfns.start.0 << PAGE_SHIFT)));
        Some(self)
    }

    /// Finds out what the change overlaps, and which of its neighbours are joined to it.
    fn plan(self, map: &impl Extents, join: Join) -> Plan {
        let GfnRange { start, end } = self.gfns;
        let wanted = self.base();
        let at = |gfn: u64| Some(map.first_in(GfnRange::new(Gfn(gfn), 1)?)?.mapping);
        let mut plan = Plan {
            joined: self.gfns,
            before: None,
            after: None,
            base: wanted,
        };

        if let Some(left) = start.0.checked_sub(1).and_then(at) {
            let whole = GfnRange {
                start: left.gfns.start,
                end,
            };
            if left.gfns.end > start {
                let rest = GfnRange {
                    start: left.gfns.start,
                    end: start,
                };
                plan.before = Some(part(&left, rest));
            } else if wanted == Some(left.hva_of_frame_0()) && join.allows(whole) {
                plan.joined.start = left.gfns.start;
            }
        }
        if let Some(right) = at(end.0) {
            let whole = GfnRange {
                start: plan.joined.start,
                end: right.gfns.end,
            };
            if right.gfns.start < end {
                let rest = GfnRange {
                    start: end,
                    end: right.gfns.end,
                };
                plan.after = Some(part(&right, rest));
            } else if wanted == Some(right.hva_of_frame_0()) && join.allows(whole) {
                plan.joined.end = right.gfns.end;
            }
        }
        plan
    }
}

impl Join {
    /// Returns whether `gfns` may become one extent.
    fn allows(self, gfns: GfnRange) -> bool {
        let pages = match self {
            Join::Cheap => JOIN_PAGES,
            // A neighbour that ends at such a multiple saves no id.
            Join::All => EXTENT_PAGES,
        };
        let last = gfns.end.0.saturating_sub(1);
        gfns.start.0 / pages == last / pages
    }
}

impl Plan {
    /// Returns the extents that the change removes, in the order of frames.
    fn removed<'m>(&self, map: &'m impl Extents) -> impl Iterator<Item = Extent> + Clone + 'm {
        let mut rest = self.joined;
        core::iter::from_fn(move || {
            let extent = map.first_in(rest)?;
            rest.start = extent.mapping.gfns.end;
            Some(extent)
        })
    }

    /// Returns what the extents map that the change adds.
    fn added(&self) -> impl Iterator<Item = Mapping> + Clone {
        let joined = self.joined;
        let new = self.base.map(|base| {
            pieces(joined).map(move |gfns| Mapping {
                gfns,
                hva: Hva(base.wrapping_add(gfns.start.0 << PAGE_SHIFT)),
                flags: SlotFlags::default(),
            })
        });
        self.before
            .into_iter()
            .chain(new.into_iter().flatten())
            .chain(self.after)
    }

    /// Returns the ids that added extents can have: those of the removed ones come first.
    fn ids<'m>(&self, map: &'m impl Extents) -> impl Iterator<Item = u16> + 'm {
        let mut next = Some(0);
        let free = core::iter::from_fn(move || {
            let id = map.free_id(next?)?;
            next = id.checked_add(1);
            Some(id)
        });
        self.removed(map).map(|extent| extent.id).chain(free)
    }

    /// Returns whether there are enough ids for what is added.
    fn has_ids(&self, map: &impl Extents) -> bool {
        let added = self.added().count();
        self.ids(map).take(added).count() == added
    }
}
