// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The errors of `KVM_SET_USER_MEMORY_REGION_LIST`.

use vmm_sys_util::errno;

/// Why the kernel refused a list. After an error no entry has taken effect, but
/// see [`Error::BadAddress`].
///
/// Unless a variant says otherwise, this is the error that
/// `KVM_SET_USER_MEMORY_REGION` would have returned for the first entry that
/// fails, at its place in the order.
///
/// Source: "KVM_SET_USER_MEMORY_REGION_LIST" in
/// `Documentation/virt/kvm/memory/memslots.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `ENOTTY`: this kernel does not have the ioctl.
    #[error("this kernel does not have KVM_SET_USER_MEMORY_REGION_LIST")]
    Unsupported,
    /// `E2BIG`: the list has more entries than
    /// [`max_memory_region_list_entries`](crate::VmFdMemoryExt::max_memory_region_list_entries).
    #[error("the list has more entries than the kernel accepts")]
    TooManyEntries,
    /// `EINVAL`: an entry breaks a rule that [`RegionList`](crate::RegionList)
    /// cannot check. The VM has no such slot id or address space; the slot to
    /// delete does not exist; an entry changes size or memory of a slot that
    /// exists; an entry that was added as a move moves nothing; or memory lies
    /// beyond the guest's physical addresses.
    #[error("an entry does not fit the VM or its slots")]
    Invalid,
    /// `EEXIST`: a created or moved slot overlaps a slot that exists at that
    /// point of the list, or one is bound to the same pages of a guest_memfd.
    #[error("a created or moved slot overlaps another one")]
    Overlap,
    /// `EBADF`: the guest_memfd is not an open file.
    #[error("the guest_memfd is not an open file")]
    BadFile,
    /// `ENXIO`: an entry asks for dirty bits, and the VM has a dirty ring.
    #[error("a VM with a dirty ring has no dirty bits")]
    NoDirtyBits,
    /// `ENOMEM`: the kernel could not allocate the new slots.
    #[error("the kernel is out of memory")]
    OutOfMemory,
    /// `EFAULT`: the kernel could not read the list, or could not write to a
    /// bitmap. If the process has unmapped a bitmap during the call, the entries
    /// have taken effect all the same.
    #[error("the kernel could not read the list, or could not write to a bitmap")]
    BadAddress,
    /// `EIO`: the VM is dead or belongs to another process.
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
            libc::EBADF => Error::BadFile,
            libc::ENXIO => Error::NoDirtyBits,
            libc::ENOMEM => Error::OutOfMemory,
            libc::EFAULT => Error::BadAddress,
            libc::EIO => Error::DeadVm,
            _ => Error::Other(e),
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
            (libc::EBADF, Error::BadFile),
            (libc::ENXIO, Error::NoDirtyBits),
            (libc::ENOMEM, Error::OutOfMemory),
            (libc::EFAULT, Error::BadAddress),
            (libc::EIO, Error::DeadVm),
            (libc::EPERM, Error::Other(errno::Error::new(libc::EPERM))),
        ] {
            assert_eq!(Error::from(errno::Error::new(errno)), error);
        }
    }
}
