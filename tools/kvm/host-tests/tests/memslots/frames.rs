// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Which frames stay where they are: `frames.rs` against a table of frames.

use std::collections::BTreeMap;

use kvm_memory_host_tests::{
    memslots::{
        frames::{cut, edges_inside, Access, Piece, Side},
        types::{Mapping, SlotFlags},
    },
    types::{Gfn, GfnRange, Hva, PAGE_SHIFT},
};
use proptest::prelude::*;

const FRAMES: u64 = 64;

/// What an address space maps: for some frames a host page, whether read-only, and the number of the
/// slot, which begins where its first frame is.
fn sides(parts: &[(u64, u64, u64, bool)]) -> Vec<Side> {
    let mut next = 0;
    let mut sides = Vec::new();
    for (item, &(gap, npages, page, readonly)) in parts.iter().enumerate() {
        let start = next + gap;
        let end = (start + npages).min(FRAMES);
        if start >= end {
            break;
        }
        next = end;
        let flags = if readonly {
            SlotFlags::READONLY
        } else {
            SlotFlags(0)
        };
        sides.push(Side {
            as_id: 0,
            mapping: Mapping {
                gfns: GfnRange {
                    start: Gfn(start),
                    end: Gfn(end),
                },
                // Most slots map frame n to host page n.
                hva: Hva((start + 1000 + page) << PAGE_SHIFT),
                flags,
            },
            item: item as u32,
        });
    }
    sides
}

/// Number, host page and access of the slot that maps each frame.
fn table(sides: &[Side]) -> BTreeMap<u64, (u32, u64, bool)> {
    let mut table = BTreeMap::new();
    for side in sides {
        let gfns = side.mapping.gfns;
        for gfn in gfns.start.0..gfns.end.0 {
            let page = (side.mapping.hva.0 >> PAGE_SHIFT) + gfn - gfns.start.0;
            let readonly = side.mapping.flags.contains(SlotFlags::READONLY);
            table.insert(gfn, (side.item, page, readonly));
        }
    }
    table
}

fn pieces(olds: &[Side], news: &[Side]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let done: Result<(), ()> = cut(olds, news, |piece| {
        pieces.push(piece);
        Ok(())
    });
    assert_eq!(done, Ok(()));
    pieces
}

fn slots() -> impl Strategy<Value = Vec<Side>> {
    let page = prop_oneof![4 => Just(0u64), 1 => 0..3u64];
    prop::collection::vec((0..4u64, 1..20u64, page, any::<bool>()), 0..12)
        .prop_map(|parts| sides(&parts))
}

proptest! {
    /// Each frame of an old slot is in one piece, which says what becomes of it.
    #[test]
    fn each_frame_is_in_one_piece(olds in slots(), news in slots()) {
        let (before, after) = (table(&olds), table(&news));
        let pieces = pieces(&olds, &news);
        prop_assert!(pieces.len() <= 3 * olds.len() + 2 * news.len());

        let mut seen = BTreeMap::new();
        for piece in &pieces {
            prop_assert!(piece.gfns.start < piece.gfns.end);
            for gfn in piece.gfns.start.0..piece.gfns.end.0 {
                prop_assert!(seen.insert(gfn, *piece).is_none());
            }
        }
        prop_assert_eq!(seen.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        for (gfn, piece) in seen {
            let (old, page, readonly) = before[&gfn];
            prop_assert_eq!(piece.old, old);
            let want = after.get(&gfn).filter(|new| new.1 == page).map(|new| {
                let access = match (readonly, new.2) {
                    (false, true) => Access::Lost,
                    (true, false) => Access::Gained,
                    _ => Access::Same,
                };
                (new.0, access)
            });
            prop_assert_eq!(piece.new, want);
        }
    }

    /// Edges are reported where the frames on both sides are in one slot of the other list.
    #[test]
    fn edges_are_inside(inner in slots(), outer in slots()) {
        let around = table(&outer);
        let mut want = Vec::new();
        for side in &inner {
            for edge in [side.mapping.gfns.start.0, side.mapping.gfns.end.0] {
                let before = edge.checked_sub(1).and_then(|gfn| around.get(&gfn));
                if let (Some(before), Some(after)) = (before, around.get(&edge)) {
                    if before.0 == after.0 {
                        want.push((Gfn(edge), after.0));
                    }
                }
            }
        }
        prop_assert_eq!(edges_inside(&inner, &outer).collect::<Vec<_>>(), want);
    }
}

/// The first error of the callback ends the comparison.
#[test]
fn an_error_ends_it() {
    let olds = sides(&[(0, 4, 0, false), (0, 4, 0, false)]);
    let mut calls = 0;
    let result = cut(&olds, &[], |_| {
        calls += 1;
        Err(calls)
    });
    assert_eq!((result, calls), (Err(1), 1));
}
