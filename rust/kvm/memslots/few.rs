// SPDX-License-Identifier: GPL-2.0-only

//! A vector that allocates nothing for its first element.
//!
//! A single update is a batch of one entry. It would spend more time on allocating and freeing vectors
//! of one element than on its own work.

use core::{
    iter::{
        Chain,
        Flatten, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    option,
    slice, //
};

use kernel::{
    alloc::{
        flags::GFP_KERNEL_ACCOUNT,
        AllocError, //
    },
    prelude::*, //
};

/// A vector of any length.
pub(super) enum Few<T> {
    /// At most one element.
    Inline(Option<T>),
    /// Any number of elements.
    Many(KVVec<T>),
}

impl<T> Few<T> {
    pub(super) const fn new() -> Self {
        Self::Inline(None)
    }

    /// Returns an empty vector to which `n` elements can be added without allocating.
    pub(super) fn with_capacity(n: usize) -> Result<Self, AllocError> {
        if n <= 1 {
            return Ok(Self::new());
        }
        Ok(Self::Many(KVVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?))
    }

    /// Returns a vector of `n` elements that are `value`.
    pub(super) fn from_elem(value: T, n: usize) -> Result<Self, AllocError>
    where
        T: Clone,
    {
        match n {
            0 => Ok(Self::new()),
            1 => Ok(Self::Inline(Some(value))),
            n => Ok(Self::Many(KVVec::from_elem(value, n, GFP_KERNEL_ACCOUNT)?)),
        }
    }

    pub(super) fn push(&mut self, value: T) -> Result<(), AllocError> {
        match self {
            Self::Inline(one @ None) => *one = Some(value),
            Self::Inline(one) => {
                let mut many = KVVec::with_capacity(4, GFP_KERNEL_ACCOUNT)?;
                if let Some(first) = one.take() {
                    many.push(first, GFP_KERNEL_ACCOUNT)?;
                }
                many.push(value, GFP_KERNEL_ACCOUNT)?;
                *self = Self::Many(many);
            }
            Self::Many(many) => many.push(value, GFP_KERNEL_ACCOUNT)?,
        }
        Ok(())
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Inline(one) => one.as_slice(),
            Self::Many(many) => many,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Inline(one) => one.as_mut_slice(),
            Self::Many(many) => many,
        }
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = Chain<option::IntoIter<T>, Flatten<option::IntoIter<KVVec<T>>>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self {
            Self::Inline(one) => (one, None),
            Self::Many(many) => (None, Some(many)),
        };
        Iterator::chain(one.into_iter(), many.into_iter().flatten())
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut Few<T> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

#[kernel::macros::kunit_tests(kvm_memory_few)]
mod tests {
    use super::*;

    use kernel::sync::Arc;

    #[test]
    fn few_has_what_was_added() -> Result {
        for capacity in [0, 1, 3] {
            let mut few = Few::with_capacity(capacity)?;
            for n in 0..9u32 {
                assert_eq!(few.len(), n as usize);
                few.push(n)?;
            }
            few[0] = 100;
            assert!(few.iter().copied().eq([100, 1, 2, 3, 4, 5, 6, 7, 8]));
            assert_eq!(few.into_iter().map(u64::from).sum::<u64>(), 136);
        }
        Ok(())
    }

    #[test]
    fn few_repeats_an_element() -> Result {
        for n in [0, 1, 2, 100] {
            let few = Few::from_elem(7u8, n)?;
            assert_eq!(few.len(), n);
            assert!(few.iter().all(|&value| value == 7));
        }
        Ok(())
    }

    #[test]
    fn few_drops_each_element_once() -> Result {
        let counted = Arc::new((), GFP_KERNEL_ACCOUNT)?;
        for n in 0..4 {
            let mut few = Few::new();
            for _ in 0..n {
                few.push(counted.clone())?;
            }
            let mut rest = few.into_iter();
            drop(rest.next());
            drop(rest);
        }
        assert!(Arc::into_unique_or_drop(counted).is_some());
        Ok(())
    }
}
