// SPDX-License-Identifier: GPL-2.0-only

//! The descriptor of an area, and the results that the guest finds in it.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.
//!
//! The guest, or another of its vCPUs, may change a descriptor at any time. So KVM copies it once
//! and looks only at the copy.

/// Bytes of a descriptor (`struct kvm_memory_area`), the same for 32-bit and 64-bit guests.
pub const DESC_SIZE: usize = 24;

/// The largest area, in bytes.
pub const MAX_SIZE: u32 = 1 << 20;

/// What KVM tells the guest in the descriptor's `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// The command has been carried out.
    Ok = 0,
    /// Neither KVM nor the VMM serves the type.
    UnknownType = 1,
    /// Not all of the area is memory that guest and hypervisor share and can write.
    BadAddress = 2,
    /// The size is 0, too large, goes beyond the address space, or is wrong for the type.
    BadSize = 3,
    /// The type needs another alignment.
    BadAlignment = 4,
    /// `pad` is not 0.
    BadPad = 5,
    /// The area that the guest unregisters is not registered.
    NotRegistered = 6,
    /// The VMM does not let the guest have the type.
    Denied = 7,
}

/// A range of guest physical memory, in bytes, that neither is empty nor wraps.
///
/// # Invariants
///
/// `size` is from 1 to [`MAX_SIZE`], and `base + size` does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u64,
    size: u32,
}

impl Range {
    /// Returns the `size` bytes from `base`, or [`None`] if there is no such range.
    pub fn new(base: u64, size: u32) -> Option<Self> {
        if !(1..=MAX_SIZE).contains(&size) {
            return None;
        }
        base.checked_add(u64::from(size))?;
        // INVARIANT: Both have been checked.
        Some(Self { base, size })
    }

    /// Returns the address of the first byte.
    pub const fn base(self) -> u64 {
        self.base
    }

    /// Returns the number of bytes.
    pub const fn size(self) -> u32 {
        self.size
    }

    /// Returns whether the ranges have a byte in common.
    pub fn overlaps(self, other: Self) -> bool {
        // By the type invariant neither sum overflows.
        self.base < other.base + u64::from(other.size)
            && other.base < self.base + u64::from(self.size)
    }
}

/// An area as the guest describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where it is.
    pub range: Range,
    /// `KVM_MEM_AREA_TYPE_*`, or any other number.
    pub kind: u32,
}

impl Area {
    /// Parses the copy of a descriptor. Fails if `pad` is not 0, or the range is none.
    pub fn parse(bytes: &[u8; DESC_SIZE]) -> Result<Self, Answer> {
        let [b0, b1, b2, b3, b4, b5, b6, b7, s0, s1, s2, s3, t0, t1, t2, t3, _result, pad @ ..] =
            *bytes;
        if pad != [0; 7] {
            return Err(Answer::BadPad);
        }
        let base = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        Ok(Self {
            range: Range::new(base, size).ok_or(Answer::BadSize)?,
            kind: u32::from_le_bytes([t0, t1, t2, t3]),
        })
    }
}
