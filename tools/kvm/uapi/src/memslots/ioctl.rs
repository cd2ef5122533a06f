// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! `KVM_SET_USER_MEMORY_REGION_LIST`.

use std::os::raw::c_ulong;

use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ptr;

use super::error::Error;
use super::list::RegionList;
use crate::bindings::KVM_SET_USER_MEMORY_REGION_LIST;

/// Gives `list` to the kernel.
///
/// # Safety
///
/// As for
/// [`set_user_memory_regions`](crate::VmFdMemoryExt::set_user_memory_regions).
pub(crate) unsafe fn set_user_memory_regions(vm: &VmFd, list: &RegionList) -> Result<(), Error> {
    // SAFETY: the pointer is to a header that as many entries follow as the
    // header says, and the kernel only reads them. The caller vouches for the
    // memory that the entries name.
    let ret = unsafe {
        ioctl_with_ptr(
            vm,
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
