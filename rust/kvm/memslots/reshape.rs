// SPDX-License-Identifier: GPL-2.0-only

//! What a batch does about the frames of the slots that it removes ([`super::frames`] explains kept
//! and gone frames).
//!
//! Where the architecture can *reshape* slots, the batch leaves the mappings of kept frames alone. If
//! there are no other frames, and none becomes read-only, it needs no INVALID slots: a page fault
//! finds the same memory in the old and in the new slots. Otherwise the removed slots become INVALID,
//! and the batch takes the gone frames, and write access, from the guest.
//!
//! Elsewhere all frames of the removed slots are taken, by flushing these slots.

use super::{
    few::Few,
    frames::{
        cut,
        edges_inside,
        Access,
        Piece,
        Side, //
    },
    locks::SlotsLocked,
    slot::Slot,
    types::Spaces, //
};

use crate::types::{
    Gfn,
    GfnRange, //
};

use kernel::{
    alloc::AllocError,
    bindings,
    prelude::*, //
};

/// Slots, sorted by address space and frame. Those of an address space do not overlap.
pub(super) struct Sides(Few<Side>);

impl Sides {
    /// Sorts the slots that `slot` returns for some of the numbers from 0 to `n - 1`.
    pub(super) fn new<'s>(
        n: usize,
        slot: impl Fn(usize) -> Option<Slot<'s>>,
    ) -> Result<Self, AllocError> {
        // Sorting numbers needs less code, and less copying, than sorting slots.
        let mut order = Few::new();
        for item in (0..n).filter(|&item| slot(item).is_some()) {
            order.push(item as u32)?;
        }
        order.sort_unstable_by_key(|&item| {
            slot(item as usize).map(|slot| (slot.id().as_id, slot.mapping().gfns.start))
        });
        let mut sides = Few::with_capacity(order.len())?;
        for &item in &order {
            if let Some(slot) = slot(item as usize) {
                let side = Side {
                    as_id: slot.id().as_id,
                    mapping: slot.mapping(),
                    item,
                };
                sides.push(side)?;
            }
        }
        Ok(Self(sides))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, as_id: u16) -> &[Side] {
        let start = self.0.partition_point(|side| side.as_id < as_id);
        let end = self.0.partition_point(|side| side.as_id <= as_id);
        &self.0[start..end]
    }
}

/// Frames that a removed and an added slot map to the same host addresses.
pub(super) struct Shared {
    /// Number of the change that removes a slot.
    pub(super) old: usize,
    /// Number of the change that adds a slot.
    pub(super) new: usize,
    /// The frames.
    pub(super) gfns: GfnRange,
    /// Whether both slots map them in the same address space.
    pub(super) here: bool,
}

/// Returns `gfns` of address space `as_id` as frames that the guest loses, or if `keep` only loses
/// write access to.
pub(super) fn taken(as_id: u16, gfns: GfnRange, keep: bool) -> bindings::kvm_memory_gfns {
    bindings::kvm_memory_gfns {
        start: gfns.start.0,
        end: gfns.end.0,
        as_id,
        keep,
    }
}

/// What a batch does about frames.
pub(super) struct Reshape {
    /// Whether slots are reshaped.
    pub(super) in_place: bool,
    /// Number of pages of the removed slots that are kept.
    pub(super) kept_pages: u64,
    /// Number of pages of the removed slots that are gone.
    pub(super) gone_pages: u64,
    /// Frames whose dirty bits are carried, and whose mappings may stay.
    pub(super) shared: Few<Shared>,
    /// Frames that the guest loses, or loses write access to: if slots are not reshaped, all of those
    /// that are removed. None where the architecture cannot take frames from the guest.
    pub(super) taken: Few<bindings::kvm_memory_gfns>,
    /// Where an edge of an added slot is inside of a removed one. Only if slots are reshaped.
    split: Few<(u16, Gfn)>,
    /// Where an edge of a removed slot is inside of an added one, with the number of the change that
    /// adds it. Only if slots are reshaped.
    pub(super) joined: Few<(usize, Gfn)>,
}

impl Reshape {
    /// What a batch must do that removes no slots, and does not reshape.
    pub(super) const fn new() -> Self {
        Self {
            in_place: false,
            kept_pages: 0,
            gone_pages: 0,
            shared: Few::new(),
            taken: Few::new(),
            split: Few::new(),
            joined: Few::new(),
        }
    }

    /// Works out what the batch must do if it removes the slots `olds` and adds the slots `news` in
    /// `spaces`. `moves` says whether the change with that number moves a slot.
    pub(super) fn compare(
        &mut self,
        olds: &Sides,
        news: &Sides,
        spaces: Spaces,
        moves: impl Fn(u32) -> bool,
    ) -> Result<(), AllocError> {
        for as_id in spaces.iter() {
            let (removed, added) = (olds.of(as_id), news.of(as_id));
            for other in spaces.iter() {
                let here = other == as_id;
                cut(removed, news.of(other), |piece| {
                    // A slot that moves takes its dirty log along. It says nothing of the frames that
                    // the slot comes to, and must not miss what the guest still writes through those
                    // that it leaves.
                    let stays = !moves(piece.old) && piece.new.is_some_and(|(new, _)| !moves(new));
                    self.add(as_id, piece, here, stays)
                })?;
            }
            if !self.in_place {
                continue;
            }
            for (edge, _) in edges_inside(added, removed) {
                // The end of a slot often is the start of the next.
                if self.split.last() != Some(&(as_id, edge)) {
                    self.split.push((as_id, edge))?;
                }
            }
            for (edge, new) in edges_inside(removed, added) {
                if self.joined.last() != Some(&(new as usize, edge)) {
                    self.joined.push((new as usize, edge))?;
                }
            }
        }
        Ok(())
    }

    /// Adds a piece of a slot of address space `as_id`. `here` says whether it was compared with the
    /// slots that are added in the same address space, and `stays` whether its mappings may stay if
    /// it is added there.
    fn add(&mut self, as_id: u16, piece: Piece, here: bool, stays: bool) -> Result<(), AllocError> {
        if let Some((new, _)) = piece.new {
            let shared = Shared {
                old: piece.old as usize,
                new: new as usize,
                gfns: piece.gfns,
                here,
            };
            self.shared.push(shared)?;
        }
        if here {
            if stays {
                self.kept_pages += piece.gfns.npages();
            } else {
                self.gone_pages += piece.gfns.npages();
            }
        }
        let keep = match piece.new {
            Some((_, Access::Same | Access::Gained)) if stays => return Ok(()),
            Some((_, Access::Lost)) => stays,
            _ => false,
        };
        if here && self.in_place {
            self.taken.push(taken(as_id, piece.gfns, keep))?;
        }
        Ok(())
    }

    /// Returns the number of pages that the guest has lost its mappings of.
    pub(super) fn zapped_pages(&self, slots: &SlotsLocked<'_>) -> u64 {
        match (self.in_place, self.taken.is_empty()) {
            (true, _) => self.gone_pages,
            (false, false) => self.kept_pages + self.gone_pages,
            (false, true) => slots.flushed_pages(self.kept_pages + self.gone_pages),
        }
    }

    /// Splits huge pages that the new edges of slots cut.
    pub(super) fn split_edges(&self, slots: &SlotsLocked<'_>) {
        for &(as_id, edge) in &self.split {
            slots.split_at(as_id, edge);
        }
    }
}
