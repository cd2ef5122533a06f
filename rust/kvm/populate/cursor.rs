// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_MAP_MEMORY`: what is left to populate, and in which portions it is done.
//!
//! Nothing here knows the kernel: like `check.rs`, this file is compiled and tested on the host
//! too.
//!
//! A call works in *sections*. While one lasts, no memslot update can end, so it is short, whatever
//! the size of the range: [`SECTION_STEPS`] pages, or [`SECTION_PAGES`] where they are huge. A call
//! as a whole is bounded as well ([`CALL_PAGES`]), and then tells its caller to call again.
//!
//! The [`Cursor`] moves on only over what is done. So it says at any time what is left, and doing
//! all that is left is right even if memslots have changed in between: a page's contents and its
//! mapping are made in the same section, or made again.

use crate::types::Gfn;
use crate::types::GfnRange;
use crate::types::Hva;
use crate::types::PAGE_SHIFT;
use crate::types::PAGE_SIZE;

/// Pages after which a section ends, a huge one counted as one.
pub const SECTION_STEPS: u64 = 64;

/// Pages after which a section ends, a huge one counted as what is in it: four of the smallest huge
/// pages, so that entering a section is not what mapping these costs.
pub const SECTION_PAGES: u64 = 4 * 512;

/// Pages after which a call returns, to be made again.
pub const CALL_PAGES: u64 = 1 << 16;

/// How an attempt at a page ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// So many pages are done.
    Done(u64),
    /// Something else changed at the same moment. To be tried again, in another section.
    Retry,
    /// The memslot is being deleted or moved. To be tried again when that is over.
    Updating,
}

/// Why a call ended before all was populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// It has done its share.
    Again,
    /// It cannot go on.
    Failed(E),
}

/// In whose name memory is populated.
pub trait Populate {
    /// What can go wrong.
    type Error;
    /// See [`Self::section`].
    type Section<'s>: Section<Error = Self::Error>
    where
        Self: 's;

    /// Begins a section, which ends when it is dropped. It will start with `gfns`, in this order,
    /// and may not come to the last of them; `source` is where their contents are, if they are to
    /// be filled. Fails if the call is to end here (a signal).
    fn section(
        &mut self,
        gfns: GfnRange,
        source: Option<Hva>,
    ) -> Result<Self::Section<'_>, Self::Error>;

    /// Waits for the end of the memslot update that is under way.
    fn wait_for_update(&mut self) -> Result<(), Self::Error>;
}

/// A time in which no memslot update can end.
pub trait Section {
    /// What can go wrong.
    type Error;

    /// Copies user memory from `source` on to frames from `gfn` on, at most `npages` of them. Gives
    /// the number that it has copied, not 0.
    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt, Self::Error>;

    /// Maps frames from `gfn` on, at most `npages` of them unless they are in one huge page. Gives
    /// the number that it has mapped, not 0.
    fn map(&mut self, gfn: Gfn, npages: u64) -> Result<Attempt, Self::Error>;
}

/// What is left to populate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    gfns: GfnRange,
    source: Option<Hva>,
}

impl Cursor {
    /// `npages` frames from `base`, with the contents of the memory at `source` unless that is 0.
    /// [`None`] if there are no frames, frames above `max_gfn`, or a source that is not aligned or
    /// wraps around.
    pub fn new(base: Gfn, npages: u64, source: u64, max_gfn: Gfn) -> Option<Self> {
        let gfns = GfnRange::new(base, npages)?;
        // `end` may be one more than the highest frame.
        let last = Gfn(gfns.end.0.checked_sub(1)?);
        if npages == 0 || last > max_gfn || source % PAGE_SIZE != 0 {
            return None;
        }
        let size = npages.checked_mul(PAGE_SIZE)?;
        let source = match source {
            0 => None,
            source => {
                source.checked_add(size)?;
                Some(Hva(source))
            }
        };
        Some(Self { gfns, source })
    }

    /// The first frame that is left, or the one behind the last.
    pub const fn base(&self) -> Gfn {
        self.gfns.start
    }

    /// The number of frames that are left.
    pub const fn npages(&self) -> u64 {
        self.gfns.end.0 - self.gfns.start.0
    }

    /// Where the contents of the first of them are, 0 if they stay as they are.
    pub const fn source(&self) -> u64 {
        match self.source {
            Some(source) => source.0,
            None => 0,
        }
    }

    /// Populates all that is left, as far as it gets.
    pub fn run<P: Populate>(&mut self, on: &mut P) -> Result<(), Stop<P::Error>> {
        let mut budget = CALL_PAGES;
        while self.npages() > 0 {
            if budget == 0 {
                return Err(Stop::Again);
            }
            let before = self.npages();
            let end = self.section(on);
            // A section without progress counts, too, or it could go on like that forever.
            budget = budget.saturating_sub((before - self.npages()).max(1));
            match end.map_err(Stop::Failed)? {
                Attempt::Done(_) | Attempt::Retry => {}
                Attempt::Updating => on.wait_for_update().map_err(Stop::Failed)?,
            }
        }
        Ok(())
    }

    fn section<P: Populate>(&mut self, on: &mut P) -> Result<Attempt, P::Error> {
        let begin = self.gfns.start;
        let mut steps = SECTION_STEPS;
        let gfns = GfnRange {
            start: begin,
            end: Gfn(begin.0 + self.npages().min(steps)),
        };
        let mut section = on.section(gfns, self.source)?;
        let (mut filled_to, mut mapped_to) = (begin, begin);
        while steps > 0 && self.npages() > 0 && self.gfns.start.0 - begin.0 < SECTION_PAGES {
            let gfn = self.gfns.start;
            let mut npages = self.npages().min(steps);
            if let Some(source) = self.source {
                if filled_to <= gfn {
                    match section.fill(gfn, source, npages)? {
                        Attempt::Done(filled) => filled_to = Gfn(gfn.0.saturating_add(filled)),
                        other => return Ok(other),
                    }
                }
                npages = npages.min(filled_to.0 - gfn.0);
            }
            if mapped_to <= gfn {
                match section.map(gfn, npages)? {
                    Attempt::Done(mapped) => mapped_to = Gfn(gfn.0.saturating_add(mapped)),
                    other => return Ok(other),
                }
            }
            let mapped = mapped_to.0 - gfn.0;
            // The rest of a huge page is mapped, but not filled.
            let done = if self.source.is_some() {
                mapped.min(npages)
            } else {
                mapped
            };
            steps -= if done > npages { 1 } else { done };
            self.advance(done);
        }
        Ok(Attempt::Done(self.gfns.start.0 - begin.0))
    }

    fn advance(&mut self, npages: u64) {
        let npages = npages.min(self.npages());
        self.gfns.start.0 += npages;
        if let Some(source) = &mut self.source {
            // Checked in `new`, for all of them.
            source.0 += npages << PAGE_SHIFT;
        }
    }
}
