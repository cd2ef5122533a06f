// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/populate/cursor.rs`, on a guest that is not there.

use std::collections::VecDeque;

use kvm_memory_host_tests::populate::cursor::{
    Attempt, Cursor, Populate, Section, Stop, CALL_PAGES, SECTION_PAGES, SECTION_STEPS,
};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const SOURCE: u64 = 0x7f00_0000_0000;
const MAX_GFN: Gfn = Gfn((1 << 40) - 1);

/// How an attempt ends that does not succeed.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Retry,
    Updating,
    Fails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    Fails,
    Signal,
    WaitFails,
}

/// What goes wrong, and after how many others of its kind that go well.
#[derive(Clone, Debug, Default)]
struct Script {
    attempts: VecDeque<(u32, Trouble)>,
    /// A signal is pending.
    sections: VecDeque<u32>,
    /// The wait for an update fails.
    waits: VecDeque<u32>,
}

fn due(gap: Option<&mut u32>) -> bool {
    match gap {
        None => false,
        Some(0) => true,
        Some(gap) => {
            *gap -= 1;
            false
        }
    }
}

/// What is known of a frame: the number of the section in which it was last
/// filled or mapped, 0 if never. Sections are what memslot updates come between.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    filled: u64,
    mapped: u64,
}

/// A guest whose every frame has a memslot, and that does not let itself be
/// populated otherwise than it should be.
struct Guest {
    base: u64,
    frames: Vec<Frame>,
    source: Option<u64>,
    /// Sizes of pages, powers of two, that the guest's memory has by turns.
    page_sizes: Vec<u64>,
    /// Pages that it fills at a time at most.
    fills: u64,
    /// Small pages that it maps at a time at most.
    maps: u64,
    script: Script,

    in_section: bool,
    sections: u64,
    waits: u64,
    /// Frames that this section tried to map.
    steps: u64,
    /// The first of them.
    first: Option<Gfn>,
    /// With what it said that it would begin.
    announced: Option<Gfn>,
    /// Whether an attempt of this section did not succeed.
    troubled: bool,
    /// The last attempt said that there is an update.
    updating: bool,
    largest_page: u64,
}

impl Guest {
    fn new(base: u64, npages: u64, source: Option<u64>, page_sizes: &[u64]) -> Self {
        Self {
            base,
            frames: vec![Frame::default(); npages as usize],
            source,
            page_sizes: page_sizes.to_vec(),
            fills: 1,
            maps: 1,
            script: Script::default(),
            in_section: false,
            sections: 0,
            waits: 0,
            steps: 0,
            first: None,
            announced: None,
            troubled: false,
            updating: false,
            largest_page: 0,
        }
    }

    fn cursor(&self) -> Cursor {
        let npages = self.frames.len() as u64;
        Cursor::new(Gfn(self.base), npages, self.source.unwrap_or(0), MAX_GFN)
            .expect("a valid range")
    }

    /// Frames of the page that `gfn` is in, as far as they come after it.
    fn page_from(&self, gfn: u64) -> u64 {
        let largest = self.page_sizes.iter().max().expect("a page size");
        let turn = gfn / largest % self.page_sizes.len() as u64;
        let size = self.page_sizes[turn as usize];
        size - gfn % size
    }

    fn frame(&mut self, gfn: Gfn) -> &mut Frame {
        let index = gfn.0.checked_sub(self.base).expect("a frame of the range");
        &mut self.frames[index as usize]
    }

    fn attempt(&mut self, npages: u64) -> Result<Attempt, Error> {
        assert!(self.in_section);
        assert!(!self.troubled, "a section goes on after it had to end");
        if !due(self.script.attempts.front_mut().map(|(gap, _)| gap)) {
            return Ok(Attempt::Done(npages));
        }
        self.troubled = true;
        match self.script.attempts.pop_front() {
            Some((_, Trouble::Updating)) => {
                self.updating = true;
                Ok(Attempt::Updating)
            }
            Some((_, Trouble::Fails)) => Err(Error::Fails),
            Some((_, Trouble::Retry)) | None => Ok(Attempt::Retry),
        }
    }

    fn step(&mut self, gfn: Gfn, npages: u64) {
        assert!(
            (1..=SECTION_STEPS - self.steps).contains(&npages),
            "a section that is too long"
        );
        let first = *self.first.get_or_insert(gfn);
        assert_eq!(self.announced, Some(first));
        assert!(
            gfn.0 - first.0 < SECTION_PAGES,
            "a section that is too large"
        );
    }

    /// Whether a frame is populated: contents and mapping are of the same memslot.
    fn is_done(&self, frame: &Frame) -> bool {
        frame.mapped != 0 && (self.source.is_none() || frame.filled == frame.mapped)
    }

    /// `cursor` is what is left, to the page.
    fn check(&self, cursor: &Cursor) {
        let end = self.base + self.frames.len() as u64;
        assert_eq!(cursor.base().0 + cursor.npages(), end);
        let done = cursor.base().0 - self.base;
        match self.source {
            None => assert_eq!(cursor.source(), 0),
            Some(source) => assert_eq!(cursor.source(), source + done * PAGE),
        }
        let mut frames = self.frames.iter();
        let first = frames.position(|frame| !self.is_done(frame));
        let first = first.unwrap_or(self.frames.len()) as u64;
        assert_eq!(first, done);
        assert!(!self.in_section);
    }
}

impl Populate for Guest {
    type Error = Error;
    type Section<'s> = Lasting<'s>;

    fn section(&mut self, gfns: GfnRange, source: Option<Hva>) -> Result<Lasting<'_>, Error> {
        assert!(!self.in_section, "sections do not nest");
        assert!((1..=SECTION_STEPS).contains(&(gfns.end.0 - gfns.start.0)));
        assert!(gfns.end.0 <= self.base + self.frames.len() as u64);
        assert!(!self.updating, "the update is waited for first");
        let from = |from| from + (gfns.start.0 - self.base) * PAGE;
        assert_eq!(source.map(|source| source.0), self.source.map(from));
        if due(self.script.sections.front_mut()) {
            self.script.sections.pop_front();
            return Err(Error::Signal);
        }
        self.sections += 1;
        self.in_section = true;
        self.troubled = false;
        self.steps = 0;
        self.first = None;
        self.announced = Some(gfns.start);
        Ok(Lasting {
            guest: self,
            filled: Gfn(0),
        })
    }

    fn wait_for_update(&mut self) -> Result<(), Error> {
        assert!(!self.in_section, "an update cannot end in a section");
        assert!(self.updating, "there is no update to wait for");
        self.updating = false;
        self.waits += 1;
        if due(self.script.waits.front_mut()) {
            self.script.waits.pop_front();
            return Err(Error::WaitFails);
        }
        Ok(())
    }
}

struct Lasting<'a> {
    guest: &'a mut Guest,
    /// The frame behind those that were filled.
    filled: Gfn,
}

impl Section for Lasting<'_> {
    type Error = Error;

    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt, Error> {
        let guest = &mut *self.guest;
        let from = guest.source.expect("contents are to stay as they are");
        assert_eq!(source.0, from + (gfn.0 - guest.base) * PAGE);
        assert!(self.filled <= gfn, "filled already");
        let section = guest.sections;
        // As many as it likes.
        let n = npages.min(1 + gfn.0 % guest.fills);
        guest.frame(Gfn(gfn.0 + npages - 1));
        let attempt = guest.attempt(n)?;
        if attempt == Attempt::Done(n) {
            for i in 0..n {
                guest.frame(Gfn(gfn.0 + i)).filled = section;
            }
            self.filled = Gfn(gfn.0 + n);
        }
        Ok(attempt)
    }

    fn map(&mut self, gfn: Gfn, npages: u64) -> Result<Attempt, Error> {
        let guest = &mut *self.guest;
        guest.step(gfn, npages);
        let filled = guest.source.is_none() || gfn.0 + npages <= self.filled.0;
        assert!(filled, "mapped before it is filled");
        let section = guest.sections;
        guest.frame(Gfn(gfn.0 + npages - 1));
        assert!(guest.frame(gfn).mapped != section, "mapped already");
        let page = guest.page_from(gfn.0);
        guest.largest_page = guest.largest_page.max(page);
        // As many small pages as it likes.
        let small = (0..npages).take_while(|i| guest.page_from(gfn.0 + i) == 1);
        let small = (small.count() as u64).min(1 + gfn.0 % guest.maps);
        let mapped = page.max(small);
        guest.steps += if mapped > npages { 1 } else { mapped };
        let attempt = guest.attempt(mapped)?;
        if attempt == Attempt::Done(mapped) {
            // It may reach beyond the range.
            let first = (gfn.0 - guest.base) as usize;
            let left = guest.frames.len() - first;
            for frame in &mut guest.frames[first..][..left.min(mapped as usize)] {
                frame.mapped = section;
            }
        }
        Ok(attempt)
    }
}

impl Drop for Lasting<'_> {
    fn drop(&mut self) {
        self.guest.in_section = false;
    }
}

/// Calls until all is populated, as userspace would, and says how often.
fn populate(guest: &mut Guest) -> Vec<Stop<Error>> {
    let mut stops = Vec::new();
    let mut cursor = guest.cursor();
    loop {
        let before = cursor.npages();
        let result = cursor.run(guest);
        guest.updating = false;
        guest.check(&cursor);
        let done = before - cursor.npages();
        // Its last section may begin right before the end.
        assert!(
            done < CALL_PAGES + SECTION_PAGES + guest.largest_page,
            "a call that is too long: {done} pages"
        );
        match result {
            Ok(()) => {
                assert_eq!(cursor.npages(), 0);
                return stops;
            }
            Err(stop) => stops.push(stop),
        }
        // Through the struct of the ioctl.
        let again = Cursor::new(cursor.base(), cursor.npages(), cursor.source(), MAX_GFN);
        assert_eq!(again, Some(cursor));
    }
}

#[test]
fn ranges_that_are_none_are_refused() {
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
    // The highest frame that there is has none behind it that could be named.
    assert_eq!(Cursor::new(Gfn(u64::MAX), 1, 0, Gfn(u64::MAX)), None);
    let all_but_that = Cursor::new(Gfn(u64::MAX - 1), 1, 0, Gfn(u64::MAX));
    assert_eq!(all_but_that.map(|cursor| cursor.npages()), Some(1));
    // More bytes than an address can have, whoever can address the frames.
    assert_eq!(Cursor::new(Gfn(0), 1 << 52, PAGE, Gfn(u64::MAX)), None);
}

#[test]
fn a_section_is_so_many_pages_or_a_few_huge_ones() {
    let steps = SECTION_STEPS;
    for (page_size, source, sections) in [
        (1, None, 8),
        // Not huge: no larger than what may be mapped at a time.
        (2, None, 8 * 2),
        // They come to SECTION_PAGES first.
        (128, None, 8 * steps * 128 / SECTION_PAGES),
        (512, None, 8 * steps * 512 / SECTION_PAGES),
        (1 << 13, None, 8 * steps),
        (1, Some(SOURCE), 8),
        // Each of its pages is a step of its own.
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
        // The first pages are small, so that huge ones come at any part of the share.
        let mut guest = Guest::new(page_size - 5, 4 << 18, None, &[page_size]);
        let stops = populate(&mut guest);
        assert!(!stops.is_empty());
        assert!(stops.iter().all(|stop| *stop == Stop::Again));
    }
}

#[test]
fn a_share_is_a_share_exactly() {
    for (npages, calls) in [(CALL_PAGES, 1), (CALL_PAGES + 1, 2), (3 * CALL_PAGES, 3)] {
        for source in [None, Some(SOURCE)] {
            let mut guest = Guest::new(0x1000, npages, source, &[1]);
            assert_eq!(populate(&mut guest), vec![Stop::Again; calls - 1]);
        }
    }
}

/// So many attempts in a row.
fn only(trouble: Trouble, n: u64) -> Script {
    Script {
        attempts: (0..n).map(|_| (0, trouble)).collect(),
        ..Script::default()
    }
}

#[test]
fn a_call_does_not_try_forever() {
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
fn a_signal_leaves_what_is_not_done() {
    let mut guest = Guest::new(7, 200, Some(SOURCE), &[1]);
    guest.script.sections = [0, 2].into();
    let mut cursor = guest.cursor();
    for left in [200, 200 - 2 * SECTION_STEPS] {
        assert_eq!(cursor.run(&mut guest), Err(Stop::Failed(Error::Signal)));
        assert_eq!(cursor.npages(), left);
        guest.check(&cursor);
    }
    assert_eq!(cursor.run(&mut guest), Ok(()));
    // Nothing is left, so there is nothing that a signal could end.
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
fn a_page_that_was_filled_only_is_filled_again() {
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
    // Often in a row, or in the same section, sometimes far apart.
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
    /// Whatever happens: the guest is content with each step (its assertions),
    /// what is left is exact after every stop, and going on comes to an end in
    /// which every page is done. Only what the script has is reported.
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

        // In one go and undisturbed it comes to the same.
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
