// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Guest memory to populate, and the ioctl that does it.

use std::iter::FusedIterator;
use std::os::raw::c_ulong;

use bitflags::bitflags;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::bindings::{
    kvm_memory_mapping, KVM_MAP_MEMORY, KVM_MEMORY_MAPPING_FLAG_EXEC,
    KVM_MEMORY_MAPPING_FLAG_PRIVATE, KVM_MEMORY_MAPPING_FLAG_USER, KVM_MEMORY_MAPPING_FLAG_WRITE,
};
use crate::list::{Field, Reason, PAGE_SIZE};

bitflags! {
    /// The access of the guest that a [`Mapping`] stands in for. Without any
    /// of these, it is a read.
    ///
    /// A read maps memory that nobody has written to yet to the zero page, and
    /// a later write of the guest faults: to spare the guest its page faults,
    /// populate with [`WRITE`](Self::WRITE).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u64 {
        /// A write (`KVM_MEMORY_MAPPING_FLAG_WRITE`). The pages are dirty in
        /// the log of a slot that has one.
        const WRITE = KVM_MEMORY_MAPPING_FLAG_WRITE as u64;
        /// An instruction fetch (`KVM_MEMORY_MAPPING_FLAG_EXEC`).
        const EXEC = KVM_MEMORY_MAPPING_FLAG_EXEC as u64;
        /// By user mode (`KVM_MEMORY_MAPPING_FLAG_USER`).
        const USER = KVM_MEMORY_MAPPING_FLAG_USER as u64;
        /// To private memory (`KVM_MEMORY_MAPPING_FLAG_PRIVATE`).
        const PRIVATE = KVM_MEMORY_MAPPING_FLAG_PRIVATE as u64;
    }
}

/// Guest memory that is to be populated: `memory_size` bytes from
/// `guest_phys_addr` on, as though the guest had made an [`Access`] to each of
/// their pages.
///
/// Addresses and sizes are in bytes and multiples of [`PAGE_SIZE`]. What is
/// done is taken off at the front, so this is at any time what is *left*, also
/// after an error, and giving it to the vCPU again, or to another one, goes on
/// from there.
///
/// Source: `struct kvm_memory_mapping`, which counts in pages.
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
// The fields are what `new` and `with_source` have checked, or the kernel has
// made of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mapping(kvm_memory_mapping);

impl Mapping {
    /// Memory to populate that keeps its contents.
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
        range(Field::GuestPhysAddr, guest_phys_addr, memory_size)?;
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

    /// The same with the contents of this process's memory from `source` on,
    /// an address in bytes. Each page is copied right before it is mapped.
    ///
    /// # Errors
    ///
    /// [`Reason::NoSource`], [`Reason::Unaligned`] and [`Reason::Wraps`].
    ///
    /// # Safety
    ///
    /// While a vCPU populates this mapping, a copy or a part of it, the memory
    /// at `source` is read without this process's compiler knowing: nothing in
    /// this process may hold an exclusive reference into it. Memory that is
    /// not mapped, or that changes meanwhile, does no harm: the one gives
    /// [`MapError::BadAddress`], the other leaves open what the guest finds.
    ///
    /// What is written to is guest memory, about which whoever has made the
    /// memslot has promised all there is to promise.
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_memory_uapi::{Access, Mapping, Reason};
    ///
    /// # fn main() -> Result<(), Reason> {
    /// let mapping = Mapping::new(0, 0x1000, Access::empty())?;
    /// let image = 0x7f00_0000_0000; // where a file is mapped
    /// // SAFETY: nobody has references into the image.
    /// let filled = unsafe { mapping.with_source(image) }?;
    /// assert_eq!(filled.source(), Some(image));
    /// // SAFETY: there is nothing at 0.
    /// let refused = unsafe { mapping.with_source(0) };
    /// assert_eq!(refused, Err(Reason::NoSource));
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn with_source(self, source: u64) -> Result<Self, Reason> {
        if source == 0 {
            return Err(Reason::NoSource);
        }
        range(Field::Source, source, self.memory_size())?;
        Ok(Mapping(kvm_memory_mapping { source, ..self.0 }))
    }

    /// Guest physical address of the first byte that is left.
    pub fn guest_phys_addr(&self) -> u64 {
        self.0.base_gfn.saturating_mul(PAGE_SIZE)
    }

    /// Bytes that are left, 0 if all is done.
    pub fn memory_size(&self) -> u64 {
        self.pages().saturating_mul(PAGE_SIZE)
    }

    /// Pages that are left, 0 if all is done.
    pub fn pages(&self) -> u64 {
        self.0.nr_pages
    }

    /// The access that populating stands in for.
    pub fn access(&self) -> Access {
        Access::from_bits_retain(self.0.flags)
    }

    /// Address in this process of the contents of what is left; `None` if it
    /// keeps its own.
    pub fn source(&self) -> Option<u64> {
        (self.0.source != 0).then_some(self.0.source)
    }

    /// The first `offset` bytes of what is left, and the rest, for two vCPUs
    /// to do at the same time.
    ///
    /// `None` if `offset` is not a multiple of [`PAGE_SIZE`] strictly inside.
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

fn aligned(field: Field, value: u64) -> Result<(), Reason> {
    if value % PAGE_SIZE != 0 {
        return Err(Reason::Unaligned { field, value });
    }
    Ok(())
}

fn range(field: Field, value: u64, size: u64) -> Result<(), Reason> {
    aligned(field, value)?;
    value
        .checked_add(size)
        .map(|_| ())
        .ok_or(Reason::Wraps { field, value })
}

/// Why memory could not be populated. The [`Mapping`] says how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// `EINVAL`: memory beyond the guest's physical addresses, or
    /// [`Access::PRIVATE`] where the VM has no private memory. Also what a
    /// kernel says that does not have the ioctl, which is better asked for
    /// with [`can_map_memory`](crate::VmFdMemoryExt::can_map_memory).
    #[error("memory that the guest cannot have, or no KVM_MAP_MEMORY in this kernel")]
    Invalid,
    /// `ENOTTY`: this kernel does not have the ioctl.
    #[error("this kernel does not have KVM_MAP_MEMORY")]
    Unsupported,
    /// `EOPNOTSUPP`: KVM translates the guest's addresses without second-level
    /// page tables, the vCPU runs a nested guest, or VMs of this type do not
    /// take what was asked for.
    #[error("memory of this VM cannot be populated like that")]
    UnsupportedByVm,
    /// `ENOENT`: there is no memslot, or it is read-only and was to be written.
    #[error("no memslot, or a read-only one")]
    NoMemslot,
    /// `EFAULT`: the memory behind the slot, or the source, is not mapped or
    /// has no permission for the access; or private memory was taken for
    /// shared, or the other way round.
    #[error("the memory behind the slot, or the source, cannot be used")]
    BadAddress,
    /// `ENOSPC`: the vCPU's dirty ring is full. Collect it, then go on.
    #[error("the dirty ring is full")]
    DirtyRingFull,
    /// `EHWPOISON`: the memory behind the slot is poisoned.
    #[error("the memory behind the slot is poisoned")]
    Poisoned,
    /// `ENOMEM`: the kernel could not allocate its page tables.
    #[error("the kernel is out of memory")]
    OutOfMemory,
    /// `EIO`: the VM is dead, or belongs to another process.
    #[error("the VM is dead or belongs to another process")]
    DeadVm,
    /// An errno that the ioctl's documentation does not name.
    #[error("unexpected error: {0}")]
    Other(errno::Error),
}

impl From<errno::Error> for MapError {
    fn from(e: errno::Error) -> Self {
        match e.errno() {
            libc::EINVAL => MapError::Invalid,
            libc::ENOTTY => MapError::Unsupported,
            libc::EOPNOTSUPP => MapError::UnsupportedByVm,
            libc::ENOENT => MapError::NoMemslot,
            libc::EFAULT => MapError::BadAddress,
            libc::ENOSPC => MapError::DirtyRingFull,
            libc::EHWPOISON => MapError::Poisoned,
            libc::ENOMEM => MapError::OutOfMemory,
            libc::EIO => MapError::DeadVm,
            _ => MapError::Other(e),
        }
    }
}

/// How far [`MapSteps`] have come, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages that are done since the first step.
    pub done: u64,
    /// Pages that there were to do then.
    pub total: u64,
}

/// Populating guest memory, on a [`VcpuFd`].
///
/// Any number of vCPUs can populate at once, each from its own thread, before
/// they run or in between. A vCPU cannot run meanwhile.
///
/// Nothing here is unsafe: no memory gets other contents but by
/// [`Mapping::with_source`], which is.
///
/// Source: `linux/kvm_memory.h`; `Documentation/virt/kvm/memory/populate.rst` says what
/// becomes of every kind of memory.
pub trait VcpuFdMemoryExt {
    /// Does a bounded part of `mapping` (`KVM_MAP_MEMORY`, once). Returns the
    /// number of pages that are left, 0 if all is done.
    ///
    /// This comes back after 256 MiB at most, and as soon as the thread gets a
    /// signal: `EAGAIN` and `EINTR` are no errors. If nothing is left,
    /// nothing happens.
    ///
    /// # Errors
    ///
    /// See [`MapError`]. An error is returned as soon as it occurs, and
    /// `mapping` is what is left then, the page that gave the error first.
    fn map_memory_step(&mut self, mapping: &mut Mapping) -> Result<u64, MapError>;

    /// Does all of `mapping`, in as many steps as that takes.
    ///
    /// Signals do not end this; a thread that is to hear of something
    /// meanwhile makes its own steps.
    ///
    /// # Errors
    ///
    /// As for [`map_memory_step`](Self::map_memory_step).
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{Access, MapError, Mapping, VcpuFdMemoryExt, VmFdMemoryExt};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// assert!(vm.can_map_memory());
    /// // A memslot for the first GiB is created here, then ...
    /// let mut vcpu = vm.create_vcpu(0)?;
    /// let mut mapping = Mapping::new(0, 1 << 30, Access::WRITE)?;
    /// match vcpu.map_memory(&mut mapping) {
    ///     Ok(()) => assert_eq!(mapping.pages(), 0),
    ///     Err(MapError::NoMemslot) => {
    ///         eprintln!("no memory at {:#x}", mapping.guest_phys_addr());
    ///     }
    ///     Err(e) => return Err(e.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn map_memory(&mut self, mapping: &mut Mapping) -> Result<(), MapError> {
        while self.map_memory_step(mapping)? > 0 {}
        Ok(())
    }

    /// Does a step of `mapping` each time it is asked for the next item.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::VcpuFd;
    /// use kvm_memory_uapi::{MapError, Mapping, VcpuFdMemoryExt};
    ///
    /// fn populate(vcpu: &mut VcpuFd, mapping: &mut Mapping) -> Result<(), MapError> {
    ///     for progress in vcpu.map_memory_steps(mapping) {
    ///         let progress = progress?;
    ///         eprintln!("{} of {} pages", progress.done, progress.total);
    ///     }
    ///     Ok(())
    /// }
    ///
    /// fn with_dirty_ring(vcpu: &mut VcpuFd, mapping: &mut Mapping) -> Result<(), MapError> {
    ///     // After an error, what is left can be gone on with.
    ///     while let Err(e) = populate(vcpu, mapping) {
    ///         if e != MapError::DirtyRingFull {
    ///             return Err(e);
    ///         }
    ///         collect_dirty_ring();
    ///     }
    ///     Ok(())
    /// }
    /// # fn collect_dirty_ring() {}
    /// ```
    fn map_memory_steps<'a>(&'a mut self, mapping: &'a mut Mapping) -> MapSteps<'a, Self>
    where
        Self: Sized,
    {
        MapSteps {
            total: mapping.pages(),
            vcpu: self,
            mapping,
            failed: false,
        }
    }
}

impl VcpuFdMemoryExt for VcpuFd {
    fn map_memory_step(&mut self, mapping: &mut Mapping) -> Result<u64, MapError> {
        if mapping.pages() == 0 {
            return Ok(0);
        }
        // SAFETY: the kernel reads and writes one struct, of this type, and the
        // `kvm_run` that is borrowed with `self`. It writes to memory of
        // memslots, which their creator has left to it, and reads that of
        // `with_source`, whose caller has.
        let ret =
            unsafe { ioctl_with_mut_ref(self, c_ulong::from(KVM_MAP_MEMORY), &mut mapping.0) };
        if ret == 0 {
            return Ok(mapping.pages());
        }
        let e = errno::Error::last();
        match e.errno() {
            libc::EAGAIN | libc::EINTR => Ok(mapping.pages()),
            _ => Err(e.into()),
        }
    }
}

/// The steps of populating a [`Mapping`], as an iterator: see
/// [`map_memory_steps`](VcpuFdMemoryExt::map_memory_steps).
///
/// Yields how far it is after each step. Ends when all is done, or after an
/// error; the mapping is what is left, and new steps can be made of it.
#[derive(Debug)]
#[must_use = "nothing is populated unless the steps are made"]
pub struct MapSteps<'a, V> {
    vcpu: &'a mut V,
    mapping: &'a mut Mapping,
    total: u64,
    failed: bool,
}

impl<V> MapSteps<'_, V> {
    /// What is left.
    pub fn left(&self) -> &Mapping {
        self.mapping
    }
}

impl<V: VcpuFdMemoryExt> Iterator for MapSteps<'_, V> {
    type Item = Result<Progress, MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.mapping.pages() == 0 {
            return None;
        }
        let step = self.vcpu.map_memory_step(self.mapping);
        self.failed = step.is_err();
        Some(step.map(|left| Progress {
            done: self.total.saturating_sub(left),
            total: self.total,
        }))
    }
}

impl<V: VcpuFdMemoryExt> FusedIterator for MapSteps<'_, V> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errno_has_its_documented_meaning() {
        for (errno, error) in [
            (libc::EINVAL, MapError::Invalid),
            (libc::ENOTTY, MapError::Unsupported),
            (libc::EOPNOTSUPP, MapError::UnsupportedByVm),
            (libc::ENOENT, MapError::NoMemslot),
            (libc::EFAULT, MapError::BadAddress),
            (libc::ENOSPC, MapError::DirtyRingFull),
            (libc::EHWPOISON, MapError::Poisoned),
            (libc::ENOMEM, MapError::OutOfMemory),
            (libc::EIO, MapError::DeadVm),
            (libc::EPERM, MapError::Other(errno::Error::new(libc::EPERM))),
        ] {
            assert_eq!(MapError::from(errno::Error::new(errno)), error);
        }
    }

    /// A vCPU without a kernel: each step does so many pages, then fails if it
    /// is to.
    struct Fake(Vec<(u64, Option<MapError>)>);

    impl VcpuFdMemoryExt for Fake {
        fn map_memory_step(&mut self, mapping: &mut Mapping) -> Result<u64, MapError> {
            let (pages, error) = self.0.remove(0);
            mapping.0.base_gfn += pages;
            mapping.0.nr_pages -= pages;
            error.map_or(Ok(mapping.pages()), Err)
        }
    }

    fn mapping(pages: u64) -> Mapping {
        Mapping::new(0x10_0000, pages * PAGE_SIZE, Access::WRITE).expect("valid")
    }

    #[test]
    fn all_steps_are_made_unless_one_fails() {
        let full = MapError::DirtyRingFull;
        // A step without progress is one that was interrupted.
        let mut vcpu = Fake(vec![(2, None), (0, None), (3, Some(full)), (5, None)]);
        let mut mapping = mapping(10);
        assert_eq!(vcpu.map_memory(&mut mapping), Err(full));
        assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x10_5000, 5));
        assert_eq!(vcpu.map_memory(&mut mapping), Ok(()));
        assert_eq!(mapping.pages(), 0);
    }

    #[test]
    fn steps_say_how_far_they_are_and_end_with_an_error() {
        let full = MapError::DirtyRingFull;
        let mut vcpu = Fake(vec![(2, None), (0, None), (3, Some(full)), (5, None)]);
        let mut mapping = mapping(10);
        let at = |done, total| Some(Ok(Progress { done, total }));

        let mut steps = vcpu.map_memory_steps(&mut mapping);
        assert_eq!(steps.next(), at(2, 10));
        assert_eq!(steps.next(), at(2, 10));
        assert_eq!(steps.next(), Some(Err(full)));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.left().pages(), 5);

        let mut steps = vcpu.map_memory_steps(&mut mapping);
        assert_eq!(steps.next(), at(5, 5));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.next(), None);
    }

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
        for (source, reason) in [
            (0, Reason::NoSource),
            (0x800, unaligned(Field::Source, 0x800)),
            (
                0u64.wrapping_sub(0x1000),
                wraps(Field::Source, 0u64.wrapping_sub(0x1000)),
            ),
        ] {
            // SAFETY: it is never populated.
            assert_eq!(unsafe { mapping(1).with_source(source) }, Err(reason));
        }
    }

    proptest! {
        #[test]
        fn parts_are_the_whole(
            gfn in 0u64..1 << 40,
            pages in 1u64..1 << 30,
            source in proptest::option::of(1u64..1 << 40),
            offset in prop_oneof![any::<u64>(), (0u64..1 << 30).prop_map(|p| p << 12)],
        ) {
            let mut whole = Mapping::new(gfn << 12, pages << 12, Access::EXEC).expect("valid");
            if let Some(source) = source {
                // SAFETY: it is never populated.
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
