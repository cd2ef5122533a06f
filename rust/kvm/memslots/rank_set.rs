// SPDX-License-Identifier: GPL-2.0-only

//! A set of numbers that finds the neighbours of a number.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.

/// A set of numbers from 0 to n - 1, in memory that the caller provides. Every operation takes
/// O(log n).
///
/// Level 0 has a bit for each number. Each level above has a bit for each word of the level below
/// that is not 0.
pub struct RankSet<'a> {
    words: &'a mut [u64],
    n: usize,
}

impl<'a> RankSet<'a> {
    /// Returns how many words a set of numbers from 0 to `n - 1` needs.
    pub const fn words(n: usize) -> usize {
        let mut level = n.div_ceil(64);
        let mut words = level;
        while level > 1 {
            level = level.div_ceil(64);
            words += level;
        }
        words
    }

    /// Makes an empty set. `words` must be [`Self::words`] words of 0.
    pub(super) fn new(words: &'a mut [u64], n: usize) -> Self {
        Self { words, n }
    }

    /// Returns the indices in `words` at which the levels start, lowest level first.
    fn levels(n: usize) -> impl Iterator<Item = usize> {
        let mut next = Some((0, n));
        core::iter::from_fn(move || {
            let (base, bits) = next?;
            let words = bits.div_ceil(64);
            next = (words > 1).then_some((base + words, words));
            Some(base)
        })
    }

    pub(super) fn insert(&mut self, mut i: usize) {
        for base in Self::levels(self.n) {
            self.words[base + i / 64] |= 1 << (i % 64);
            i /= 64;
        }
    }

    pub(super) fn remove(&mut self, mut i: usize) {
        for base in Self::levels(self.n) {
            let word = &mut self.words[base + i / 64];
            *word &= !(1 << (i % 64));
            if *word != 0 {
                break;
            }
            i /= 64;
        }
    }

    /// Returns the largest member below `i`.
    pub(super) fn before(&self, i: usize) -> Option<usize> {
        self.neighbour(
            i,
            |word, bit| word & ((1 << bit) - 1),
            |word| 63 - word.leading_zeros() as usize,
        )
    }

    /// Returns the smallest member above `i`.
    pub(super) fn after(&self, i: usize) -> Option<usize> {
        self.neighbour(
            i,
            |word, bit| word & (!1 << bit),
            |word| word.trailing_zeros() as usize,
        )
    }

    /// Climbs until a word has a bit on the wanted side of `i`, then descends along the bits nearest
    /// to `i`. `side` masks a word to that side of a bit; `nearest` returns the nearest bit in it.
    fn neighbour(
        &self,
        mut i: usize,
        side: impl Fn(u64, usize) -> u64,
        nearest: impl Fn(u64) -> usize,
    ) -> Option<usize> {
        for (height, base) in Self::levels(self.n).enumerate() {
            let word = side(self.words[base + i / 64], i % 64);
            i /= 64;
            if word == 0 {
                continue;
            }
            let mut found = i * 64 + nearest(word);
            for down in (0..height).rev() {
                let base = Self::levels(self.n).nth(down)?;
                found = found * 64 + nearest(self.words[base + found]);
            }
            return Some(found);
        }
        None
    }
}
