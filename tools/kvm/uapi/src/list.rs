// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Regions and the list of updates to them.

use std::fmt;

use bitflags::bitflags;
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use vmm_sys_util::fam::{FamStruct, FamStructWrapper};
use vmm_sys_util::generate_fam_struct_impl;

use crate::bindings::{kvm_userspace_memory_region_entry, kvm_userspace_memory_region_list};

/// Bytes in a page of the guest: the unit of every address and size.
pub const PAGE_SIZE: u64 = 4096;

/// Most pages in a slot (`KVM_MEM_MAX_NR_PAGES`): the kernel counts those of a
/// dirty bitmap in 32 bits.
const MAX_PAGES: u64 = (1 << 31) - 1;

/// A memslot's name: its id and the address space the id belongs to.
///
/// On x86 address space 0 is ordinary memory, 1 that of system management mode.
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
    /// The slot of that id in address space 0.
    pub const fn new(id: u16) -> Self {
        Slot(id as u32)
    }

    /// The slot of the same id in another address space.
    pub const fn in_address_space(self, address_space: u16) -> Self {
        Slot(((address_space as u32) << 16) | self.id() as u32)
    }

    /// Id within the address space; the VM has `KVM_CAP_NR_MEMSLOTS` of them.
    pub const fn id(self) -> u16 {
        self.0 as u16
    }

    /// Number of the address space; the VM has `KVM_CAP_MULTI_ADDRESS_SPACE`
    /// of them.
    pub const fn address_space(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The value as the kernel wants it: the id in bits 0 to 15, the address space
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
    /// `KVM_MEM_GUEST_MEMFD` is missing because a list cannot carry it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u32 {
        /// Record which pages the guest writes to (`KVM_MEM_LOG_DIRTY_PAGES`).
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Which slot.
    pub slot: Slot,
    /// Its properties.
    pub flags: Flags,
    /// Guest physical address of the first byte.
    pub guest_phys_addr: u64,
    /// Size, at least one page.
    pub memory_size: u64,
    /// Address of the first byte in this process.
    pub userspace_addr: u64,
}

impl Region {
    /// The region's first `offset` bytes, which keep its slot, and the rest as
    /// `slot`.
    ///
    /// `None` if `offset` is not strictly inside the region.
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

    fn check(&self) -> Result<(), Reason> {
        if self.memory_size == 0 {
            return Err(Reason::Empty);
        }
        for (field, value) in [
            (Field::GuestPhysAddr, self.guest_phys_addr),
            (Field::MemorySize, self.memory_size),
            (Field::UserspaceAddr, self.userspace_addr),
        ] {
            if value % PAGE_SIZE != 0 {
                return Err(Reason::Unaligned { field, value });
            }
        }
        if self.memory_size / PAGE_SIZE > MAX_PAGES {
            return Err(Reason::TooLarge(self.memory_size));
        }
        for (field, value) in [
            (Field::GuestPhysAddr, self.guest_phys_addr),
            (Field::UserspaceAddr, self.userspace_addr),
        ] {
            if value.checked_add(self.memory_size).is_none() {
                return Err(Reason::Wraps { field, value });
            }
        }
        let unknown = self.flags.difference(Flags::all());
        if !unknown.is_empty() {
            return Err(Reason::UnknownFlags(unknown.bits()));
        }
        Ok(())
    }

    fn entry(&self, invalidate: bool) -> kvm_userspace_memory_region_entry {
        kvm_userspace_memory_region_entry {
            slot: self.slot.into(),
            flags: self.flags.bits(),
            guest_phys_addr: self.guest_phys_addr,
            memory_size: self.memory_size,
            userspace_addr: self.userspace_addr,
            invalidate_slot: invalidate.into(),
            padding: [0; 31],
        }
    }
}

/// For `KVM_SET_USER_MEMORY_REGION`, the same update as a single ioctl.
impl From<Region> for kvm_userspace_memory_region {
    fn from(region: Region) -> Self {
        kvm_userspace_memory_region {
            slot: region.slot.into(),
            flags: region.flags.bits(),
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        }
    }
}

/// A field of a [`Region`] or a [`Mapping`](crate::Mapping), for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// [`Region::guest_phys_addr`]
    GuestPhysAddr,
    /// [`Region::memory_size`]
    MemorySize,
    /// [`Region::userspace_addr`]
    UserspaceAddr,
    /// [`Mapping::source`](crate::Mapping::source)
    Source,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::GuestPhysAddr => "guest_phys_addr",
            Field::MemorySize => "memory_size",
            Field::UserspaceAddr => "userspace_addr",
            Field::Source => "source",
        })
    }
}

/// What is wrong with an entry, or with a [`Mapping`](crate::Mapping).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// `memory_size` is 0, which to the kernel means a deletion, and is nothing
    /// to map.
    #[error("memory_size is 0")]
    Empty,
    /// Not a multiple of [`PAGE_SIZE`].
    #[error("{field} {value:#x} is not a multiple of the page size")]
    Unaligned {
        /// Which field.
        field: Field,
        /// Its value.
        value: u64,
    },
    /// More bytes than 2^31 - 1 pages.
    #[error("memory_size {0:#x} is more than 2^31 - 1 pages")]
    TooLarge(u64),
    /// Address plus size is more than 64 bits hold.
    #[error("{field} {value:#x} plus memory_size wraps around")]
    Wraps {
        /// Which address.
        field: Field,
        /// Its value.
        value: u64,
    },
    /// Bits that [`Flags`] does not name.
    #[error("flags {0:#x} cannot be in a list")]
    UnknownFlags(u32),
    /// Bits that [`Access`](crate::Access) does not name.
    #[error("there is no access {0:#x}")]
    UnknownAccess(u64),
    /// `source` is 0, which to the kernel means that there is none.
    #[error("source is 0")]
    NoSource,
    /// A move to where the slot is.
    #[error("the slot is at {0:#x} already")]
    NotAMove(u64),
    /// A change of [`Flags::READONLY`] of a slot that exists.
    #[error("READONLY cannot change while the slot exists")]
    ReadonlyChanged,
    /// `nent` has 32 bits.
    #[error("the list has 2^32 - 1 entries")]
    ListFull,
    /// A slot is created that [`Memslots`](crate::Memslots) has.
    #[error("the slot exists")]
    SlotExists,
    /// A slot is changed that [`Memslots`](crate::Memslots) does not have.
    #[error("there is no such slot")]
    NoSuchSlot,
}

/// An update that no kernel would take, and so was not added to the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry} (slot {slot}): {reason}")]
pub struct EntryError {
    /// Index the entry would have had in the list, from 0.
    pub entry: usize,
    /// The slot it names.
    pub slot: Slot,
    /// What is wrong with it.
    pub reason: Reason,
}

generate_fam_struct_impl!(
    kvm_userspace_memory_region_list,
    kvm_userspace_memory_region_entry,
    entries,
    u32,
    nent,
    u32::MAX as usize
);

/// Memslot updates that happen together, in their order.
///
/// A list is its own builder: each method appends one entry, or says what is
/// wrong with it and leaves the list as it was. Entries are written where the
/// kernel reads them; nothing is copied later.
///
/// The list knows nothing of the VM. [`Memslots`](crate::Memslots) does, and
/// takes slot ids where the methods here take the region as it is.
///
/// # Example
///
/// A slot grows, and another makes room for it: what is deleted must stand
/// before what takes its place.
///
/// ```
/// use kvm_memory_uapi::{Flags, Reason, Region, RegionList, Slot};
///
/// # fn main() -> Result<(), kvm_memory_uapi::EntryError> {
/// let small = Region {
///     slot: Slot::new(0),
///     flags: Flags::empty(),
///     guest_phys_addr: 0,
///     memory_size: 0x1000,
///     userspace_addr: 0x7f00_0000_0000,
/// };
/// let large = Region { memory_size: 0x2000, ..small };
/// let next = Region {
///     slot: Slot::new(1),
///     guest_phys_addr: 0x1000,
///     userspace_addr: 0x7f00_0010_0000,
///     ..small
/// };
///
/// let mut list = RegionList::new();
/// list.move_to(&next, 0x2000)?.delete(small.slot)?.create(large)?;
/// assert_eq!(list.len(), 3);
///
/// let error = list.create(Region { guest_phys_addr: 0x800, ..large }).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "entry 3 (slot 0:0): guest_phys_addr 0x800 is not a multiple of the page size",
/// );
/// assert_eq!(list.len(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RegionList(FamStructWrapper<kvm_userspace_memory_region_list>);

impl Default for RegionList {
    fn default() -> Self {
        RegionList(FamStructWrapper::new(0).expect("0 entries are below every limit"))
    }
}

impl RegionList {
    /// A list without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the creation of `region`.
    ///
    /// If its slot exists by then, the kernel takes the entry for a change of
    /// that slot, and a change of size or of `userspace_addr` for an error.
    ///
    /// # Errors
    ///
    /// [`Reason::Empty`], [`Reason::Unaligned`], [`Reason::TooLarge`],
    /// [`Reason::Wraps`] and [`Reason::UnknownFlags`].
    pub fn create(&mut self, region: Region) -> Result<&mut Self, EntryError> {
        self.push(&region, false)
    }

    /// Appends the deletion of `slot`.
    ///
    /// # Errors
    ///
    /// [`Reason::ListFull`], as from every method here.
    pub fn delete(&mut self, slot: Slot) -> Result<&mut Self, EntryError> {
        self.append(
            slot,
            kvm_userspace_memory_region_entry {
                slot: slot.into(),
                invalidate_slot: 1,
                ..Default::default()
            },
        )
    }

    /// Appends the move of `region`, a slot as it is by then, to another guest
    /// physical address.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create), and [`Reason::NotAMove`].
    pub fn move_to(
        &mut self,
        region: &Region,
        guest_phys_addr: u64,
    ) -> Result<&mut Self, EntryError> {
        if guest_phys_addr == region.guest_phys_addr {
            return Err(self.error(region.slot, Reason::NotAMove(guest_phys_addr)));
        }
        let moved = Region {
            guest_phys_addr,
            ..*region
        };
        self.push(&moved, true)
    }

    /// Appends a change of the flags of `region`, a slot as it is by then.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create), and [`Reason::ReadonlyChanged`].
    pub fn set_flags(&mut self, region: &Region, flags: Flags) -> Result<&mut Self, EntryError> {
        if (region.flags ^ flags).contains(Flags::READONLY) {
            return Err(self.error(region.slot, Reason::ReadonlyChanged));
        }
        self.push(&Region { flags, ..*region }, false)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// The entries, as the kernel reads them.
    pub fn entries(&self) -> &[kvm_userspace_memory_region_entry] {
        self.0.as_slice()
    }

    /// The header, with the entries behind it.
    pub(crate) fn as_ptr(&self) -> *const kvm_userspace_memory_region_list {
        self.0.as_fam_struct_ptr()
    }

    pub(crate) fn error(&self, slot: Slot, reason: Reason) -> EntryError {
        EntryError {
            entry: self.len(),
            slot,
            reason,
        }
    }

    fn push(&mut self, region: &Region, invalidate: bool) -> Result<&mut Self, EntryError> {
        region
            .check()
            .map_err(|reason| self.error(region.slot, reason))?;
        self.append(region.slot, region.entry(invalidate))
    }

    fn append(
        &mut self,
        slot: Slot,
        entry: kvm_userspace_memory_region_entry,
    ) -> Result<&mut Self, EntryError> {
        self.0
            .push(entry)
            .map_err(|_| self.error(slot, Reason::ListFull))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region() -> Region {
        Region {
            slot: Slot::new(5).in_address_space(1),
            flags: Flags::LOG_DIRTY_PAGES,
            guest_phys_addr: 0x10_0000,
            memory_size: 0x4000,
            userspace_addr: 0x7f00_0000_0000,
        }
    }

    fn reason(result: Result<&mut RegionList, EntryError>) -> Reason {
        result.expect_err("the entry should be refused").reason
    }

    /// The list as the kernel finds it: bytes behind the pointer.
    fn bytes(list: &RegionList) -> &[u8] {
        // SAFETY: a header of 8 bytes and len() entries of 64 bytes start there.
        unsafe { std::slice::from_raw_parts(list.as_ptr().cast(), 8 + 64 * list.len()) }
    }

    #[test]
    fn every_operation_is_the_entry_the_kernel_expects() {
        let region = region();
        let mut list = RegionList::new();
        list.create(region)
            .and_then(|l| l.delete(region.slot))
            .and_then(|l| l.move_to(&region, 0x20_0000))
            .and_then(|l| l.set_flags(&region, Flags::empty()))
            .expect("all four are valid");

        let plain = kvm_userspace_memory_region_entry {
            slot: 0x1_0005,
            flags: 1,
            guest_phys_addr: 0x10_0000,
            memory_size: 0x4000,
            userspace_addr: 0x7f00_0000_0000,
            ..Default::default()
        };
        let expected = [
            plain,
            kvm_userspace_memory_region_entry {
                slot: 0x1_0005,
                invalidate_slot: 1,
                ..Default::default()
            },
            kvm_userspace_memory_region_entry {
                guest_phys_addr: 0x20_0000,
                invalidate_slot: 1,
                ..plain
            },
            kvm_userspace_memory_region_entry { flags: 0, ..plain },
        ];
        assert_eq!(list.entries(), expected);
    }

    #[test]
    fn the_buffer_is_an_aligned_header_with_the_entries_behind() {
        let mut list = RegionList::new();
        assert_eq!(bytes(&list), [0; 8]);
        for i in 0..1000 {
            list.delete(Slot::new(i)).expect("far from full");
            assert_eq!(list.as_ptr() as usize % 8, 0);
        }
        let bytes = bytes(&list);
        assert_eq!(bytes[..8], [0xe8, 3, 0, 0, 0, 0, 0, 0]);
        for (i, entry) in bytes[8..].chunks(64).enumerate() {
            let mut expected = [0; 64];
            expected[..2].copy_from_slice(&(i as u16).to_ne_bytes());
            expected[32] = 1;
            assert_eq!(entry, expected, "entry {i}");
        }
    }

    #[test]
    fn an_invalid_region_is_refused_with_its_reason() {
        let max = MAX_PAGES * PAGE_SIZE;
        for (region, expected) in [
            (
                Region {
                    memory_size: 0,
                    ..region()
                },
                Reason::Empty,
            ),
            (
                Region {
                    guest_phys_addr: 0x10_0001,
                    ..region()
                },
                Reason::Unaligned {
                    field: Field::GuestPhysAddr,
                    value: 0x10_0001,
                },
            ),
            (
                Region {
                    memory_size: 0xfff,
                    ..region()
                },
                Reason::Unaligned {
                    field: Field::MemorySize,
                    value: 0xfff,
                },
            ),
            (
                Region {
                    userspace_addr: 0x800,
                    ..region()
                },
                Reason::Unaligned {
                    field: Field::UserspaceAddr,
                    value: 0x800,
                },
            ),
            (
                Region {
                    memory_size: max + PAGE_SIZE,
                    ..region()
                },
                Reason::TooLarge(max + PAGE_SIZE),
            ),
            (
                Region {
                    guest_phys_addr: 0u64.wrapping_sub(0x4000),
                    ..region()
                },
                Reason::Wraps {
                    field: Field::GuestPhysAddr,
                    value: 0u64.wrapping_sub(0x4000),
                },
            ),
            (
                Region {
                    userspace_addr: 0u64.wrapping_sub(0x1000),
                    ..region()
                },
                Reason::Wraps {
                    field: Field::UserspaceAddr,
                    value: 0u64.wrapping_sub(0x1000),
                },
            ),
            (
                Region {
                    flags: Flags::from_bits_retain(4),
                    ..region()
                },
                Reason::UnknownFlags(4),
            ),
        ] {
            assert_eq!(reason(RegionList::new().create(region)), expected);
        }
        let largest = Region {
            memory_size: max,
            ..region()
        };
        assert!(RegionList::new().create(largest).is_ok());
    }

    #[test]
    fn a_move_moves_and_readonly_stays() {
        let region = region();
        let mut list = RegionList::new();
        assert_eq!(
            reason(list.move_to(&region, region.guest_phys_addr)),
            Reason::NotAMove(region.guest_phys_addr)
        );
        assert_eq!(
            reason(list.set_flags(&region, Flags::READONLY)),
            Reason::ReadonlyChanged
        );
        assert!(list.is_empty());
    }

    proptest! {
        /// Whatever the regions, the list holds those that the kernel's own
        /// rules, written down here a second time and in full width, allow, in
        /// order, and an error names the index the entry would have had.
        #[test]
        fn exactly_the_possible_regions_are_added(
            regions in proptest::collection::vec(
                (
                    any::<u32>(),
                    0u32..8,
                    prop_oneof![any::<u64>(), (0u64..1 << 52).prop_map(|p| p << 12)],
                    prop_oneof![any::<u64>(), (0u64..1 << 33).prop_map(|p| p << 12)],
                    prop_oneof![any::<u64>(), (0u64..1 << 52).prop_map(|p| p << 12)],
                ),
                0..100,
            )
        ) {
            let mut list = RegionList::new();
            let mut expected = Vec::new();
            for (slot, flags, gpa, size, hva) in regions {
                let region = Region {
                    slot: Slot(slot),
                    flags: Flags::from_bits_retain(flags),
                    guest_phys_addr: gpa,
                    memory_size: size,
                    userspace_addr: hva,
                };
                let possible = size != 0
                    && flags < 4
                    && (gpa | size | hva) & 0xfff == 0
                    && size <= 0x7ff_ffff_f000
                    && u128::from(gpa) + u128::from(size) < 1 << 64
                    && u128::from(hva) + u128::from(size) < 1 << 64;
                match list.create(region) {
                    Ok(_) => {
                        prop_assert!(possible, "{:x?} was added", region);
                        expected.push((slot, flags, gpa, size, hva, 0, [0; 31]));
                    }
                    Err(e) => {
                        prop_assert!(!possible, "{:x?}: {}", region, e);
                        prop_assert_eq!((e.entry, e.slot), (expected.len(), region.slot));
                    }
                }
            }
            let entries: Vec<_> = list.entries().iter().map(|e| {
                (e.slot, e.flags, e.guest_phys_addr, e.memory_size, e.userspace_addr,
                 e.invalidate_slot, e.padding)
            }).collect();
            prop_assert_eq!(entries, expected);
        }
    }
}
