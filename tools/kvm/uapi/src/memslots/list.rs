// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The argument of `KVM_SET_USER_MEMORY_REGION_LIST`.

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_GUEST_MEMFD};
use vmm_sys_util::fam::{FamStruct, FamStructWrapper};
use vmm_sys_util::generate_fam_struct_impl;

use super::region::{single_update, Flags, Region, Slot};
use crate::bindings::{kvm_userspace_memory_region_entry, kvm_userspace_memory_region_list};
use crate::reason::{aligned, in_64_bits, Field, Reason};

/// An update that every VM would refuse and that was therefore not added to the
/// list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry} (slot {slot}): {reason}")]
pub struct EntryError {
    /// Index that the entry would have had in the list, from 0.
    pub entry: usize,
    /// The slot that it names.
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

/// Memslot updates that the kernel applies in their order and in one step.
///
/// A list is its own builder: each method appends one entry, or returns what is
/// wrong with the entry and leaves the list unchanged. The methods write entries
/// where the kernel reads them, without a copy.
///
/// The list does not know the VM's slots. [`Memslots`](crate::Memslots) does,
/// and its updates take slot ids where the methods here take the current region.
///
/// Source: `struct kvm_userspace_memory_region_list` in `linux/kvm_memory.h`.
///
/// # Example
///
/// A slot grows, and another one makes room for it. The deletion of a slot must
/// come before the creation that takes its place.
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
    /// If its slot exists at that point of the list, the kernel treats the
    /// entry as a change of the slot, and refuses another size or another
    /// `userspace_addr`.
    ///
    /// # Errors
    ///
    /// [`Reason::Empty`], [`Reason::Unaligned`], [`Reason::TooLarge`],
    /// [`Reason::Wraps`], [`Reason::UnknownFlags`] and [`Reason::ListFull`].
    pub fn create(&mut self, region: Region) -> Result<&mut Self, EntryError> {
        self.push(&region, false)
    }

    /// Appends the deletion of `slot`.
    ///
    /// # Errors
    ///
    /// [`Reason::ListFull`].
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

    /// Appends the deletion of `slot`, which logs, and has the kernel write the
    /// last bits of its dirty log to the address `bitmap` of this process: a bit
    /// for each page of the slot, rounded up to a multiple of 64 bits.
    ///
    /// The kernel takes such an entry if
    /// [`memory_region_list_fields`](crate::VmFdMemoryExt::memory_region_list_fields)
    /// contains [`ListFields::DIRTY_BITMAP`](crate::ListFields::DIRTY_BITMAP).
    ///
    /// # Errors
    ///
    /// [`Reason::ListFull`].
    pub fn delete_and_fetch_log(
        &mut self,
        slot: Slot,
        bitmap: *mut u64,
    ) -> Result<&mut Self, EntryError> {
        self.append(
            slot,
            kvm_userspace_memory_region_entry {
                slot: slot.into(),
                invalidate_slot: 1,
                dirty_bitmap: bitmap as u64,
                ..Default::default()
            },
        )
    }

    /// Appends the creation of `region`, bound to the guest_memfd `file` from
    /// `offset` bytes on. Its flags must be empty.
    ///
    /// The kernel takes such an entry if
    /// [`memory_region_list_fields`](crate::VmFdMemoryExt::memory_region_list_fields)
    /// contains [`ListFields::GUEST_MEMFD`](crate::ListFields::GUEST_MEMFD).
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create); [`Reason::Unaligned`] for `offset`;
    /// [`Reason::UnknownFlags`] for any flag.
    pub fn create_on_memfd(
        &mut self,
        region: Region,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<&mut Self, EntryError> {
        let checked = region.check().and_then(|()| {
            aligned(Field::GuestMemfdOffset, offset)?;
            in_64_bits(Field::GuestMemfdOffset, offset, region.memory_size)?;
            match region.flags.is_empty() {
                true => Ok(()),
                false => Err(Reason::UnknownFlags(region.flags.bits())),
            }
        });
        checked.map_err(|reason| self.error(region.slot, reason))?;
        self.append(
            region.slot,
            kvm_userspace_memory_region_entry {
                flags: KVM_MEM_GUEST_MEMFD,
                guest_memfd: file.as_raw_fd() as u32,
                guest_memfd_offset: offset,
                ..region.entry(false)
            },
        )
    }

    /// Appends a move of `region` to another guest physical address, in bytes.
    /// `region` is the slot as it is at that point of the list.
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

    /// Appends a change of the flags of `region`, the slot as it is at that
    /// point of the list.
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

    /// The same updates for `KVM_SET_USER_MEMORY_REGION`, one for each entry. It knows
    /// neither a guest_memfd, so that it refuses the flags of such an entry, nor a
    /// dirty bitmap, to which nothing is written.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_memory_uapi::{Flags, Region, RegionList, Slot};
    ///
    /// # fn main() -> Result<(), kvm_memory_uapi::EntryError> {
    /// let region = Region {
    ///     slot: Slot::new(0),
    ///     flags: Flags::empty(),
    ///     guest_phys_addr: 0,
    ///     memory_size: 0x1000,
    ///     userspace_addr: 0x7f00_0000_0000,
    /// };
    /// let mut list = RegionList::new();
    /// list.delete(region.slot)?.create(region)?;
    /// let sizes: Vec<u64> = list.single_updates().map(|update| update.memory_size).collect();
    /// assert_eq!(sizes, [0, 0x1000]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn single_updates(&self) -> impl Iterator<Item = kvm_userspace_memory_region> + '_ {
        self.entries().iter().map(single_update)
    }

    /// The header, which the entries follow.
    pub(super) fn as_ptr(&self) -> *const kvm_userspace_memory_region_list {
        self.0.as_fam_struct_ptr()
    }

    pub(super) fn error(&self, slot: Slot, reason: Reason) -> EntryError {
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
    use super::super::region::MAX_PAGES;
    use super::*;
    use crate::reason::PAGE_SIZE;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

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

    /// The list as the kernel reads it: the bytes that start at the pointer.
    fn bytes(list: &RegionList) -> &[u8] {
        // SAFETY: a header of 8 bytes and len() entries of 64 bytes start at the pointer.
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
    fn the_buffer_is_an_aligned_header_that_the_entries_follow() {
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

    #[test]
    fn a_slot_on_a_memfd_has_no_flags_and_an_aligned_offset() {
        let stdin = std::io::stdin();
        let plain = Region {
            flags: Flags::empty(),
            ..region()
        };
        let mut list = RegionList::new();
        assert!(list.create_on_memfd(plain, stdin.as_fd(), 0x3000).is_ok());
        let entry = list.entries()[0];
        assert_eq!((entry.flags, entry.guest_memfd), (KVM_MEM_GUEST_MEMFD, 0));
        assert_eq!(entry.guest_memfd_offset, 0x3000);
        let field = Field::GuestMemfdOffset;
        for (region, offset, expected) in [
            (
                region(),
                0,
                Reason::UnknownFlags(Flags::LOG_DIRTY_PAGES.bits()),
            ),
            (plain, 1, Reason::Unaligned { field, value: 1 }),
            (
                plain,
                PAGE_SIZE.wrapping_neg(),
                Reason::Wraps {
                    field,
                    value: PAGE_SIZE.wrapping_neg(),
                },
            ),
        ] {
            let refused = list.create_on_memfd(region, stdin.as_fd(), offset);
            assert_eq!(reason(refused), expected);
        }
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_deletion_names_the_bitmap() {
        let mut bitmap = [0u64; 2];
        let mut list = RegionList::new();
        let slot = region().slot;
        assert!(list.delete_and_fetch_log(slot, bitmap.as_mut_ptr()).is_ok());
        let entry = list.entries()[0];
        assert_eq!(entry.dirty_bitmap, bitmap.as_ptr() as u64);
        assert_eq!((entry.memory_size, entry.invalidate_slot), (0, 1));
    }

    proptest! {
        /// For all regions, the list holds exactly the ones that the kernel's
        /// rules allow, in order, and an error names the index that the entry
        /// would have had. The rules here are a second copy, in integers that
        /// do not overflow.
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
                    slot: Slot::new(slot as u16).in_address_space((slot >> 16) as u16),
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
                        expected.push(kvm_userspace_memory_region_entry {
                            slot,
                            flags,
                            guest_phys_addr: gpa,
                            memory_size: size,
                            userspace_addr: hva,
                            ..Default::default()
                        });
                    }
                    Err(e) => {
                        prop_assert!(!possible, "{:x?}: {}", region, e);
                        prop_assert_eq!((e.entry, e.slot), (expected.len(), region.slot));
                    }
                }
            }
            prop_assert_eq!(list.entries(), expected);
        }
    }
}
