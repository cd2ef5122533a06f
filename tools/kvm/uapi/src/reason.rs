// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Why this crate refuses an argument before the kernel sees it.

use std::fmt;

/// Bytes in a page of the guest: the unit of every address and size.
pub const PAGE_SIZE: u64 = 4096;

/// A field of a [`Region`](crate::Region), a [`Mapping`](crate::Mapping) or a
/// [`Part`](crate::Part), for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// [`Region::guest_phys_addr`](crate::Region::guest_phys_addr) or
    /// [`Mapping::guest_phys_addr`](crate::Mapping::guest_phys_addr)
    GuestPhysAddr,
    /// [`Region::memory_size`](crate::Region::memory_size),
    /// [`Mapping::memory_size`](crate::Mapping::memory_size) or
    /// [`Part::size`](crate::Part::size)
    MemorySize,
    /// [`Region::userspace_addr`](crate::Region::userspace_addr) or
    /// [`Part::userspace_addr`](crate::Part::userspace_addr)
    UserspaceAddr,
    /// [`Mapping::source`](crate::Mapping::source)
    Source,
    /// The offset of
    /// [`RegionList::create_on_memfd`](crate::RegionList::create_on_memfd)
    GuestMemfdOffset,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::GuestPhysAddr => "guest_phys_addr",
            Field::MemorySize => "memory_size",
            Field::UserspaceAddr => "userspace_addr",
            Field::Source => "source",
            Field::GuestMemfdOffset => "guest_memfd_offset",
        })
    }
}

/// What is wrong with an entry of a [`RegionList`](crate::RegionList), with a
/// [`Mapping`](crate::Mapping), or with a [`Part`](crate::Part).
///
/// # Example
///
/// ```
/// use kvm_memory_uapi::{Access, Field, Mapping, Reason};
///
/// assert!(Mapping::new(0x8000, 0x1000, Access::empty()).is_ok());
/// let refused = Mapping::new(0x8001, 0x1000, Access::empty());
/// let reason = Reason::Unaligned { field: Field::GuestPhysAddr, value: 0x8001 };
/// assert_eq!(refused, Err(reason));
/// assert_eq!(reason.to_string(), "guest_phys_addr 0x8001 is not a multiple of the page size");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// `memory_size` is 0. In a list the kernel would take that as a deletion;
    /// in a mapping it leaves nothing to populate.
    #[error("memory_size is 0")]
    Empty,
    /// A value is not a multiple of [`PAGE_SIZE`].
    #[error("{field} {value:#x} is not a multiple of the page size")]
    Unaligned {
        /// Which field.
        field: Field,
        /// Its value.
        value: u64,
    },
    /// A value is not a multiple of [`SEGMENT_SIZE`](crate::SEGMENT_SIZE).
    #[error("{field} {value:#x} is not a multiple of 1 MiB")]
    UnalignedSegment {
        /// Which field.
        field: Field,
        /// Its value.
        value: u64,
    },
    /// A [`Part`](crate::Part) is not inside of its memory.
    #[error("the part is not inside of the memory")]
    NotInside,
    /// `memory_size`, in bytes, is more than 2^31 - 1 pages.
    #[error("memory_size {0:#x} is more than 2^31 - 1 pages")]
    TooLarge(u64),
    /// Address plus size does not fit into 64 bits.
    #[error("{field} {value:#x} plus memory_size wraps around")]
    Wraps {
        /// Which address.
        field: Field,
        /// Its value.
        value: u64,
    },
    /// Bits that [`Flags`](crate::Flags) does not name.
    #[error("flags {0:#x} cannot be in a list")]
    UnknownFlags(u32),
    /// Bits that [`Access`](crate::Access) does not name.
    #[error("there is no access {0:#x}")]
    UnknownAccess(u64),
    /// `source` is 0, with which the kernel leaves the contents unchanged.
    #[error("source is 0")]
    NoSource,
    /// A move of a slot to its own address.
    #[error("the slot is at {0:#x} already")]
    NotAMove(u64),
    /// A change of [`Flags::READONLY`](crate::Flags::READONLY) of a slot that
    /// exists.
    #[error("READONLY cannot change while the slot exists")]
    ReadonlyChanged,
    /// The list has as many entries as the 32 bits of `nent` can count.
    #[error("the list has 2^32 - 1 entries")]
    ListFull,
    /// A creation of a slot that [`Memslots`](crate::Memslots) has.
    #[error("the slot exists")]
    SlotExists,
    /// A change of a slot that [`Memslots`](crate::Memslots) does not have.
    #[error("there is no such slot")]
    NoSuchSlot,
}

/// Checks that `value` is a multiple of [`PAGE_SIZE`].
pub(crate) fn aligned(field: Field, value: u64) -> Result<(), Reason> {
    if value % PAGE_SIZE != 0 {
        return Err(Reason::Unaligned { field, value });
    }
    Ok(())
}

/// Checks that `size` bytes from the address `value` on do not wrap around.
pub(crate) fn in_64_bits(field: Field, value: u64, size: u64) -> Result<(), Reason> {
    match value.checked_add(size) {
        Some(_) => Ok(()),
        None => Err(Reason::Wraps { field, value }),
    }
}
