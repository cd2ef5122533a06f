// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The argument of `KVM_MAP_MEMORY`.

use bitflags::bitflags;

use crate::bindings::{
    kvm_memory_mapping, KVM_MEMORY_MAPPING_FLAG_EXEC, KVM_MEMORY_MAPPING_FLAG_PRIVATE,
    KVM_MEMORY_MAPPING_FLAG_USER, KVM_MEMORY_MAPPING_FLAG_WRITE,
};
use crate::reason::{aligned, in_64_bits, Field, Reason, PAGE_SIZE};

bitflags! {
    /// The guest's access that populating stands in for. The empty set is a
    /// read.
    ///
    /// A read maps untouched anonymous memory to the zero page, and a later
    /// write of the guest faults. Populate with [`WRITE`](Self::WRITE), and the
    /// guest takes no page fault.
    ///
    /// Source: `KVM_MEMORY_MAPPING_FLAG_*` in `linux/kvm_memory.h`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u64 {
        /// A write (`KVM_MEMORY_MAPPING_FLAG_WRITE`). If the slot has a dirty
        /// log, the pages are dirty in it.
        const WRITE = KVM_MEMORY_MAPPING_FLAG_WRITE as u64;
        /// An instruction fetch (`KVM_MEMORY_MAPPING_FLAG_EXEC`).
        const EXEC = KVM_MEMORY_MAPPING_FLAG_EXEC as u64;
        /// An access by user mode (`KVM_MEMORY_MAPPING_FLAG_USER`).
        const USER = KVM_MEMORY_MAPPING_FLAG_USER as u64;
        /// An access to private memory (`KVM_MEMORY_MAPPING_FLAG_PRIVATE`).
        const PRIVATE = KVM_MEMORY_MAPPING_FLAG_PRIVATE as u64;
    }
}

/// Guest memory that remains to be populated: `memory_size` bytes from
/// `guest_phys_addr` on, as though the guest had made an [`Access`] to each
/// page.
///
/// Addresses and sizes are in bytes and multiples of [`PAGE_SIZE`]. Populating
/// removes finished pages from the front, so after success and after an error
/// this is what is *left*. The same vCPU or another one continues there if it
/// gets the mapping again.
///
/// Source: `struct kvm_memory_mapping` in `linux/kvm_memory.h`, which counts in
/// pages.
///
/// # Example
///
/// ```
/// use kvm_memory_uapi::{Access, Mapping, Reason};
///
/// # fn main() -> Result<(), Reason> {
/// let mapping = Mapping::new(0x10_0000, 0x4000, Access::WRITE)?;
/// assert_eq!(mapping.pages(), 4);
/// let refused = Mapping::new(0x10_0000, 0, Access::WRITE);
/// assert_eq!(refused, Err(Reason::Empty));
/// # Ok(())
/// # }
/// ```
// `new` and `with_source` have checked the fields; after that only the kernel
// changes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mapping(pub(super) kvm_memory_mapping);

impl Mapping {
    /// Memory that keeps its contents while it is populated.
    ///
    /// # Errors
    ///
    /// [`Reason::Empty`], [`Reason::Unaligned`], [`Reason::Wraps`] and
    /// [`Reason::UnknownAccess`].
    pub fn new(guest_phys_addr: u64, memory_size: u64, access: Access) -> Result<Self, Reason> {
        if memory_size == 0 {
            return Err(Reason::Empty);
        }
        aligned(Field::MemorySize, memory_size)?;
        aligned(Field::GuestPhysAddr, guest_phys_addr)?;
        in_64_bits(Field::GuestPhysAddr, guest_phys_addr, memory_size)?;
        let unknown = access.difference(Access::all());
        if !unknown.is_empty() {
            return Err(Reason::UnknownAccess(unknown.bits()));
        }
        Ok(Mapping(kvm_memory_mapping {
            base_gfn: guest_phys_addr / PAGE_SIZE,
            nr_pages: memory_size / PAGE_SIZE,
            flags: access.bits(),
            source: 0,
        }))
    }

    /// The same memory, which populating fills from this process's memory at
    /// `source`, an address in bytes. The kernel copies each page right before
    /// it maps the page.
    ///
    /// # Errors
    ///
    /// [`Reason::NoSource`], [`Reason::Unaligned`] and [`Reason::Wraps`].
    ///
    /// # Safety
    ///
    /// While a vCPU populates this mapping, a copy or a part of it, the kernel
    /// reads the memory at `source`, which the compiler cannot see: nothing in
    /// this process may hold an exclusive reference into it. Memory that is not
    /// mapped gives [`PopulateError::BadAddress`](crate::PopulateError::BadAddress).
    /// If the memory changes at the same time, the guest's contents are
    /// unspecified, and nothing worse happens.
    ///
    /// The kernel writes to guest memory only, for which the creator of the
    /// memslot has vouched.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_memory_uapi::{Access, Mapping, Reason};
    ///
    /// # fn main() -> Result<(), Reason> {
    /// let mapping = Mapping::new(0, 0x1000, Access::empty())?;
    /// let image = 0x7f00_0000_0000; // address of a mapped file
    /// // SAFETY: nothing holds references into the image.
    /// let filled = unsafe { mapping.with_source(image) }?;
    /// assert_eq!(filled.source(), Some(image));
    /// // SAFETY: no memory is at 0.
    /// let refused = unsafe { mapping.with_source(0) };
    /// assert_eq!(refused, Err(Reason::NoSource));
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn with_source(self, source: u64) -> Result<Self, Reason> {
        if source == 0 {
            return Err(Reason::NoSource);
        }
        aligned(Field::Source, source)?;
        in_64_bits(Field::Source, source, self.memory_size())?;
        Ok(Mapping(kvm_memory_mapping { source, ..self.0 }))
    }

    /// Guest physical address of the first byte that is left.
    pub fn guest_phys_addr(&self) -> u64 {
        self.0.base_gfn.saturating_mul(PAGE_SIZE)
    }

    /// Bytes that are left, 0 after success.
    pub fn memory_size(&self) -> u64 {
        self.pages().saturating_mul(PAGE_SIZE)
    }

    /// Pages of [`PAGE_SIZE`] that are left, 0 after success.
    pub fn pages(&self) -> u64 {
        self.0.nr_pages
    }

    /// The guest's access that populating stands in for.
    pub fn access(&self) -> Access {
        Access::from_bits_retain(self.0.flags)
    }

    /// Address in this process of the contents for what is left; `None` if the
    /// memory keeps its contents.
    pub fn source(&self) -> Option<u64> {
        (self.0.source != 0).then_some(self.0.source)
    }

    /// Splits what is left into its first `offset` bytes and the rest, which
    /// two vCPUs can populate at the same time.
    ///
    /// `None` if `offset` is not a multiple of [`PAGE_SIZE`] strictly inside.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_memory_uapi::{Access, Mapping};
    ///
    /// # fn main() -> Result<(), kvm_memory_uapi::Reason> {
    /// let mapping = Mapping::new(0x10_0000, 0x3000, Access::WRITE)?;
    /// let (low, high) = mapping.split_at(0x1000).unwrap();
    /// assert_eq!((low.pages(), high.pages()), (1, 2));
    /// assert_eq!(high.guest_phys_addr(), 0x10_1000);
    /// assert_eq!(mapping.split_at(0x3000), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn split_at(self, offset: u64) -> Option<(Mapping, Mapping)> {
        if offset == 0 || offset >= self.memory_size() || offset % PAGE_SIZE != 0 {
            return None;
        }
        let pages = offset / PAGE_SIZE;
        let low = kvm_memory_mapping {
            nr_pages: pages,
            ..self.0
        };
        let mut high = self.0;
        high.base_gfn += pages;
        high.nr_pages -= pages;
        if high.source != 0 {
            high.source += offset;
        }
        Some((Mapping(low), Mapping(high)))
    }

    /// The argument of the ioctl.
    pub fn as_uapi(&self) -> &kvm_memory_mapping {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_invalid_mapping_is_refused_with_its_reason() {
        let all = Access::all();
        let unaligned = |field, value| Reason::Unaligned { field, value };
        let wraps = |field, value| Reason::Wraps { field, value };
        for (gpa, size, access, reason) in [
            (0, 0, all, Reason::Empty),
            (0, 1, all, unaligned(Field::MemorySize, 1)),
            (1, 0x1000, all, unaligned(Field::GuestPhysAddr, 1)),
            (
                0x1000,
                0u64.wrapping_sub(0x1000),
                all,
                wraps(Field::GuestPhysAddr, 0x1000),
            ),
            (
                0,
                0x1000,
                Access::from_bits_retain(0x11),
                Reason::UnknownAccess(0x10),
            ),
        ] {
            assert_eq!(Mapping::new(gpa, size, access), Err(reason));
        }
        let page = Mapping::new(0x10_0000, PAGE_SIZE, all).expect("valid");
        for (source, reason) in [
            (0, Reason::NoSource),
            (0x800, unaligned(Field::Source, 0x800)),
            (
                0u64.wrapping_sub(0x1000),
                wraps(Field::Source, 0u64.wrapping_sub(0x1000)),
            ),
        ] {
            // SAFETY: no vCPU populates it.
            assert_eq!(unsafe { page.with_source(source) }, Err(reason));
        }
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(
            gfn in 0u64..1 << 40,
            pages in 1u64..1 << 30,
            source in proptest::option::of(1u64..1 << 40),
            offset in prop_oneof![any::<u64>(), (0u64..1 << 30).prop_map(|p| p << 12)],
        ) {
            let mut whole = Mapping::new(gfn << 12, pages << 12, Access::EXEC).expect("valid");
            if let Some(source) = source {
                // SAFETY: no vCPU populates it.
                whole = unsafe { whole.with_source(source << 12) }.expect("valid");
            }
            prop_assert_eq!(*whole.as_uapi(), kvm_memory_mapping {
                base_gfn: gfn,
                nr_pages: pages,
                flags: 2,
                source: source.map_or(0, |s| s << 12),
            });
            match whole.split_at(offset) {
                None => prop_assert!(offset % 4096 != 0 || offset == 0 || offset >= pages << 12),
                Some((low, high)) => {
                    prop_assert_eq!(low.guest_phys_addr(), whole.guest_phys_addr());
                    prop_assert_eq!(high.guest_phys_addr(), whole.guest_phys_addr() + offset);
                    prop_assert_eq!(low.memory_size(), offset);
                    prop_assert_eq!(low.pages() + high.pages(), pages);
                    prop_assert_eq!(low.source(), whole.source());
                    prop_assert_eq!(high.source(), whole.source().map(|s| s + offset));
                    prop_assert_eq!((low.access(), high.access()), (Access::EXEC, Access::EXEC));
                }
            }
        }
    }
}
