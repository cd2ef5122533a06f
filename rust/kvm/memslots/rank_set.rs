// SPDX-License-Identifier: GPL-2.0-only

//! A set of small numbers that finds the neighbours of a number, in memory that the caller
//! provides.

/// A set of numbers below n that finds the neighbours of a number.
///
/// Level 0 holds a bit for each number, each level above a bit for each word below that is not 0.
pub struct RankSet<'a> {
    words: &'a mut [u64],
    n: usize,
}

impl<'a> RankSet<'a> {
    /// Words of memory that a set of numbers below `n` takes.
    pub const fn words(n: usize) -> usize {
        let mut level = n.div_ceil(64);
        let mut words = level;
        while level > 1 {
            level = level.div_ceil(64);
            words += level;
        }
        words
    }

    /// An empty set in `words`, which are all 0.
    pub(super) fn new(words: &'a mut [u64], n: usize) -> Self {
        Self { words, n }
    }

    /// Where in `words` the levels start, lowest first.
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

    /// The largest member below `i`.
    pub(super) fn before(&self, i: usize) -> Option<usize> {
        self.neighbour(
            i,
            |word, bit| word & ((1 << bit) - 1),
            |word| 63 - word.leading_zeros() as usize,
        )
    }

    /// The smallest member above `i`.
    pub(super) fn after(&self, i: usize) -> Option<usize> {
        self.neighbour(
            i,
            |word, bit| word & (!1 << bit),
            |word| word.trailing_zeros() as usize,
        )
    }

    /// Climbs until a word has a bit on the wanted side of `i` (`side`), then descends, taking the
    /// bit nearest to `i` in each word (`nearest`).
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
