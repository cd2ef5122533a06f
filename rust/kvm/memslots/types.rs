// SPDX-License-Identifier: GPL-2.0-only

//! The words that memslots are described in: slot ids, flags, mappings, the entries of a list.
//!
//! Nothing here knows the kernel: the file is compiled and tested on the host too.

use crate::types::GfnRange;
use crate::types::Hva;

/// Names a memslot of a VM: an address space and an id in it.
///
/// Orders by address space, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Address space; on x86, 0 is normal and 1 is SMM.
    pub as_id: u16,
    /// Id within the address space.
    pub id: u16,
}

impl SlotId {
    /// Takes the `slot` field of the uAPI structures apart.
    pub const fn from_uapi(slot: u32) -> Self {
        Self {
            as_id: (slot >> 16) as u16,
            id: slot as u16,
        }
    }
}

/// The flags of a memslot that userspace sees (`KVM_MEM_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFlags(pub u32);

impl SlotFlags {
    /// `KVM_MEM_LOG_DIRTY_PAGES`.
    pub const LOG_DIRTY: Self = Self(1 << 0);
    /// `KVM_MEM_READONLY`.
    pub const READONLY: Self = Self(1 << 1);
    /// `KVM_MEM_GUEST_MEMFD`.
    pub const GUEST_MEMFD: Self = Self(1 << 2);

    /// Whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags in which the two differ.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// The flags of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What a memslot maps: the part of it that a user can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where the guest sees it.
    pub gfns: GfnRange,
    /// The memory behind the first frame.
    pub hva: Hva,
    /// `KVM_MEM_*`.
    pub flags: SlotFlags,
}

impl Mapping {
    /// Size in pages.
    pub const fn npages(&self) -> u64 {
        self.gfns.end.0 - self.gfns.start.0
    }
}

/// One requested update, laid out as `struct kvm_userspace_memory_region_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Address space in the upper half, id in the lower.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// In bytes.
    pub guest_phys_addr: u64,
    /// In bytes; 0 deletes.
    pub memory_size: u64,
    /// In bytes.
    pub userspace_addr: u64,
    /// 1 if the caller takes this entry for a DELETE or MOVE.
    pub invalidate_slot: u8,
    /// Must be 0.
    pub padding: [u8; 31],
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    /// The slot that the entry names.
    pub const fn slot_id(&self) -> SlotId {
        SlotId::from_uapi(self.slot)
    }
}

/// What one update does to its slot (`enum kvm_mr_change`, and doing nothing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// `KVM_MR_CREATE`: the slot did not exist.
    Create,
    /// `KVM_MR_DELETE`: the slot exists no more.
    Delete,
    /// `KVM_MR_MOVE`: other frames, the same memory.
    Move,
    /// `KVM_MR_FLAGS_ONLY`: logging goes on or off.
    FlagsOnly,
    /// The slot is so already.
    #[default]
    Nothing,
}
