// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The errors of changing an address space.

use vmm_sys_util::errno;

use crate::reason::Reason;

/// Why an address space could not be changed or looked at. Nothing has changed
/// then.
///
/// Source: `Documentation/virt/kvm/memory/gmap.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GmapError {
    /// No kernel would take these arguments.
    #[error(transparent)]
    Argument(#[from] Reason),
    /// `EINVAL`: the guest cannot have these addresses; or the vCPU has no
    /// address space of its own; or, when a VM is to have them, the VM has a vCPU,
    /// a memslot or an irqchip already, or this kernel cannot do it.
    #[error(
        "the guest cannot have these addresses, or its vCPUs have no address spaces of their own"
    )]
    Invalid,
    /// `EREMOTE`: nothing is mapped there.
    #[error("nothing is mapped there")]
    NotMapped,
    /// `EFAULT`: what is mapped there cannot be read.
    #[error("the memory that is mapped there cannot be read")]
    BadAddress,
    /// `ENOSPC`: the address space has as many extents as there can be. Extents
    /// whose memory is contiguous on both sides can be one.
    #[error("the address space has too many extents")]
    TooManyExtents,
    /// `ENOMEM`: the kernel could not allocate its tables.
    #[error("the kernel is out of memory")]
    OutOfMemory,
    /// `EIO`: the VM is dead, or belongs to another process.
    #[error("the VM is dead or belongs to another process")]
    DeadVm,
    /// An errno that the documentation does not name.
    #[error("unexpected error: {0}")]
    Other(errno::Error),
}

impl From<errno::Error> for GmapError {
    fn from(e: errno::Error) -> Self {
        match e.errno() {
            libc::EINVAL => GmapError::Invalid,
            libc::EREMOTE => GmapError::NotMapped,
            libc::EFAULT => GmapError::BadAddress,
            libc::ENOSPC => GmapError::TooManyExtents,
            libc::ENOMEM => GmapError::OutOfMemory,
            libc::EIO => GmapError::DeadVm,
            _ => GmapError::Other(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_has_its_documented_meaning() {
        for (errno, error) in [
            (libc::EINVAL, GmapError::Invalid),
            (libc::EREMOTE, GmapError::NotMapped),
            (libc::EFAULT, GmapError::BadAddress),
            (libc::ENOSPC, GmapError::TooManyExtents),
            (libc::ENOMEM, GmapError::OutOfMemory),
            (libc::EIO, GmapError::DeadVm),
            (
                libc::EPERM,
                GmapError::Other(errno::Error::new(libc::EPERM)),
            ),
        ] {
            assert_eq!(GmapError::from(errno::Error::new(errno)), error);
        }
    }
}
