// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A model of a guest whose memory a [`Cursor`] populates.

use std::collections::VecDeque;

use kvm_memory_host_tests::populate::cursor::{
    Attempt, Cursor, Populate, Section, SECTION_PAGES, SECTION_STEPS,
};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};

pub const PAGE: u64 = 4096;
pub const MAX_GFN: Gfn = Gfn((1 << 40) - 1);

/// How an attempt fails.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    Retry,
    Updating,
    Fails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Fails,
    Signal,
    WaitFails,
}

/// What fails. The numbers count the successes of the same kind before each failure.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub attempts: VecDeque<(u32, Trouble)>,
    /// A signal is pending at the start of the section.
    pub sections: VecDeque<u32>,
    /// The wait for an update fails.
    pub waits: VecDeque<u32>,
}

/// Whether the next failure is due; counts down to it.
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

/// The numbers of the sections in which a frame was last filled and last mapped, 0 if
/// never. Memslot updates happen between sections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    pub filled: u64,
    pub mapped: u64,
}

/// A guest in which every frame has a memslot. It asserts that each step is allowed.
pub struct Guest {
    base: u64,
    pub frames: Vec<Frame>,
    source: Option<u64>,
    /// Sizes of pages, powers of two, which alternate in the guest's memory.
    page_sizes: Vec<u64>,
    /// Most pages that one call fills.
    pub fills: u64,
    /// Most small pages that one call maps.
    pub maps: u64,
    pub script: Script,

    in_section: bool,
    pub sections: u64,
    pub waits: u64,
    /// Steps of this section.
    steps: u64,
    /// The first frame that it tried to map.
    first: Option<Gfn>,
    /// The frame with which the section was to begin.
    announced: Option<Gfn>,
    /// Whether an attempt of this section has failed.
    troubled: bool,
    /// Whether the last attempt returned that an update is in progress.
    pub updating: bool,
    pub largest_page: u64,
}

impl Guest {
    pub fn new(base: u64, npages: u64, source: Option<u64>, page_sizes: &[u64]) -> Self {
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

    pub fn cursor(&self) -> Cursor {
        let npages = self.frames.len() as u64;
        Cursor::new(Gfn(self.base), npages, self.source.unwrap_or(0), MAX_GFN)
            .expect("a valid range")
    }

    /// Number of frames from `gfn` to the end of its page.
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
        assert!(!self.troubled, "a section continues after it had to end");
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
            "a section takes too many steps"
        );
        let first = *self.first.get_or_insert(gfn);
        assert_eq!(self.announced, Some(first));
        assert!(
            gfn.0 - first.0 < SECTION_PAGES,
            "a section covers too many pages"
        );
    }

    /// Whether a frame is populated: contents and mapping are of the same memslot.
    fn is_done(&self, frame: &Frame) -> bool {
        frame.mapped != 0 && (self.source.is_none() || frame.filled == frame.mapped)
    }

    /// Asserts that `cursor` is exactly what is left.
    pub fn check(&self, cursor: &Cursor) {
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

    fn begin_section(&mut self, gfns: GfnRange, source: Option<Hva>) -> Result<Lasting<'_>, Error> {
        assert!(!self.in_section, "sections do not nest");
        assert!((1..=SECTION_STEPS).contains(&(gfns.end.0 - gfns.start.0)));
        assert!(gfns.end.0 <= self.base + self.frames.len() as u64);
        assert!(!self.updating, "a section begins during an update");
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

pub struct Lasting<'a> {
    guest: &'a mut Guest,
    /// End (exclusive) of the frames that are filled.
    filled: Gfn,
}

impl Section for Lasting<'_> {
    type Error = Error;

    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt, Error> {
        let guest = &mut *self.guest;
        let from = guest
            .source
            .expect("a call without a source keeps the contents");
        assert_eq!(source.0, from + (gfn.0 - guest.base) * PAGE);
        assert!(self.filled <= gfn, "a frame is filled twice");
        let section = guest.sections;
        // Any number up to the limit.
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
        assert!(filled, "a frame is mapped before it is filled");
        let section = guest.sections;
        guest.frame(Gfn(gfn.0 + npages - 1));
        assert!(
            guest.frame(gfn).mapped != section,
            "a frame is mapped twice"
        );
        let page = guest.page_from(gfn.0);
        guest.largest_page = guest.largest_page.max(page);
        // Any number of small pages up to the limit.
        let small = (0..npages).take_while(|i| guest.page_from(gfn.0 + i) == 1);
        let small = (small.count() as u64).min(1 + gfn.0 % guest.maps);
        let mapped = page.max(small);
        guest.steps += if mapped > npages { 1 } else { mapped };
        let attempt = guest.attempt(mapped)?;
        if attempt == Attempt::Done(mapped) {
            // A huge page may reach beyond the range.
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
