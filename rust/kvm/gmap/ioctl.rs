// SPDX-License-Identifier: GPL-2.0-only

//! The functions that C calls for vCPUs that have address spaces of their own.
//!
//! The C side is `include/linux/kvm_memory_core.h`. Arguments from userspace are copied once, here.

use super::{
    segments::{
        Change,
        Error as ChangeError, //
    },
    space::{
        GmapVcpu,
        Space, //
    }, //
};

use crate::{
    populate,
    types::{
        Gfn,
        PAGE_SHIFT, //
    },
    vcpu::LoadedVcpu, //
};

use core::{
    ffi::{
        c_int,
        c_void, //
    },
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::{
    alloc::AllocError,
    bindings,
    error::{
        code::EREMOTE,
        from_result, //
    },
    ffi::c_ulong,
    prelude::*,
    transmute::FromBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The argument of `KVM_S390_UCAS_MAP`, laid out as `struct kvm_s390_ucas_mapping`.
#[repr(C)]
struct Request {
    user_addr: u64,
    vcpu_addr: u64,
    length: u64,
}

// SAFETY: All fields are integers, for which every bit pattern is valid. `Request` has no padding.
unsafe impl FromBytes for Request {}

const _: () = {
    type Uapi = bindings::kvm_s390_ucas_mapping;
    assert!(size_of::<Request>() == size_of::<Uapi>());
    assert!(offset_of!(Request, user_addr) == offset_of!(Uapi, user_addr));
    assert!(offset_of!(Request, vcpu_addr) == offset_of!(Uapi, vcpu_addr));
    assert!(offset_of!(Request, length) == offset_of!(Uapi, length));
};

impl From<ChangeError<AllocError>> for Error {
    fn from(error: ChangeError<AllocError>) -> Self {
        match error {
            ChangeError::NoIds => ENOSPC,
            ChangeError::Caller(AllocError) => ENOMEM,
        }
    }
}

/// Implements `KVM_S390_UCAS_MAP` if `map`, else `KVM_S390_UCAS_UNMAP`. Returns 0 or a negative errno.
///
/// # Safety
///
/// `vcpu` points to a vCPU that is not freed during this call.
#[export]
pub unsafe extern "C" fn kvm_vcpu_ioctl_ucas(
    vcpu: *mut bindings::kvm_vcpu,
    map: bool,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        let vcpu = NonNull::new(vcpu).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the vCPU is not freed during this call, which the result
        // does not outlive.
        let vcpu = unsafe { GmapVcpu::new(vcpu) }.ok_or(EINVAL)?;
        let user = UserSlice::new(UserPtr::from_ptr(argp), size_of::<Request>());
        let request: Request = user.reader().read()?;
        let user_addr = map.then_some(request.user_addr);
        let change = Change::new(request.vcpu_addr, request.length, user_addr).ok_or(EINVAL)?;
        Space::lock(&vcpu).apply(&change)?;
        Ok(0)
    })
}

/// Implements `KVM_S390_VCPU_FAULT`. Returns 0 or a negative errno. Fills the run structure of the
/// vCPU if nothing is mapped.
///
/// # Safety
///
/// `vcpu` points to a vCPU that is neither loaded nor in a read section of `kvm->srcu`. During this
/// call it is not freed, and the current task holds its mutex.
#[export]
pub unsafe extern "C" fn kvm_vcpu_ioctl_fault(
    vcpu: *mut bindings::kvm_vcpu,
    gpa: c_ulong,
) -> c_int {
    from_result(|| {
        let vcpu = NonNull::new(vcpu).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the vCPU is not freed during this call, which the result
        // does not outlive.
        unsafe { GmapVcpu::new(vcpu) }.ok_or(EINVAL)?;
        let gfn = Gfn((gpa as u64) >> PAGE_SHIFT);
        // SAFETY: The caller guarantees that the vCPU is neither loaded nor in a read section, and
        // that it is not freed and its mutex is held during this call, which the result does not
        // outlive.
        let mut loaded = unsafe { LoadedVcpu::load(vcpu) };
        match populate::fault_in(&mut loaded, gfn) {
            Err(error) if error == ENOENT => {
                // SAFETY: The caller guarantees that the vCPU is not freed during this call, and that
                // the current task holds its mutex.
                unsafe { bindings::kvm_arch_gmap_missing(vcpu.as_ptr(), gfn.0) };
                Err(EREMOTE)
            }
            // As on s390.
            Err(error) if error.to_errno() == -(bindings::EHWPOISON as c_int) => Err(EFAULT),
            result => result.map(|()| 0),
        }
    })
}
