// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `segments.rs` against a plain array of segments.

use crate::space::Space;

use kvm_memory_host_tests::gmap::segments::{Change, EXTENT_PAGES, JOIN_PAGES, SEGMENT_SIZE};
use proptest::prelude::*;

/// Segments of the array, which may stand for larger units.
const UNITS: usize = 40;

fn map(at: u64, length: u64, to: u64) -> Change {
    Change::new(at, length, Some(to)).expect("a valid range")
}

fn unmap(at: u64, length: u64) -> Change {
    Change::new(at, length, None).expect("a valid range")
}

/// The numbers of deletions and creations in the entries that `change` makes.
fn cost(space: &mut Space, change: Change) -> (usize, usize) {
    let entries = space.apply(change).expect("there are ids");
    let deletions = entries.iter().filter(|entry| entry.memory_size == 0);
    let deletions = deletions.count();
    (deletions, entries.len() - deletions)
}

const M: u64 = SEGMENT_SIZE;
const G: u64 = 1 << 30;

#[test]
fn ranges_must_be_whole_segments_and_not_wrap() {
    let valid = |at, length, to| Change::new(at, length, to).is_some();
    assert!(valid(0, M, Some(0)));
    assert!(valid(M, 3 * M, None));
    assert!(!valid(0, 0, Some(0)) && !valid(0, 0, None));
    assert!(!valid(M + 4096, M, Some(0)));
    assert!(!valid(0, M + 4096, Some(0)));
    assert!(!valid(0, M, Some(4096)));
    // The last segment of all, and what is above it.
    assert!(valid(0u64.wrapping_sub(M), M, None));
    assert!(!valid(0u64.wrapping_sub(M), 2 * M, None));
    assert!(!valid(0, 2 * M, Some(0u64.wrapping_sub(M))));
    assert!(!valid(2 * M, 0u64.wrapping_sub(M), Some(0)));
    assert!(!valid(0, 0u64.wrapping_sub(M), Some(2 * M)));
}

#[test]
fn segments_are_joined_one_by_one() {
    let mut space = Space::new(4);
    for i in 0..64 {
        let deletions = usize::from(i > 0);
        assert_eq!(
            cost(&mut space, map(i * M, M, 5 * G + i * M)),
            (deletions, 1)
        );
    }
    assert_eq!(space.extents.len(), 1);
    // From above, and the segment that two extents lacked.
    assert_eq!(cost(&mut space, map(66 * M, M, 5 * G + 66 * M)), (0, 1));
    assert_eq!(cost(&mut space, map(65 * M, M, 5 * G + 65 * M)), (1, 1));
    assert_eq!(cost(&mut space, map(64 * M, M, 5 * G + 64 * M)), (2, 1));
    assert_eq!(space.extents.len(), 1);
    // Other memory is not.
    assert_eq!(cost(&mut space, map(67 * M, M, 9 * G)), (0, 1));
    assert_eq!(space.extents.len(), 2);
}

#[test]
fn what_is_mapped_already_costs_nothing() {
    let mut space = Space::new(8);
    assert_eq!(cost(&mut space, map(M, 10 * M, G)), (0, 1));
    assert_eq!(cost(&mut space, map(M, 10 * M, G)), (0, 0));
    assert_eq!(cost(&mut space, map(3 * M, 2 * M, G + 2 * M)), (0, 0));
    assert_eq!(cost(&mut space, unmap(20 * M, 2 * M)), (0, 0));
    // Only what goes beyond it.
    assert_eq!(cost(&mut space, map(4 * M, 10 * M, G + 3 * M)), (1, 1));
    assert_eq!(space.extents.len(), 1);
}

#[test]
fn a_segment_in_the_middle_splits() {
    let mut space = Space::new(8);
    cost(&mut space, map(0, 10 * M, G));
    assert_eq!(cost(&mut space, map(4 * M, M, 3 * G)), (1, 3));
    assert_eq!(cost(&mut space, map(4 * M, M, G + 4 * M)), (3, 1));
    assert_eq!(cost(&mut space, unmap(4 * M, M)), (1, 2));
    assert_eq!(cost(&mut space, unmap(0, 10 * M)), (2, 0));
    assert!(space.extents.is_empty());
}

#[test]
fn a_tebibyte_takes_few_extents() {
    let mut space = Space::new(2000);
    cost(&mut space, map(3 * M, 1024 * G, G));
    assert_eq!(space.extents.len(), 65);
    let mut space = Space::new(2000);
    for i in 0..1024 * 1024 {
        if i % 1024 < 3 || i % 1024 > 1020 {
            cost(&mut space, map(i * M, M, G + i * M));
        } else if i % 1024 == 3 {
            cost(&mut space, map(i * M, 1018 * M, G + i * M));
        }
    }
    assert_eq!(space.extents.len(), 1024);
}

#[test]
fn when_ids_run_short_more_is_joined() {
    let mut space = Space::new(2);
    cost(&mut space, map(0, G, 5 * G));
    cost(&mut space, map(G, G, 6 * G));
    assert_eq!(space.extents.len(), 2);
    // A third extent is not possible, but a larger one is.
    cost(&mut space, map(2 * G, M, 7 * G));
    assert_eq!(space.extents.len(), 2);
    let before = space.clone();
    assert_eq!(space.apply(map(20 * G, M, 7 * G)), None);
    assert_eq!(space.apply(unmap(M, M)), None);
    assert_eq!(space, before);
    // Larger extents have an end, too.
    cost(&mut space, map(2 * G, 14 * G, 7 * G));
    assert_eq!(space.apply(map(16 * G, M, 21 * G)), None);
    // Replacing takes no further id.
    cost(&mut space, map(0, G, 30 * G));
}

#[derive(Clone, Copy, Debug)]
struct Op {
    at: usize,
    length: usize,
    /// Which memory: most operations map unit i to unit i of it.
    to: Option<(u64, u64)>,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let to = prop_oneof![
        2 => Just(None),
        6 => (0u64..2).prop_map(|memory| Some((memory, 0))),
        2 => (0u64..2, 0u64..4).prop_map(Some),
    ];
    let op = (0..UNITS, 1..12usize, to).prop_map(|(at, length, to)| Op {
        at,
        length: length.min(UNITS - at),
        to,
    });
    proptest::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn extents_say_what_an_array_of_segments_says(
        ops in ops(),
        ids in prop_oneof![Just(4u16), Just(7), Just(100)],
        unit in prop_oneof![Just(M), Just(256 * M), Just(512 * M), Just(4 * G)],
    ) {
        let mut space = Space::new(ids);
        let mut array = [None; UNITS];
        for op in ops {
            let at = op.at as u64 * unit;
            let hva = |i: usize| {
                let (memory, shift) = op.to?;
                Some((memory << 44) + (i as u64 + shift + 1) * unit)
            };
            let length = op.length as u64 * unit;
            let change = Change::new(at, length, hva(op.at)).expect("a valid range");
            let before = space.clone();
            let units = op.at..op.at + op.length;
            let changed: Vec<_> = units.filter(|&i| array[i] != hva(i)).collect();
            let Some(entries) = space.apply(change) else {
                prop_assert_eq!(&space, &before);
                // A change takes up to two extents more than there are, and one for each limit.
                let limits = (length / (EXTENT_PAGES << 12)) as usize + 1;
                prop_assert!(space.extents.len() + 2 + limits > usize::from(ids));
                continue;
            };
            for &i in &changed {
                array[i] = hva(i);
            }
            for (i, hva) in array.iter().enumerate() {
                let gpa = i as u64 * unit;
                prop_assert_eq!(space.hva(gpa), *hva);
                prop_assert_eq!(space.hva(gpa + unit - M), hva.map(|hva| hva + unit - M));
            }
            prop_assert_eq!(entries.is_empty(), changed.is_empty());
            // Extents that neither overlap nor follow what has changed stay.
            if let (Some(first), Some(last)) = (changed.first(), changed.last()) {
                let (start, end) = (*first as u64 * unit, (*last as u64 + 1) * unit);
                for extent in before.extents.values() {
                    let gfns = extent.mapping.gfns;
                    if gfns.end.0 << 12 < start || gfns.start.0 << 12 > end {
                        prop_assert_eq!(space.extents.get(&gfns.start.0), Some(extent));
                    }
                }
            }
        }
    }
}

#[test]
fn limits_are_multiples_of_segments() {
    assert_eq!((JOIN_PAGES << 12) % SEGMENT_SIZE, 0);
    assert_eq!((EXTENT_PAGES << 12) % (JOIN_PAGES << 12), 0);
}
