// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/populate/cursor.rs`, on a model of a guest.

use kvm_memory_host_tests::populate::cursor::{
    Cursor, Stop, CALL_PAGES, SECTION_PAGES, SECTION_STEPS,
};
use kvm_memory_host_tests::types::Gfn;
use proptest::prelude::*;

use crate::guest::{Error, Guest, Script, Trouble, MAX_GFN, PAGE};

const SOURCE: u64 = 0x7f00_0000_0000;

/// Calls until all is populated, as userspace would. Returns why the calls ended early.
fn populate(guest: &mut Guest) -> Vec<Stop<Error>> {
    let mut stops = Vec::new();
    let mut cursor = guest.cursor();
    loop {
        let before = cursor.npages();
        let result = cursor.run(guest);
        guest.updating = false;
        guest.check(&cursor);
        let done = before - cursor.npages();
        // The last section may begin right before the limit.
        assert!(
            done < CALL_PAGES + SECTION_PAGES + guest.largest_page,
            "a call populates too many pages: {done}"
        );
        match result {
            Ok(()) => {
                assert_eq!(cursor.npages(), 0);
                return stops;
            }
            Err(stop) => stops.push(stop),
        }
        // The struct of the ioctl carries the cursor to the next call.
        let again = Cursor::new(cursor.base(), cursor.npages(), cursor.source(), MAX_GFN);
        assert_eq!(again, Some(cursor));
    }
}

#[test]
fn invalid_ranges_are_refused() {
    let max = Gfn(0xff);
    let new = |base, npages, source| Cursor::new(Gfn(base), npages, source, max);
    for (base, npages, source) in [
        (0, 0, 0),
        (0x10, 0, PAGE),
        (u64::MAX, 0, 0),
        (0, 0x101, 0),
        (0xff, 2, 0),
        (0x100, 1, 0),
        (u64::MAX, 1, 0),
        (u64::MAX, 2, 0),
        (1, u64::MAX, 0),
        (0, u64::MAX, 0),
        (0, 1, 1),
        (0, 1, PAGE - 1),
        (0, 1, PAGE + 8),
        (0, 1, 0u64.wrapping_sub(PAGE)),
        (0, 2, 0u64.wrapping_sub(PAGE)),
    ] {
        assert_eq!(
            new(base, npages, source),
            None,
            "{base:#x} {npages:#x} {source:#x}"
        );
    }
    for (base, npages, source) in [
        (0, 0x100, 0),
        (0xff, 1, 0),
        (0xff, 1, PAGE),
        (0, 2, 0u64.wrapping_sub(3 * PAGE)),
    ] {
        let cursor = new(base, npages, source).expect("a valid range");
        assert_eq!(cursor.base(), Gfn(base));
        assert_eq!((cursor.npages(), cursor.source()), (npages, source));
    }
    // The end (exclusive) of the highest frame does not fit into a frame number.
    assert_eq!(Cursor::new(Gfn(u64::MAX), 1, 0, Gfn(u64::MAX)), None);
    let one_below = Cursor::new(Gfn(u64::MAX - 1), 1, 0, Gfn(u64::MAX));
    assert_eq!(one_below.map(|cursor| cursor.npages()), Some(1));
    // The size in bytes does not fit into 64 bits, although the frames do.
    assert_eq!(Cursor::new(Gfn(0), 1 << 52, PAGE, Gfn(u64::MAX)), None);
}

#[test]
fn a_chunk_is_a_number_of_pages_or_a_few_huge_ones() {
    let steps = SECTION_STEPS;
    for (page_size, source, sections) in [
        (1, None, 8),
        // Not huge: no larger than what may be mapped at a time.
        (2, None, 8 * 2),
        // These reach SECTION_PAGES first.
        (128, None, 8 * steps * 128 / SECTION_PAGES),
        (512, None, 8 * steps * 512 / SECTION_PAGES),
        (1 << 13, None, 8 * steps),
        (1, Some(SOURCE), 8),
        // With a source, each page of 4 KiB is a step.
        (512, Some(SOURCE), 8 * 512),
    ] {
        let mut guest = Guest::new(0, 8 * steps * page_size, source, &[page_size]);
        let mut cursor = guest.cursor();
        while cursor.run(&mut guest) == Err(Stop::Again) {}
        guest.check(&cursor);
        assert_eq!(guest.sections, sections, "{page_size} {source:?}");
    }
}

#[test]
fn huge_pages_do_not_make_a_call_longer() {
    for page_size in [512, 1 << 18] {
        // Huge pages start after a few small ones, so that they do not divide the limit of a call.
        let mut guest = Guest::new(page_size - 5, 4 << 18, None, &[page_size]);
        let stops = populate(&mut guest);
        assert!(!stops.is_empty());
        assert!(stops.iter().all(|stop| *stop == Stop::Again));
    }
}

#[test]
fn a_call_populates_its_limit_exactly() {
    for (npages, calls) in [(CALL_PAGES, 1), (CALL_PAGES + 1, 2), (3 * CALL_PAGES, 3)] {
        for source in [None, Some(SOURCE)] {
            let mut guest = Guest::new(0x1000, npages, source, &[1]);
            assert_eq!(populate(&mut guest), vec![Stop::Again; calls - 1]);
        }
    }
}

/// `n` failures in a row.
fn only(trouble: Trouble, n: u64) -> Script {
    Script {
        attempts: (0..n).map(|_| (0, trouble)).collect(),
        ..Script::default()
    }
}

#[test]
fn a_call_does_not_retry_forever() {
    for source in [None, Some(SOURCE)] {
        for (trouble, waits) in [(Trouble::Retry, 0), (Trouble::Updating, CALL_PAGES)] {
            let mut guest = Guest::new(7, 3, source, &[1]);
            guest.script = only(trouble, CALL_PAGES + 1);
            let mut cursor = guest.cursor();
            assert_eq!(cursor.run(&mut guest), Err(Stop::Again));
            assert_eq!((guest.sections, guest.waits), (CALL_PAGES, waits));
            assert_eq!(cursor, guest.cursor());
            assert_eq!(cursor.run(&mut guest), Ok(()));
            guest.check(&cursor);
        }
    }
}

#[test]
fn after_a_signal_the_cursor_is_what_is_left() {
    let mut guest = Guest::new(7, 200, Some(SOURCE), &[1]);
    guest.script.sections = [0, 2].into();
    let mut cursor = guest.cursor();
    for left in [200, 200 - 2 * SECTION_STEPS] {
        assert_eq!(cursor.run(&mut guest), Err(Stop::Failed(Error::Signal)));
        assert_eq!(cursor.npages(), left);
        guest.check(&cursor);
    }
    assert_eq!(cursor.run(&mut guest), Ok(()));
    // Nothing is left, so no section begins that a signal could end.
    guest.script.sections = [0].into();
    assert_eq!(cursor.run(&mut guest), Ok(()));
}

#[test]
fn a_failure_is_reported_at_once_and_at_its_page() {
    // Attempts to fill and to map take turns.
    for (attempts, done) in [(0, 0), (1, 0), (2, 1), (7, 3)] {
        let mut guest = Guest::new(7, 5, Some(SOURCE), &[1]);
        guest.script.attempts = [(attempts, Trouble::Fails)].into();
        let mut cursor = guest.cursor();
        assert_eq!(cursor.run(&mut guest), Err(Stop::Failed(Error::Fails)));
        assert_eq!(cursor.base(), Gfn(7 + done));
        guest.check(&cursor);
    }
}

#[test]
fn a_page_that_was_filled_but_not_mapped_is_filled_again() {
    let mut guest = Guest::new(7, 1, Some(SOURCE), &[1]);
    guest.script.attempts = [(1, Trouble::Updating)].into();
    assert_eq!(populate(&mut guest), []);
    assert_eq!((guest.sections, guest.waits), (2, 1));
    assert_eq!((guest.frames[0].filled, guest.frames[0].mapped), (2, 2));
}

fn script() -> impl Strategy<Value = Script> {
    let trouble = prop_oneof![
        Just(Trouble::Retry),
        Just(Trouble::Updating),
        Just(Trouble::Fails)
    ];
    // Often in a row or in the same section, sometimes far apart.
    let gap = || prop_oneof![0..3u32, 0..200u32, 0..5000u32];
    let troubles = proptest::collection::vec((gap(), trouble), 0..40);
    let signals = proptest::collection::vec(0..40u32, 0..5);
    let waits = proptest::collection::vec(0..6u32, 0..3);
    (troubles, signals, waits).prop_map(|(attempts, sections, waits)| Script {
        attempts: attempts.into(),
        sections: sections.into(),
        waits: waits.into(),
    })
}

proptest! {
    /// For all scripts: the guest's assertions hold at each step, the cursor is exact
    /// after every stop, repeated calls populate every page, and only errors of the
    /// script are returned.
    #[test]
    fn all_is_populated_in_the_end(
        base in 0u64..1 << 20,
        npages in prop_oneof![6 => 1u64..200, 3 => 1u64..5000, 1 => CALL_PAGES - 100..2 * CALL_PAGES + 100],
        source in proptest::option::of((1u64..1 << 34).prop_map(|page| page * PAGE)),
        page_sizes in proptest::collection::vec((0u32..10).prop_map(|order| 1u64 << order), 1..5),
        fills in 1u64..100,
        maps in 1u64..100,
        script in script(),
    ) {
        let mut guest = Guest::new(base, npages, source, &page_sizes);
        guest.fills = fills;
        guest.maps = maps;
        guest.script = script.clone();
        let stops = populate(&mut guest);

        let count = |error| stops.iter().filter(|stop| **stop == Stop::Failed(error)).count();
        let fails = script.attempts.iter().zip(0..script.attempts.len() - guest.script.attempts.len())
            .filter(|((_, trouble), _)| matches!(trouble, Trouble::Fails))
            .count();
        prop_assert_eq!(count(Error::Fails), fails);
        prop_assert_eq!(count(Error::Signal), script.sections.len() - guest.script.sections.len());
        prop_assert_eq!(count(Error::WaitFails), script.waits.len() - guest.script.waits.len());

        // Without failures the result is the same.
        let mut other = Guest::new(base, npages, source, &page_sizes);
        let again = populate(&mut other);
        prop_assert!(again.iter().all(|stop| *stop == Stop::Again));
        prop_assert!(again.len() as u64 <= npages / CALL_PAGES);
        for (one, other) in guest.frames.iter().zip(&other.frames) {
            prop_assert!(one.mapped != 0 && other.mapped != 0);
            prop_assert_eq!(one.filled != 0, source.is_some());
            prop_assert_eq!(other.filled != 0, source.is_some());
        }
    }
}
