// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_MAP_MEMORY`: what is left to populate, and how it is divided into chunks.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.
//!
//! A call populates one chunk in each read section of `kvm->srcu`. No memslot update completes
//! during a section, so a chunk is small whatever the size of the range: [`SECTION_STEPS`] pages,
//! or up to [`SECTION_PAGES`] where pages are huge. A call as a whole is bounded by [`CALL_PAGES`],
//! and then asks its caller to call again.
//!
//! The [`Cursor`] only advances past completed frames, so it always describes what is left.
//! Resuming there is correct even if memslots have changed meanwhile: the contents of a page and its
//! mapping are made in the same section, or both are made again.

use crate::types::{
    Gfn,
    GfnRange,
    Hva,
    PAGE_SHIFT,
    PAGE_SIZE, //
};

/// Pages after which a section ends. A huge page counts as one.
pub const SECTION_STEPS: u64 = 64;

/// Pages of 4 KiB after which a section ends. Four huge pages of 2 MiB fit, so that the cost of
/// mapping them outweighs that of entering the section.
pub const SECTION_PAGES: u64 = 4 * 512;

/// Pages of 4 KiB after which a call returns [`Stop::Again`].
pub const CALL_PAGES: u64 = 1 << 16;

/// The outcome of an attempt to fill or map pages, unless it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// This many pages are done.
    Done(u64),
    /// Something changed concurrently. Retry in another section.
    Retry,
    /// The memslot is being deleted or moved. Retry after the memslot update.
    Updating,
}

/// Why a call ended before it had populated the whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// It has used up its budget of [`CALL_PAGES`]. The caller must call again.
    Again,
    /// A section, an attempt or a wait returned this error.
    Failed(E),
}

/// What [`Cursor::run`] works on: a vCPU, or a model of one in tests.
pub trait Populate {
    /// Errors that end the call.
    type Error;
    /// See [`Self::begin_section`].
    type Section<'s>: Section<Error = Self::Error>
    where
        Self: 's;

    /// Begins a section, which ends when the result is dropped.
    ///
    /// `gfns` is what the section will work on, in this order; it may end early. `source` is where
    /// the contents of `gfns` start, if it fills them. Returns an error if the call must end here,
    /// for example because a signal is pending.
    fn begin_section(
        &mut self,
        gfns: GfnRange,
        source: Option<Hva>,
    ) -> Result<Self::Section<'_>, Self::Error>;

    /// Waits for the end of the memslot update that is in progress. Called outside sections.
    fn wait_for_update(&mut self) -> Result<(), Self::Error>;
}

/// A read section of `kvm->srcu`, during which no memslot update completes.
pub trait Section {
    /// Errors that end the call.
    type Error;

    /// Copies up to `npages` pages from user memory at `source` to the frames from `gfn`. Returns
    /// the number of pages that it has copied, at least 1.
    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt, Self::Error>;

    /// Maps the frames from `gfn`: up to `npages`, or more if a huge page maps them. Returns the
    /// number of frames that it has mapped, at least 1.
    fn map(&mut self, gfn: Gfn, npages: u64) -> Result<Attempt, Self::Error>;
}

/// What is left to populate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    gfns: GfnRange,
    source: Option<Hva>,
}

impl Cursor {
    /// Starts at `base`, with `npages` frames to populate. Their contents are copied from `source`,
    /// a user address in bytes, unless it is 0.
    ///
    /// Returns [`None`] if `npages` is 0, a frame is above `max_gfn`, or `source` is not page
    /// aligned or overflows.
    pub fn new(base: Gfn, npages: u64, source: u64, max_gfn: Gfn) -> Option<Self> {
        let gfns = GfnRange::new(base, npages)?;
        // `end` may be one above `max_gfn`.
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

    /// Returns the first frame that is left, or the end of the range if none is.
    pub const fn base(&self) -> Gfn {
        self.gfns.start
    }

    /// Returns the number of frames that are left.
    pub const fn npages(&self) -> u64 {
        self.gfns.npages()
    }

    /// Returns the user address of the contents of frame [`Self::base`], or 0 if contents are kept.
    pub const fn source(&self) -> u64 {
        match self.source {
            Some(source) => source.0,
            None => 0,
        }
    }

    /// Populates what is left, chunk by chunk. After an error, the cursor describes what is left.
    pub fn run<P: Populate>(&mut self, on: &mut P) -> Result<(), Stop<P::Error>> {
        let mut budget = CALL_PAGES;
        while self.npages() > 0 {
            if budget == 0 {
                return Err(Stop::Again);
            }
            let before = self.npages();
            let end = self.populate_chunk(on);
            // A section without progress counts too: otherwise retries could go on forever.
            budget = budget.saturating_sub((before - self.npages()).max(1));
            match end.map_err(Stop::Failed)? {
                Attempt::Done(_) | Attempt::Retry => {}
                Attempt::Updating => on.wait_for_update().map_err(Stop::Failed)?,
            }
        }
        Ok(())
    }

    /// Populates one chunk in a section of its own. The cursor may have advanced
    /// even if the result is not [`Attempt::Done`].
    fn populate_chunk<P: Populate>(&mut self, on: &mut P) -> Result<Attempt, P::Error> {
        let begin = self.gfns.start;
        let mut steps = SECTION_STEPS;
        let gfns = GfnRange {
            start: begin,
            end: Gfn(begin.0 + self.npages().min(steps)),
        };
        let mut section = on.begin_section(gfns, self.source)?;
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
            // A huge page may be mapped further than it is filled.
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
            // No overflow: `new` checked the end of the source.
            source.0 += npages << PAGE_SHIFT;
        }
    }
}
