// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The errors of `KVM_MAP_MEMORY`.

use vmm_sys_util::errno;

/// Why memory could not be populated. The [`Mapping`](crate::Mapping) is what is
/// left, and starts with the page that failed.
///
/// Source: `Documentation/virt/kvm/memory/populate.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PopulateError {
    /// `EINVAL`: the range is beyond the guest's physical addresses, or
    /// [`Access::PRIVATE`](crate::Access::PRIVATE) is given and the VM has no
    /// private memory. A kernel without the ioctl returns it as well:
    /// [`can_populate`](crate::VmFdMemoryExt::can_populate) tells them apart.
    #[error("the guest cannot have this memory, or this kernel does not have KVM_MAP_MEMORY")]
    Invalid,
    /// `ENOTTY`: this kernel does not have the ioctl.
    #[error("this kernel does not have KVM_MAP_MEMORY")]
    Unsupported,
    /// `EOPNOTSUPP`: KVM translates the guest's addresses without second-level
    /// page tables; the vCPU runs a nested guest; or VMs of this type do not
    /// support the access or a source.
    #[error("this VM does not support populating its memory in this way")]
    UnsupportedByVm,
    /// `ENOENT`: there is no memslot, or it is read-only and the call writes.
    #[error("no memslot, or a read-only one")]
    NoMemslot,
    /// `EFAULT`: the memory behind the slot, or the source, is not mapped or
    /// has no permission for the access; or a page is private and the access is
    /// not, or the other way round.
    #[error("the memory behind the slot, or the source, cannot be used")]
    BadAddress,
    /// `ENOSPC`: the vCPU's dirty ring is full. Collect it, then continue.
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

impl From<errno::Error> for PopulateError {
    fn from(e: errno::Error) -> Self {
        match e.errno() {
            libc::EINVAL => PopulateError::Invalid,
            libc::ENOTTY => PopulateError::Unsupported,
            libc::EOPNOTSUPP => PopulateError::UnsupportedByVm,
            libc::ENOENT => PopulateError::NoMemslot,
            libc::EFAULT => PopulateError::BadAddress,
            libc::ENOSPC => PopulateError::DirtyRingFull,
            libc::EHWPOISON => PopulateError::Poisoned,
            libc::ENOMEM => PopulateError::OutOfMemory,
            libc::EIO => PopulateError::DeadVm,
            _ => PopulateError::Other(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_has_its_documented_meaning() {
        for (errno, error) in [
            (libc::EINVAL, PopulateError::Invalid),
            (libc::ENOTTY, PopulateError::Unsupported),
            (libc::EOPNOTSUPP, PopulateError::UnsupportedByVm),
            (libc::ENOENT, PopulateError::NoMemslot),
            (libc::EFAULT, PopulateError::BadAddress),
            (libc::ENOSPC, PopulateError::DirtyRingFull),
            (libc::EHWPOISON, PopulateError::Poisoned),
            (libc::ENOMEM, PopulateError::OutOfMemory),
            (libc::EIO, PopulateError::DeadVm),
            (
                libc::EPERM,
                PopulateError::Other(errno::Error::new(libc::EPERM)),
            ),
        ] {
            assert_eq!(PopulateError::from(errno::Error::new(errno)), error);
        }
    }
}
