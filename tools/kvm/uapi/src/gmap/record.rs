// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Which part of which memory each segment of an address space is mapped to.

use std::collections::BTreeMap;
use std::ops::Range;

use super::memory::Part;

/// The extents of an address space, by guest physical address. They do not overlap.
#[derive(Debug, Default)]
pub(super) struct Record(BTreeMap<u64, Part>);

impl Record {
    /// The part that is mapped at `gpa`, from there to the end of its extent.
    pub(super) fn at(&self, gpa: u64) -> Option<Part> {
        let (start, part) = self.0.range(..=gpa).next_back()?;
        let by = gpa - start;
        (by < part.size()).then(|| part.sub_part(by, part.size() - by))
    }

    /// Notes that `part` is mapped at `gpa`, in place of what was there. Returns
    /// that: the kernel does not use it any more.
    pub(super) fn map(&mut self, gpa: u64, part: Part) -> Vec<Part> {
        let gone = self.unmap(gpa..gpa + part.size());
        self.0.insert(gpa, part);
        gone
    }

    /// Notes that nothing is mapped at these addresses. Returns what was.
    pub(super) fn unmap(&mut self, gpas: Range<u64>) -> Vec<Part> {
        let first = match self.0.range(..=gpas.start).next_back() {
            Some((&start, part)) if start + part.size() > gpas.start => start,
            _ => gpas.start,
        };
        let starts: Vec<u64> = self
            .0
            .range(first..gpas.end)
            .map(|(&start, _)| start)
            .collect();
        let mut gone = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(part) = self.0.remove(&start) else {
                continue;
            };
            let end = start + part.size();
            if start < gpas.start {
                self.0.insert(start, part.sub_part(0, gpas.start - start));
            }
            if end > gpas.end {
                let left = part.sub_part(gpas.end - start, end - gpas.end);
                self.0.insert(gpas.end, left);
            }
            gone.push(part);
        }
        gone
    }

    /// All addresses from the first to the last that are mapped.
    pub(super) fn span(&self) -> Option<Range<u64>> {
        let (&start, _) = self.0.first_key_value()?;
        let (last, part) = self.0.last_key_value()?;
        Some(start..last + part.size())
    }

    /// Takes all parts out.
    pub(super) fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.0).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::memory::{HostMemory, Memory};
    use super::super::SEGMENT_SIZE;
    use super::*;

    const SEGMENTS: usize = 16;

    fn addr(record: &Record, segment: usize) -> Option<u64> {
        Some(record.at(segment as u64 * SEGMENT_SIZE)?.userspace_addr())
    }

    proptest! {
        /// After each change the record says what a plain array of segments says.
        #[test]
        fn the_record_is_an_array(
            ops in proptest::collection::vec(
                (0..SEGMENTS, 1..6usize, proptest::option::of(0..SEGMENTS)), 0..60)
        ) {
            let memory: Arc<dyn HostMemory> =
                Arc::new(Memory::new(2 * SEGMENTS).expect("memory"));
            let base = memory.range().start;
            let mut record = Record::default();
            let mut array = [None; SEGMENTS + 6];
            for (at, nr, user) in ops {
                let (gpa, size) = (at as u64 * SEGMENT_SIZE, nr as u64 * SEGMENT_SIZE);
                let before = array[at..at + nr].iter().any(Option::is_some);
                let gone = match user {
                    Some(user) => {
                        let offset = user as u64 * SEGMENT_SIZE;
                        let part = Part::new(memory.clone(), offset, size).expect("inside");
                        record.map(gpa, part)
                    }
                    None => record.unmap(gpa..gpa + size),
                };
                prop_assert_eq!(!gone.is_empty(), before);
                for i in 0..nr {
                    array[at + i] = user.map(|user| base + (user + i) as u64 * SEGMENT_SIZE);
                }
                for (segment, &expected) in array.iter().enumerate() {
                    prop_assert_eq!(addr(&record, segment), expected);
                }
                let first = array.iter().position(Option::is_some);
                let last = array.iter().rposition(Option::is_some);
                let span = first.zip(last).map(|(first, last)| {
                    first as u64 * SEGMENT_SIZE..(last as u64 + 1) * SEGMENT_SIZE
                });
                prop_assert_eq!(record.span(), span);
            }
            record.take();
            prop_assert_eq!(record.span(), None);
            drop(record);
            // The record has kept no part of the memory.
            prop_assert_eq!(Arc::strong_count(&memory), 1);
        }

        /// Memory that is not mapped anywhere is not kept.
        #[test]
        fn memory_is_kept_as_long_as_it_is_mapped(at in 0..8u64, nr in 1..8u64) {
            let memory: Arc<dyn HostMemory> = Arc::new(Memory::new(8).expect("memory"));
            let mut record = Record::default();
            record.map(0, Part::all(memory.clone()).expect("whole"));
            drop(record.unmap(at * SEGMENT_SIZE..(at + nr) * SEGMENT_SIZE));
            let left = (0..8).any(|s| addr(&record, s).is_some());
            prop_assert_eq!(Arc::strong_count(&memory) > 1, left);
        }
    }
}
