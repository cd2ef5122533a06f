// SPDX-License-Identifier: GPL-2.0-only

//! Guest frame numbers, host virtual addresses, and ranges of frames.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too. Ranges
//! are half-open. Arithmetic on values that userspace chose is checked.

/// Log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A guest frame number: a guest physical address in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gfn(pub u64);

/// A host virtual address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hva(pub u64);

/// The guest frames `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfnRange {
    /// Start (inclusive).
    pub start: Gfn,
    /// End (exclusive).
    pub end: Gfn,
}

impl GfnRange {
    /// Returns the `npages` frames from `start`, or [`None`] if the end overflows.
    pub const fn new(start: Gfn, npages: u64) -> Option<Self> {
        match start.0.checked_add(npages) {
            Some(end) => Some(Self {
                start,
                end: Gfn(end),
            }),
            None => None,
        }
    }

    /// Returns the number of frames.
    pub const fn npages(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Returns whether all frames of `other`, which has some, are in this range.
    pub fn contains(self, other: Self) -> bool {
        self.intersection(other) == Some(other)
    }

    /// Returns the frames that both ranges contain, or [`None`] if there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}
