// SPDX-License-Identifier: GPL-2.0-only

//! The function that C calls for `KVM_USERSPACE_REGISTER_MEM_AREA`.
//!
//! The C side is `include/linux/kvm_memory_core.h`. The struct from userspace is copied once, here.

use core::{
    ffi::{
        c_int,
        c_void, //
    },
    ptr::NonNull, //
};

use kernel::{
    bindings,
    error::from_result,
    prelude::*,
    sync::atomic::{
        atomic_store,
        Relaxed, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::vm::Vm;

/// Bytes of `struct kvm_area_info`.
const INFO_SIZE: usize = size_of::<bindings::kvm_area_info>();

/// Implements `KVM_USERSPACE_REGISTER_MEM_AREA`. Returns 0 or a negative errno.
///
/// # Safety
///
/// `kvm` points to an initialised VM that is not freed during this call.
#[export]
pub unsafe extern "C" fn kvm_vm_ioctl_register_mem_area(
    kvm: *mut bindings::kvm,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        let kvm = NonNull::new(kvm).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the VM is initialised and not freed meanwhile.
        let vm = unsafe { Vm::from_raw(kvm) };
        let info: [u8; INFO_SIZE] = UserSlice::new(UserPtr::from_ptr(argp), INFO_SIZE)
            .reader()
            .read()?;
        let enabled = match info {
            [0, 0, 0, 0] => false,
            [1, 0, 0, 0] => true,
            _ => return Err(EINVAL),
        };
        // SAFETY: `vm` proves that the VM is initialised. No reference is made.
        let field = unsafe { &raw mut (*vm.as_ptr()).arch.mem_areas_in_userspace };
        // SAFETY: `field` is valid. vCPUs may read it at the same time, atomically. What they read
        // guards no other data.
        unsafe { atomic_store(field, enabled, Relaxed) };
        Ok(0)
    })
}
