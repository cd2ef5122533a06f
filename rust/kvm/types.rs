// SPDX-License-Identifier: GPL-2.0-only

//! The words that memslots are described in: frame numbers, slot ids, flags.
//!
//! Nothing here knows the kernel: this file and `check.rs` are compiled and tested on the host too.
//! All arithmetic on values that userspace chose is checked; ranges are half-open.

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
    /// The first.
    pub start: Gfn,
    /// The first behind.
    pub end: Gfn,
}

impl GfnRange {
    /// `npages` frames from `start`; [`None`] if they wrap around.
    pub const fn new(start: Gfn, npages: u64) -> Option<Self> {
        match start.0.checked_add(npages) {
            Some(end) => Some(Self {
                start,
                end: Gfn(end),
            }),
            None => None,
        }
    }

    /// The frames of both.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}
