// SPDX-License-Identifier: GPL-2.0-only

//! Slot ids, flags, mappings, and the entries of a list.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.

use crate::types::{
    GfnRange,
    Hva,
    PAGE_SHIFT,
    PAGE_SIZE, //
};

use core::ops::Range;

/// Identifies a memslot of a VM: an address space and an id in it.
///
/// Orders by address space, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Address space. On x86, 0 is normal and 1 is SMM.
    pub as_id: u16,
    /// Id within the address space.
    pub id: u16,
}

impl SlotId {
    /// Splits the `slot` field of the uAPI structs: address space in bits 16-31, id in bits 0-15.
    pub const fn from_uapi(slot: u32) -> Self {
        Self {
            as_id: (slot >> 16) as u16,
            id: slot as u16,
        }
    }
}

/// Some address spaces, and all between them.
///
/// A batch works on the address spaces that it changes: 0, 1, both of them, or that of one vCPU. So
/// there is nothing between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spaces {
    /// The first one.
    start: u16,
    /// End (exclusive).
    end: u16,
}

impl Spaces {
    /// Returns the address spaces in `as_ids`, which are less than 2¹⁶ - 1.
    pub fn of(as_ids: impl Iterator<Item = u16>) -> Self {
        let none = Self {
            start: u16::MAX,
            end: 0,
        };
        as_ids.fold(none, |spaces, as_id| Self {
            start: spaces.start.min(as_id),
            end: spaces.end.max(as_id.saturating_add(1)),
        })
    }

    /// Returns whether there are none.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Returns the first address space and the end (exclusive).
    pub const fn bounds(self) -> (u16, u16) {
        (self.start, self.end)
    }

    /// Returns the address spaces.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.start..self.end
    }
}

/// The flags of a memslot (`KVM_MEM_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFlags(pub u32);

impl SlotFlags {
    /// `KVM_MEM_LOG_DIRTY_PAGES`.
    pub const LOG_DIRTY: Self = Self(1 << 0);
    /// `KVM_MEM_READONLY`.
    pub const READONLY: Self = Self(1 << 1);
    /// `KVM_MEM_GUEST_MEMFD`.
    pub const GUEST_MEMFD: Self = Self(1 << 2);

    /// Returns whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the flags that exactly one of the two has.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// Returns the flags that at least one of the two has.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether any of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What a memslot maps: the properties that userspace sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The guest frames.
    pub gfns: GfnRange,
    /// The user address of the first frame's memory.
    pub hva: Hva,
    /// `KVM_MEM_*`.
    pub flags: SlotFlags,
}

impl Mapping {
    /// Returns the size in pages.
    pub const fn npages(&self) -> u64 {
        self.gfns.npages()
    }

    /// Returns the host address that frame 0 would have if the mapping extended to it. Two mappings put
    /// the frames that they share at the same addresses if the results are equal, and only then.
    pub const fn hva_of_frame_0(&self) -> u64 {
        self.hva.0.wrapping_sub(self.gfns.start.0 << PAGE_SHIFT)
    }

    /// Returns whether the private memory is in a guest_memfd.
    pub const fn has_guest_memfd(&self) -> bool {
        self.flags.contains(SlotFlags::GUEST_MEMFD)
    }
}

/// One requested update, laid out as `struct kvm_userspace_memory_region_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Address space in bits 16-31, id in bits 0-15.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// In bytes, page aligned.
    pub guest_phys_addr: u64,
    /// In bytes, page aligned. 0 deletes the slot.
    pub memory_size: u64,
    /// In bytes, page aligned.
    pub userspace_addr: u64,
    /// 1 asserts that the entry deletes or moves the slot. 0 asserts nothing.
    pub invalidate_slot: u8,
    /// Must be 0.
    pub pad1: [u8; 3],
    /// A file descriptor. 0 without `KVM_MEM_GUEST_MEMFD`.
    pub guest_memfd: u32,
    /// In bytes, page aligned. 0 without `KVM_MEM_GUEST_MEMFD`.
    pub guest_memfd_offset: u64,
    /// The user address that receives the last dirty bits of a slot that the entry deletes, or 0.
    pub dirty_bitmap: u64,
    /// Must be 0.
    pub pad2: [u8; 8],
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    /// Returns the slot that the entry updates.
    pub const fn slot_id(&self) -> SlotId {
        SlotId::from_uapi(self.slot)
    }

    /// Returns whether the entry asks for a slot that is bound to a guest_memfd.
    pub const fn wants_memfd(&self) -> bool {
        SlotFlags(self.flags).contains(SlotFlags::GUEST_MEMFD) && self.memory_size != 0
    }

    /// Returns the bytes of a guest_memfd that the entry names, or [`None`] if they wrap around or do
    /// not start at a page.
    pub fn memfd_range(&self) -> Option<Range<u64>> {
        let start = self.guest_memfd_offset;
        let end = start.checked_add(self.memory_size)?;
        (start % PAGE_SIZE == 0).then_some(start..end)
    }
}

/// Pages of a guest_memfd, to which a slot is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePages {
    /// Identifies the file.
    pub file: usize,
    /// Number of the first page.
    pub start: u64,
    /// End (exclusive).
    pub end: u64,
}

impl FilePages {
    /// Returns whether both contain the same page of the same file.
    pub fn overlaps(self, other: Self) -> bool {
        self.file == other.file && self.start < other.end && other.start < self.end
    }
}

/// What one entry does to its slot (`enum kvm_mr_change`, or nothing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// `KVM_MR_CREATE`: the slot did not exist.
    Create,
    /// `KVM_MR_DELETE`: the slot no longer exists.
    Delete,
    /// `KVM_MR_MOVE`: the slot maps the same memory at other frames.
    Move,
    /// `KVM_MR_FLAGS_ONLY`: dirty logging starts or stops.
    FlagsOnly,
    /// The slot already is as requested.
    #[default]
    Nothing,
}
