// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `KVM_MAP_MEMORY` on a vCPU, and its progress as an iterator.

use std::iter::FusedIterator;
use std::os::raw::c_ulong;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::error::PopulateError;
use super::mapping::Mapping;
use crate::bindings::KVM_MAP_MEMORY;

/// Populating guest memory, on a [`VcpuFd`].
///
/// Any number of vCPUs can populate at the same time, each from its own thread,
/// before they run or between runs. A vCPU cannot run while it populates.
///
/// These methods are safe: only [`Mapping::with_source`], which is unsafe, lets
/// them change the contents of memory.
///
/// Source: `linux/kvm_memory.h`. `Documentation/virt/kvm/memory/populate.rst`
/// says how the ioctl treats every kind of memory.
pub trait VcpuFdMemoryExt {
    /// Populates a bounded part of `mapping`: calls `KVM_MAP_MEMORY` once.
    /// Returns the number of pages that are left, 0 after success.
    ///
    /// The call ends after about 256 MiB, and as soon as the thread gets a
    /// signal: `EAGAIN` and `EINTR` are no errors here. If nothing is left,
    /// nothing happens.
    ///
    /// # Errors
    ///
    /// See [`PopulateError`]. The call returns an error as soon as it occurs.
    /// `mapping` is then what is left, and starts with the page that failed.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::VcpuFd;
    /// use kvm_memory_uapi::{Mapping, PopulateError, VcpuFdMemoryExt};
    ///
    /// /// Populates until `stop` says so; returns the pages that are left.
    /// fn populate(
    ///     vcpu: &mut VcpuFd,
    ///     mapping: &mut Mapping,
    ///     stop: impl Fn() -> bool,
    /// ) -> Result<u64, PopulateError> {
    ///     loop {
    ///         match vcpu.populate_step(mapping) {
    ///             Ok(left) if left == 0 || stop() => return Ok(left),
    ///             Ok(_) => {}
    ///             // The guest's memory ends here.
    ///             Err(PopulateError::NoMemslot) => return Ok(mapping.pages()),
    ///             Err(e) => return Err(e),
    ///         }
    ///     }
    /// }
    /// ```
    fn populate_step(&mut self, mapping: &mut Mapping) -> Result<u64, PopulateError>;

    /// Populates all of `mapping`, in as many steps as that takes.
    ///
    /// Signals do not end this. A thread that must react to something before
    /// the end calls [`populate_step`](Self::populate_step).
    ///
    /// # Errors
    ///
    /// As for [`populate_step`](Self::populate_step).
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{Access, Mapping, PopulateError, VcpuFdMemoryExt, VmFdMemoryExt};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// assert!(vm.can_populate());
    /// // ... create a memslot for the first GiB ...
    /// let mut vcpu = vm.create_vcpu(0)?;
    /// let mut mapping = Mapping::new(0, 1 << 30, Access::WRITE)?;
    /// match vcpu.populate(&mut mapping) {
    ///     Ok(()) => assert_eq!(mapping.pages(), 0),
    ///     Err(PopulateError::NoMemslot) => {
    ///         eprintln!("no memory at {:#x}", mapping.guest_phys_addr());
    ///     }
    ///     Err(e) => return Err(e.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn populate(&mut self, mapping: &mut Mapping) -> Result<(), PopulateError> {
        while self.populate_step(mapping)? > 0 {}
        Ok(())
    }

    /// An iterator that populates a step of `mapping` for each item.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::VcpuFd;
    /// use kvm_memory_uapi::{Mapping, PopulateError, VcpuFdMemoryExt};
    ///
    /// fn populate(vcpu: &mut VcpuFd, mapping: &mut Mapping) -> Result<(), PopulateError> {
    ///     for progress in vcpu.populate_steps(mapping) {
    ///         let progress = progress?;
    ///         eprintln!("{} of {} pages", progress.done, progress.total);
    ///     }
    ///     Ok(())
    /// }
    ///
    /// fn with_dirty_ring(vcpu: &mut VcpuFd, mapping: &mut Mapping) -> Result<(), PopulateError> {
    ///     // After an error, the mapping is what is left.
    ///     while let Err(e) = populate(vcpu, mapping) {
    ///         if e != PopulateError::DirtyRingFull {
    ///             return Err(e);
    ///         }
    ///         collect_dirty_ring();
    ///     }
    ///     Ok(())
    /// }
    /// # fn collect_dirty_ring() {}
    /// ```
    fn populate_steps<'a>(&'a mut self, mapping: &'a mut Mapping) -> PopulateSteps<'a, Self>
    where
        Self: Sized,
    {
        PopulateSteps {
            total: mapping.pages(),
            vcpu: self,
            mapping,
            failed: false,
        }
    }
}

impl VcpuFdMemoryExt for VcpuFd {
    fn populate_step(&mut self, mapping: &mut Mapping) -> Result<u64, PopulateError> {
        if mapping.pages() == 0 {
            return Ok(0);
        }
        // SAFETY: the kernel reads and writes one struct of this type and the
        // `kvm_run` that `self` borrows. It writes to memory of memslots, for
        // which their creator has vouched, and reads memory for which the caller
        // of `with_source` has vouched.
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

/// How far [`PopulateSteps`] are, in pages of [`PAGE_SIZE`](crate::PAGE_SIZE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages that are populated since the iterator was made.
    pub done: u64,
    /// Pages that were left at that time.
    pub total: u64,
}

/// The steps of populating a [`Mapping`], as an iterator: see
/// [`populate_steps`](VcpuFdMemoryExt::populate_steps), also for an example.
///
/// Yields the progress after each step. Ends when nothing is left, or after an
/// error; the mapping is then what is left, and new steps can continue with it.
#[derive(Debug)]
#[must_use = "the iterator populates nothing until it is used"]
pub struct PopulateSteps<'a, V> {
    vcpu: &'a mut V,
    mapping: &'a mut Mapping,
    total: u64,
    failed: bool,
}

impl<V> PopulateSteps<'_, V> {
    /// What is left to populate.
    pub fn left(&self) -> &Mapping {
        self.mapping
    }
}

impl<V: VcpuFdMemoryExt> Iterator for PopulateSteps<'_, V> {
    type Item = Result<Progress, PopulateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.mapping.pages() == 0 {
            return None;
        }
        let step = self.vcpu.populate_step(self.mapping);
        self.failed = step.is_err();
        Some(step.map(|left| Progress {
            done: self.total.saturating_sub(left),
            total: self.total,
        }))
    }
}

impl<V: VcpuFdMemoryExt> FusedIterator for PopulateSteps<'_, V> {}

#[cfg(test)]
mod tests {
    use super::super::Access;
    use super::*;
    use crate::PAGE_SIZE;

    /// A vCPU without a kernel: each step populates a number of pages, then
    /// returns the error, if any.
    struct Fake(Vec<(u64, Option<PopulateError>)>);

    impl VcpuFdMemoryExt for Fake {
        fn populate_step(&mut self, mapping: &mut Mapping) -> Result<u64, PopulateError> {
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
    fn populate_makes_all_steps_unless_one_fails() {
        let full = PopulateError::DirtyRingFull;
        // A signal has interrupted the step without progress.
        let mut vcpu = Fake(vec![(2, None), (0, None), (3, Some(full)), (5, None)]);
        let mut mapping = mapping(10);
        assert_eq!(vcpu.populate(&mut mapping), Err(full));
        assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x10_5000, 5));
        assert_eq!(vcpu.populate(&mut mapping), Ok(()));
        assert_eq!(mapping.pages(), 0);
    }

    #[test]
    fn steps_yield_progress_and_end_after_an_error() {
        let full = PopulateError::DirtyRingFull;
        let mut vcpu = Fake(vec![(2, None), (0, None), (3, Some(full)), (5, None)]);
        let mut mapping = mapping(10);
        let at = |done, total| Some(Ok(Progress { done, total }));

        let mut steps = vcpu.populate_steps(&mut mapping);
        assert_eq!(steps.next(), at(2, 10));
        assert_eq!(steps.next(), at(2, 10));
        assert_eq!(steps.next(), Some(Err(full)));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.left().pages(), 5);

        let mut steps = vcpu.populate_steps(&mut mapping);
        assert_eq!(steps.next(), at(5, 5));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.next(), None);
    }
}
