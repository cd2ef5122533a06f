// SPDX-License-Identifier: GPL-2.0-only

//! Which frames stay where they are when a batch removes some slots and adds others.
//!
//! A slot that is resized, split or merged is removed, and what takes its place is added. A frame
//! that both map to the same host address is *kept*: the guest's mapping of it stays right, except for
//! write access. All other frames of the removed slots are *gone*.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.

use super::types::{
    Mapping,
    SlotFlags, //
};

use crate::types::{
    Gfn,
    GfnRange, //
};

/// A slot that a batch removes or adds.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Address space.
    pub as_id: u16,
    /// What the slot maps.
    pub mapping: Mapping,
    /// Number that the caller knows the slot by.
    pub item: u32,
}

/// What becomes of some frames of a removed slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The removed slot.
    pub old: u32,
    /// The frames, none of which is in another piece of the slot.
    pub gfns: GfnRange,
    /// The added slot that maps the frames to the same host addresses, if there is one, and what the
    /// guest may do with them there.
    pub new: Option<(u32, Access)>,
}

/// What the guest may do with kept frames after the batch, compared with before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The same.
    Same,
    /// It may now write to them.
    Gained,
    /// It may no longer write to them.
    Lost,
}

/// Private memory has no host address that could stay the same.
fn can_be_kept(mapping: &Mapping) -> bool {
    !mapping.has_guest_memfd()
}

/// Cuts each of the slots `olds` into [`Piece`]s, and calls `each` with them, in the order of frames.
///
/// `olds` and `news` must be sorted by frame. The slots of either must not overlap each other.
///
/// Fails with the first error of `each`.
pub fn cut<E>(
    olds: &[Side],
    news: &[Side],
    mut each: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut news = news;
    for old in olds {
        let mut rest = old.mapping.gfns;
        while rest.start < rest.end {
            let passed = news.partition_point(|new| new.mapping.gfns.end <= rest.start);
            news = &news[passed..];
            let shared = news
                .first()
                .and_then(|new| Some((new, new.mapping.gfns.intersection(rest)?)));
            let (new, end) = match shared {
                None => (None, rest.end),
                Some((_, gfns)) if gfns.start > rest.start => (None, gfns.start),
                Some((new, gfns)) => {
                    let same = can_be_kept(&old.mapping)
                        && can_be_kept(&new.mapping)
                        && new.mapping.hva_of_frame_0() == old.mapping.hva_of_frame_0();
                    let access = access(old.mapping.flags, new.mapping.flags);
                    (same.then_some((new.item, access)), gfns.end)
                }
            };
            each(Piece {
                old: old.item,
                gfns: GfnRange {
                    start: rest.start,
                    end,
                },
                new,
            })?;
            rest.start = end;
        }
    }
    Ok(())
}

/// Returns how the access of the guest changes where a slot with the flags `new` replaces one with the
/// flags `old`.
fn access(old: SlotFlags, new: SlotFlags) -> Access {
    let readonly = |flags: SlotFlags| flags.contains(SlotFlags::READONLY);
    match (readonly(old), readonly(new)) {
        (false, true) => Access::Lost,
        (true, false) => Access::Gained,
        _ => Access::Same,
    }
}

/// Returns the edges of the slots `inner` that are inside of a slot of `outer`, which is sorted by
/// frame: with the removed slots outside, where the batch cuts a slot; with the added ones outside,
/// where it joins two. An edge is the frame that it precedes.
pub fn edges_inside<'a>(
    inner: &'a [Side],
    outer: &'a [Side],
) -> impl Iterator<Item = (Gfn, u32)> + 'a {
    let edges = |side: &Side| [side.mapping.gfns.start, side.mapping.gfns.end];
    inner.iter().flat_map(edges).filter_map(|edge| {
        let at = outer.partition_point(|side| side.mapping.gfns.end <= edge);
        let around = outer.get(at)?;
        (around.mapping.gfns.start < edge).then_some((edge, around.item))
    })
}
