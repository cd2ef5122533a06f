// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Many memslot updates in one step, and guest memory that is populated before
//! the guest needs it: `KVM_SET_USER_MEMORY_REGION_LIST` and `KVM_MAP_MEMORY`
//! for users of [`kvm_ioctls`].
//!
//! A VMM that resizes, splits or moves a memslot with single ioctls leaves the
//! guest without that memory in between, and a vCPU that runs there dies. A
//! list is applied as a whole: a running vCPU sees the slots as they were
//! before it or as they are after it, and if one entry fails, none happens.
//!
//! A guest that touches memory for the first time leaves guest mode for each of
//! its pages. Memory that is populated has them mapped already.
//!
//! | what | is |
//! |---|---|
//! | [`RegionList`] | the argument of the ioctl, built entry by entry and checked as far as that goes without the kernel |
//! | [`Memslots`] | a VMM's record of its slots, changed only once the kernel has agreed |
//! | [`VmFdMemoryExt`] | the ioctl itself, on [`VmFd`] |
//! | [`Mapping`] | guest memory to populate, and what of it is left |
//! | [`VcpuFdMemoryExt`] | that ioctl, on [`VcpuFd`](kvm_ioctls::VcpuFd): a step, all steps, or one by one with their progress |
//! | [`Stats`] | KVM's statistics, such as what the guest's page faults and its lists came to |
//! | [`bindings`] | the C structs and numbers, generated from `linux/kvm_memory.h` |
//!
//! # Examples
//!
//! A slot of two pages becomes two slots, under running vCPUs:
//!
//! ```no_run
//! use kvm_ioctls::Kvm;
//! use kvm_memory_uapi::{Flags, Memslots, Region, Slot, VmFdMemoryExt};
//!
//! # fn mmap(_len: u64) -> u64 { 0 }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Kvm::new()?.create_vm()?;
//! assert!(vm.max_memory_region_list_entries() > 0, "kernel without the ioctl");
//!
//! let whole = Region {
//!     slot: Slot::new(0),
//!     flags: Flags::empty(),
//!     guest_phys_addr: 0,
//!     memory_size: 0x2000,
//!     userspace_addr: mmap(0x2000),
//! };
//! let (low, high) = whole.split_at(0x1000, Slot::new(1)).ok_or("not inside the slot")?;
//!
//! let mut memslots = Memslots::new();
//! let mut update = memslots.update();
//! update.create(whole)?;
//! // SAFETY: the mapping outlives the VM.
//! unsafe { vm.update_memslots(update) }?;
//!
//! let mut update = memslots.update();
//! update.delete(whole.slot)?.create(low)?.create(high)?;
//! // SAFETY: as above, and the halves name the same memory.
//! unsafe { vm.update_memslots(update) }?;
//! # Ok(())
//! # }
//! ```
//!
//! It is populated for writing, and a third page is not there to be:
//!
//! ```no_run
//! use kvm_memory_uapi::{Access, MapError, Mapping, VcpuFdMemoryExt};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! let mut mapping = Mapping::new(0, 0x3000, Access::WRITE)?;
//! assert_eq!(vcpu.map_memory(&mut mapping), Err(MapError::NoMemslot));
//! assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x2000, 1));
//! # Ok(())
//! # }
//! ```

mod list;
mod map;
mod memslots;
mod stats;

/// `linux/kvm_memory.h` as bindgen translates it; `bindgen.sh` makes it again.
#[allow(
    missing_docs,
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]
pub mod bindings;

use std::os::raw::c_ulong;

use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ptr;

use bindings::{
    KVM_CAP_MAP_MEMORY, KVM_CAP_USER_MEMORY_REGION_LIST, KVM_SET_USER_MEMORY_REGION_LIST,
};
pub use list::{EntryError, Field, Flags, Reason, Region, RegionList, Slot, PAGE_SIZE};
pub use map::{Access, MapError, MapSteps, Mapping, Progress, VcpuFdMemoryExt};
pub use memslots::{MemslotUpdate, Memslots};
pub use stats::Stats;

/// Why the kernel refused a list. Nothing of the list has happened then.
///
/// Except where said, it is the error that the first failing entry would have
/// got from `KVM_SET_USER_MEMORY_REGION` on its own, at its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `ENOTTY`: this kernel does not have the ioctl.
    #[error("this kernel does not have KVM_SET_USER_MEMORY_REGION_LIST")]
    Unsupported,
    /// `E2BIG`: more entries than
    /// [`max_memory_region_list_entries`](VmFdMemoryExt::max_memory_region_list_entries).
    #[error("the list has more entries than the kernel takes")]
    TooManyEntries,
    /// `EINVAL`: an entry breaks a rule. What [`RegionList`] cannot know: a
    /// slot id or an address space that the VM does not have, a slot to delete
    /// that is not there, a change of size or memory of a slot that is there,
    /// an entry added as a move that moves nothing, memory beyond the guest's
    /// physical range.
    #[error("an entry does not fit the VM or the slots it has")]
    Invalid,
    /// `EEXIST`: a created or moved slot overlaps one that is there by then.
    #[error("a created or moved slot overlaps another one")]
    Overlap,
    /// `ENOMEM`: the kernel could not allocate the new slots.
    #[error("the kernel is out of memory")]
    OutOfMemory,
    /// `EFAULT`: the kernel could not read the list.
    #[error("the kernel could not read the list")]
    BadAddress,
    /// `EIO`: the VM is dead, or belongs to another process.
    #[error("the VM is dead or belongs to another process")]
    DeadVm,
    /// An errno that the ioctl's documentation does not name.
    #[error("unexpected error: {0}")]
    Other(errno::Error),
}

impl From<errno::Error> for Error {
    fn from(e: errno::Error) -> Self {
        match e.errno() {
            libc::ENOTTY => Error::Unsupported,
            libc::E2BIG => Error::TooManyEntries,
            libc::EINVAL => Error::Invalid,
            libc::EEXIST => Error::Overlap,
            libc::ENOMEM => Error::OutOfMemory,
            libc::EFAULT => Error::BadAddress,
            libc::EIO => Error::DeadVm,
            _ => Error::Other(e),
        }
    }
}

/// Lists of memslot updates on a [`VmFd`], and what else it can do with memory.
///
/// Source: `linux/kvm_memory.h`; `Documentation/virt/kvm/memory/memslots.rst` says what
/// a vCPU sees meanwhile.
pub trait VmFdMemoryExt {
    /// The most entries a list may have, 0 if the kernel does not have the
    /// ioctl (`KVM_CAP_USER_MEMORY_REGION_LIST`).
    ///
    /// Where it is there, it is enough to replace every slot of the VM in one
    /// call.
    fn max_memory_region_list_entries(&self) -> usize;

    /// Whether vCPUs can populate memory, as [`VcpuFdMemoryExt`] has them do
    /// (`KVM_CAP_MAP_MEMORY`).
    fn can_map_memory(&self) -> bool;

    /// Applies all entries of `list` in order and at once, or none of them
    /// (`KVM_SET_USER_MEMORY_REGION_LIST`).
    ///
    /// When this returns, no vCPU can reach memory any more that only deleted
    /// or moved slots named. An empty list is a success.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Safety
    ///
    /// The guest may write to the memory that the entries name for as long as
    /// their slots exist: it must be mapped, and nothing in this process may
    /// rely on its content or hold a reference into it.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{Error, RegionList, Slot, VmFdMemoryExt};
    ///
    /// let vm = Kvm::new()?.create_vm()?;
    /// let mut list = RegionList::new();
    /// list.delete(Slot::new(7))?;
    /// // SAFETY: no entry names memory.
    /// let refused = unsafe { vm.set_user_memory_regions(&list) };
    /// assert_eq!(refused, Err(Error::Invalid), "there is no slot 7");
    /// # Ok(())
    /// # }
    /// ```
    unsafe fn set_user_memory_regions(&self, list: &RegionList) -> Result<(), Error>;

    /// Applies an update to the VM and, if the VM has taken it, to the
    /// [`Memslots`] it was made from.
    ///
    /// # Errors
    ///
    /// See [`Error`]; the [`Memslots`] are then as they were.
    ///
    /// # Safety
    ///
    /// As for [`set_user_memory_regions`](Self::set_user_memory_regions).
    unsafe fn update_memslots(&self, update: MemslotUpdate<'_>) -> Result<(), Error> {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.set_user_memory_regions(update.list()) }?;
        update.commit();
        Ok(())
    }
}

impl VmFdMemoryExt for VmFd {
    fn max_memory_region_list_entries(&self) -> usize {
        let n = self.check_extension_raw(c_ulong::from(KVM_CAP_USER_MEMORY_REGION_LIST));
        usize::try_from(n).unwrap_or(0)
    }

    fn can_map_memory(&self) -> bool {
        self.check_extension_raw(c_ulong::from(KVM_CAP_MAP_MEMORY)) > 0
    }

    unsafe fn set_user_memory_regions(&self, list: &RegionList) -> Result<(), Error> {
        // SAFETY: the pointer is to a header followed by as many entries as the
        // header says, which the kernel only reads. The caller vouches for the
        // memory that the entries name.
        let ret = unsafe {
            ioctl_with_ptr(
                self,
                c_ulong::from(KVM_SET_USER_MEMORY_REGION_LIST),
                list.as_ptr(),
            )
        };
        if ret == 0 {
            Ok(())
        } else {
            Err(errno::Error::last().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_has_its_documented_meaning() {
        for (errno, error) in [
            (libc::ENOTTY, Error::Unsupported),
            (libc::E2BIG, Error::TooManyEntries),
            (libc::EINVAL, Error::Invalid),
            (libc::EEXIST, Error::Overlap),
            (libc::ENOMEM, Error::OutOfMemory),
            (libc::EFAULT, Error::BadAddress),
            (libc::EIO, Error::DeadVm),
            (libc::EPERM, Error::Other(errno::Error::new(libc::EPERM))),
        ] {
            assert_eq!(Error::from(errno::Error::new(errno)), error);
        }
    }
}
