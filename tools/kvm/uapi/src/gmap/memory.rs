// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Memory of this process that address spaces of vCPUs can map.

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use super::SEGMENT_SIZE;
use crate::reason::{Field, Reason};

/// Memory of this process that vCPUs may read and write at any time.
///
/// # Safety
///
/// From when it is created until it is dropped, [`range`](Self::range) must
/// return the same addresses, in which nothing else of this process is mapped,
/// and nothing may rely on their contents or hold a reference into them other
/// than to atomics.
pub unsafe trait HostMemory: Send + Sync {
    /// The user addresses of the memory.
    fn range(&self) -> Range<u64>;
}

/// Anonymous memory, aligned to [`SEGMENT_SIZE`]; zero at first.
///
/// # Example
///
/// ```
/// use std::sync::atomic::Ordering;
///
/// use kvm_memory_uapi::{Memory, SEGMENT_SIZE};
///
/// # fn main() -> std::io::Result<()> {
/// let memory = Memory::new(2)?;
/// assert_eq!(memory.size(), 2 * SEGMENT_SIZE);
/// let word = memory.word(0x1000).expect("inside");
/// word.store(7, Ordering::Relaxed);
/// assert!(memory.word(2 * SEGMENT_SIZE).is_none(), "beyond the end");
/// # Ok(())
/// # }
/// ```
///
/// # Invariants
///
/// `addr` is the start of `size` bytes of a mapping that nothing but this value
/// owns, and that is readable and writable.
pub struct Memory {
    addr: NonNull<u8>,
    size: usize,
}

// SAFETY: all accesses of this process are atomic.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

// SAFETY: by the invariant, the addresses stay mapped and stay the value's own, and
// it hands out references to atomics only.
unsafe impl HostMemory for Memory {
    fn range(&self) -> Range<u64> {
        let start = self.addr.as_ptr() as u64;
        start..start + self.size as u64
    }
}

impl Memory {
    /// Memory of this many segments of [`SEGMENT_SIZE`].
    ///
    /// # Errors
    ///
    /// The error of `mmap`; `InvalidInput` for no segments, or more than there
    /// are addresses.
    pub fn new(segments: usize) -> io::Result<Self> {
        let segment = SEGMENT_SIZE as usize;
        // The kernel aligns to pages only.
        let (size, all) = segments
            .checked_mul(segment)
            .and_then(|size| Some((size, size.checked_add(segment)?)))
            .filter(|_| segments > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(segment);
        // SAFETY: less than a segment from the start of a mapping with a segment
        // more than `size`.
        let addr = unsafe { start.add(before) };
        for (unused, len) in [
            (start, before),
            // SAFETY: the end of the aligned part, inside of the mapping.
            (unsafe { addr.add(size) }, segment - before),
        ] {
            if len > 0 {
                // SAFETY: this part of the new mapping is not used. If it stays
                // mapped, it only takes up addresses.
                unsafe { libc::munmap(unused.cast(), len) };
            }
        }
        let addr = NonNull::new(addr).ok_or(io::ErrorKind::OutOfMemory)?;
        // INVARIANT: the rest of the mapping is gone.
        Ok(Memory { addr, size })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// The word at `offset` bytes, to which vCPUs may write at the same time;
    /// `None` if it is not aligned or not inside.
    pub fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let offset = usize::try_from(offset).ok()?;
        if offset % 8 != 0 || offset.checked_add(8)? > self.size {
            return None;
        }
        // SAFETY: by the invariant, it is in memory that stays as long as `self`, and
        // it is aligned. All accesses are atomic.
        Some(unsafe { AtomicU64::from_ptr(self.addr.as_ptr().add(offset).cast()) })
    }

    /// Copies bytes to `offset`. Returns false, and copies nothing, if they are
    /// not inside.
    #[must_use]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Ok(offset) = usize::try_from(offset) else {
            return false;
        };
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > self.size)
        {
            return false;
        }
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `word`; any address is aligned for a byte.
            let to = unsafe { AtomicU8::from_ptr(self.addr.as_ptr().add(offset + i)) };
            to.store(*byte, Ordering::Relaxed);
        }
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: by the invariant, the mapping is the value's own, and no reference
        // into it outlives the value.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.size) };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:#x?})", self.range())
    }
}

/// A part of some memory, in whole segments, which an address space can map.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
///
/// use kvm_memory_uapi::{Field, Memory, Part, Reason, SEGMENT_SIZE};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = Arc::new(Memory::new(4)?);
/// let second = Part::new(memory.clone(), SEGMENT_SIZE, SEGMENT_SIZE)?;
/// assert_eq!(second.offset(), SEGMENT_SIZE);
/// let refused = Part::new(memory, SEGMENT_SIZE, 4 * SEGMENT_SIZE).unwrap_err();
/// assert_eq!(refused, Reason::NotInside);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Part {
    memory: Arc<dyn HostMemory>,
    offset: u64,
    size: u64,
}

impl Part {
    /// `size` bytes of the memory, from `offset` on.
    ///
    /// # Errors
    ///
    /// [`Reason::Empty`], [`Reason::UnalignedSegment`] and
    /// [`Reason::NotInside`].
    pub fn new(memory: Arc<dyn HostMemory>, offset: u64, size: u64) -> Result<Self, Reason> {
        let range = memory.range();
        if size == 0 {
            return Err(Reason::Empty);
        }
        whole_segments(Field::MemorySize, size)?;
        let start = range.start.checked_add(offset).ok_or(Reason::NotInside)?;
        if start.checked_add(size).is_none_or(|end| end > range.end) {
            return Err(Reason::NotInside);
        }
        whole_segments(Field::UserspaceAddr, start)?;
        Ok(Part {
            memory,
            offset,
            size,
        })
    }

    /// All of some memory.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn all(memory: Arc<dyn HostMemory>) -> Result<Self, Reason> {
        let range = memory.range();
        Part::new(memory, 0, range.end.saturating_sub(range.start))
    }

    /// Offset in the memory, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// User address of the first byte.
    pub fn userspace_addr(&self) -> u64 {
        self.memory.range().start + self.offset
    }

    /// The memory that it is a part of.
    pub fn memory(&self) -> &Arc<dyn HostMemory> {
        &self.memory
    }

    /// A part of the part: `size` bytes that start `by` bytes further on. Both are
    /// inside.
    pub(super) fn sub_part(&self, by: u64, size: u64) -> Part {
        debug_assert!(size > 0 && by + size <= self.size);
        Part {
            memory: self.memory.clone(),
            offset: self.offset + by,
            size,
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({:#x} + {:#x})", self.userspace_addr(), self.size)
    }
}

/// Checks that `value` is a multiple of [`SEGMENT_SIZE`].
pub(super) fn whole_segments(field: Field, value: u64) -> Result<(), Reason> {
    if value % SEGMENT_SIZE != 0 {
        return Err(Reason::UnalignedSegment { field, value });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for segments in [1, 3, 100] {
            let memory = Memory::new(segments).expect("memory");
            let range = memory.range();
            assert_eq!(range.start % SEGMENT_SIZE, 0);
            assert_eq!(range.end - range.start, segments as u64 * SEGMENT_SIZE);
            for offset in [0, memory.size() - 8] {
                let word = memory.word(offset).expect("inside");
                assert_eq!(word.load(Ordering::Relaxed), 0);
                word.store(1, Ordering::Relaxed);
            }
            for offset in [1, memory.size() - 4, memory.size(), u64::MAX - 7] {
                assert!(memory.word(offset).is_none(), "{offset:#x}");
            }
        }
        assert!(Memory::new(0).is_err());
        assert!(Memory::new(usize::MAX).is_err());
    }

    #[test]
    fn bytes_are_written_as_a_whole_or_not_at_all() {
        let memory = Memory::new(1).expect("memory");
        assert!(memory.write(4, &[1, 2, 3, 4, 5]));
        let word = memory.word(0).expect("inside");
        assert_eq!(
            word.load(Ordering::Relaxed).to_le_bytes(),
            [0, 0, 0, 0, 1, 2, 3, 4]
        );
        assert!(!memory.write(memory.size() - 1, &[9, 9]));
        let last = memory.word(memory.size() - 8).expect("inside");
        assert_eq!(last.load(Ordering::Relaxed), 0);
        assert!(!memory.write(u64::MAX, &[9]));
        assert!(memory.write(memory.size(), &[]));
    }

    #[test]
    fn an_invalid_part_is_refused_with_its_reason() {
        let memory: Arc<dyn HostMemory> = Arc::new(Memory::new(4).expect("memory"));
        let unaligned = |field, value| Err(Reason::UnalignedSegment { field, value });
        let start = memory.range().start;
        let part = |offset, size| Part::new(memory.clone(), offset, size).map(|_| ());
        assert_eq!(part(0, 4 * SEGMENT_SIZE), Ok(()));
        assert_eq!(part(3 * SEGMENT_SIZE, SEGMENT_SIZE), Ok(()));
        assert_eq!(part(0, 0), Err(Reason::Empty));
        assert_eq!(part(0, 0x1000), unaligned(Field::MemorySize, 0x1000));
        assert_eq!(
            part(0x1000, SEGMENT_SIZE),
            unaligned(Field::UserspaceAddr, start + 0x1000)
        );
        for (offset, size) in [
            (0, 5 * SEGMENT_SIZE),
            (4 * SEGMENT_SIZE, SEGMENT_SIZE),
            (0u64.wrapping_sub(SEGMENT_SIZE), 2 * SEGMENT_SIZE),
            (SEGMENT_SIZE, 0u64.wrapping_sub(SEGMENT_SIZE)),
        ] {
            assert_eq!(part(offset, size), Err(Reason::NotInside));
        }
    }
}
