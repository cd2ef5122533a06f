// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A memslot: its name, its flags and its memory.

use std::fmt;

use bitflags::bitflags;
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};

use crate::bindings::kvm_userspace_memory_region_entry;
use crate::reason::{aligned, in_64_bits, Field, Reason, PAGE_SIZE};

/// Most pages in a slot (`KVM_MEM_MAX_NR_PAGES`): the kernel counts the pages
/// of a dirty bitmap in 32 bits.
pub(super) const MAX_PAGES: u64 = (1 << 31) - 1;

/// A memslot's name: its id and the address space to which the id belongs.
///
/// On x86 address space 0 is ordinary memory, 1 is the memory of system
/// management mode.
///
/// Source: `slot` of `struct kvm_userspace_memory_region_entry`.
///
/// # Example
///
/// ```
/// use kvm_memory_uapi::Slot;
///
/// let slot = Slot::new(3).in_address_space(1);
/// assert_eq!((slot.id(), slot.address_space()), (3, 1));
/// assert_eq!(u32::from(slot), 0x1_0003);
/// assert_eq!(slot.to_string(), "1:3");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot with this id in address space 0.
    pub const fn new(id: u16) -> Self {
        Slot(id as u32)
    }

    /// The slot with the same id in another address space.
    pub const fn in_address_space(self, address_space: u16) -> Self {
        Slot(((address_space as u32) << 16) | self.id() as u32)
    }

    /// Id within the address space, below the VM's `KVM_CAP_NR_MEMSLOTS`.
    pub const fn id(self) -> u16 {
        self.0 as u16
    }

    /// Number of the address space, below the VM's
    /// `KVM_CAP_MULTI_ADDRESS_SPACE`.
    pub const fn address_space(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The value in the kernel's format: the id in bits 0 to 15, the address space
/// in bits 16 to 31.
impl From<Slot> for u32 {
    fn from(slot: Slot) -> u32 {
        slot.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address_space(), self.id())
    }
}

bitflags! {
    /// Properties of a memslot.
    ///
    /// `KVM_MEM_GUEST_MEMFD` is missing: it comes with a file, see
    /// [`RegionList::create_on_memfd`](crate::RegionList::create_on_memfd).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u32 {
        /// KVM records the pages to which the guest writes
        /// (`KVM_MEM_LOG_DIRTY_PAGES`).
        const LOG_DIRTY_PAGES = KVM_MEM_LOG_DIRTY_PAGES;
        /// Writes exit to userspace as MMIO (`KVM_MEM_READONLY`). Fixed when
        /// the slot is created.
        const READONLY = KVM_MEM_READONLY;
    }
}

/// A memslot: `memory_size` bytes of this process from `userspace_addr` on are
/// the guest's memory from `guest_phys_addr` on.
///
/// Addresses and size are in bytes and multiples of [`PAGE_SIZE`].
///
/// Source: `struct kvm_userspace_memory_region` in `linux/kvm.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Which slot.
    pub slot: Slot,
    /// Its properties.
    pub flags: Flags,
    /// Guest physical address of the first byte.
    pub guest_phys_addr: u64,
    /// Size, at least one page and at most 2^31 - 1 pages.
    pub memory_size: u64,
    /// Address of the first byte in this process.
    pub userspace_addr: u64,
}

impl Region {
    /// Splits the region: its first `offset` bytes keep its slot, the rest is
    /// `slot`.
    ///
    /// `None` if `offset` is not strictly inside the region.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_memory_uapi::{Flags, Region, Slot};
    ///
    /// let region = Region {
    ///     slot: Slot::new(0),
    ///     flags: Flags::empty(),
    ///     guest_phys_addr: 0x10_0000,
    ///     memory_size: 0x3000,
    ///     userspace_addr: 0x7f00_0000_0000,
    /// };
    /// let (low, high) = region.split_at(0x1000, Slot::new(1)).unwrap();
    /// assert_eq!((low.memory_size, high.memory_size), (0x1000, 0x2000));
    /// assert_eq!(high.guest_phys_addr, 0x10_1000);
    /// assert_eq!(region.split_at(0x3000, Slot::new(1)), None);
    /// ```
    pub fn split_at(self, offset: u64, slot: Slot) -> Option<(Region, Region)> {
        if offset == 0 || offset >= self.memory_size {
            return None;
        }
        let low = Region {
            memory_size: offset,
            ..self
        };
        let high = Region {
            slot,
            guest_phys_addr: self.guest_phys_addr.checked_add(offset)?,
            memory_size: self.memory_size - offset,
            userspace_addr: self.userspace_addr.checked_add(offset)?,
            ..self
        };
        Some((low, high))
    }

    /// Whether some VM could have this memslot.
    pub(super) fn check(&self) -> Result<(), Reason> {
        if self.memory_size == 0 {
            return Err(Reason::Empty);
        }
        aligned(Field::GuestPhysAddr, self.guest_phys_addr)?;
        aligned(Field::MemorySize, self.memory_size)?;
        aligned(Field::UserspaceAddr, self.userspace_addr)?;
        if self.memory_size / PAGE_SIZE > MAX_PAGES {
            return Err(Reason::TooLarge(self.memory_size));
        }
        in_64_bits(Field::GuestPhysAddr, self.guest_phys_addr, self.memory_size)?;
        in_64_bits(Field::UserspaceAddr, self.userspace_addr, self.memory_size)?;
        let unknown = self.flags.difference(Flags::all());
        if !unknown.is_empty() {
            return Err(Reason::UnknownFlags(unknown.bits()));
        }
        Ok(())
    }

    pub(super) fn entry(&self, invalidate: bool) -> kvm_userspace_memory_region_entry {
        kvm_userspace_memory_region_entry {
            slot: self.slot.into(),
            flags: self.flags.bits(),
            guest_phys_addr: self.guest_phys_addr,
            memory_size: self.memory_size,
            userspace_addr: self.userspace_addr,
            invalidate_slot: invalidate.into(),
            ..Default::default()
        }
    }
}

/// The same update for `KVM_SET_USER_MEMORY_REGION`, the single ioctl.
impl From<Region> for kvm_userspace_memory_region {
    fn from(region: Region) -> Self {
        single_update(&region.entry(false))
    }
}

pub(super) fn single_update(
    entry: &kvm_userspace_memory_region_entry,
) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: entry.slot,
        flags: entry.flags,
        guest_phys_addr: entry.guest_phys_addr,
        memory_size: entry.memory_size,
        userspace_addr: entry.userspace_addr,
    }
}
