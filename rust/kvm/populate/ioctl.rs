// SPDX-License-Identifier: GPL-2.0-only

//! The function that C calls to populate guest memory.
//!
//! The C side is `include/linux/kvm_memory_core.h`. The struct from userspace is copied once, here.

use super::{
    cursor::{
        Cursor,
        Stop, //
    },
    fault::{
        FaultFlags,
        Populator, //
    }, //
};

use crate::{
    types::Gfn,
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
    bindings,
    error::from_result,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The argument of `KVM_MAP_MEMORY`, laid out as `struct kvm_memory_mapping`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    base_gfn: u64,
    nr_pages: u64,
    flags: u64,
    source: u64,
}

// SAFETY: All fields are integers, for which every bit pattern is valid. `Request` has no padding.
unsafe impl FromBytes for Request {}
// SAFETY: `Request` has no padding, between the fields or at the end: they all have the same size.
unsafe impl AsBytes for Request {}

const _: () = {
    type Uapi = bindings::kvm_memory_mapping;
    assert!(size_of::<Request>() == size_of::<Uapi>());
    assert!(offset_of!(Request, nr_pages) == offset_of!(Uapi, nr_pages));
    assert!(offset_of!(Request, flags) == offset_of!(Uapi, flags));
    assert!(offset_of!(Request, source) == offset_of!(Uapi, source));
};

/// Implements `KVM_MAP_MEMORY`. Returns 0 or a negative errno.
///
/// # Safety
///
/// `vcpu` points to a vCPU that is neither loaded nor in a read section of `kvm->srcu`. During this
/// call it is not freed, and the current task holds its mutex.
#[export]
pub unsafe extern "C" fn kvm_vcpu_ioctl_map_memory(
    vcpu: *mut bindings::kvm_vcpu,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        let vcpu = NonNull::new(vcpu).ok_or(EINVAL)?;
        let user = UserSlice::new(UserPtr::from_ptr(argp), size_of::<Request>());
        let (mut reader, mut writer) = user.reader_writer();
        let mut request: Request = reader.read()?;
        // SAFETY: The caller guarantees that the vCPU is neither loaded nor in a read section, and
        // that it is not freed and its mutex is held during this call, which the result does not
        // outlive.
        let vcpu = unsafe { LoadedVcpu::load(vcpu) };
        let result = populate(vcpu, &mut request)?;
        writer.write(&request)?;
        result.map(|()| 0)
    })
}

/// Populates memory as `request` asks, and updates `request` to describe what is left.
///
/// The inner result is that of the ioctl. An outer error means that nothing was populated:
/// `request` is unchanged, and the caller must not write it back.
fn populate(mut vcpu: LoadedVcpu<'_>, request: &mut Request) -> Result<Result> {
    let flags = FaultFlags::from_uapi(request.flags).ok_or(EINVAL)?;
    let mut populator = Populator::new(&mut vcpu, flags, request.source != 0);
    let base = Gfn(request.base_gfn);
    let max_gfn = populator.max_gfn();
    let mut cursor = Cursor::new(base, request.nr_pages, request.source, max_gfn).ok_or(EINVAL)?;
    populator.check()?;
    let result = cursor.run(&mut populator);

    request.base_gfn = cursor.base().0;
    request.nr_pages = cursor.npages();
    request.source = cursor.source();
    Ok(result.map_err(Error::from))
}

/// Populates one frame as if the guest had read from it. Fails with `ENOENT` if no memslot maps it, and
/// with `EINVAL` if one does where the vCPU cannot address it.
pub(crate) fn fault_in(vcpu: &mut LoadedVcpu<'_>, gfn: Gfn) -> Result {
    let mut populator = Populator::new(vcpu, FaultFlags::READ, false);
    let Some(mut cursor) = Cursor::new(gfn, 1, 0, populator.max_gfn()) else {
        return Err(if populator.is_mapped(gfn) {
            EINVAL
        } else {
            ENOENT
        });
    };
    populator.check()?;
    Ok(cursor.run(&mut populator)?)
}

impl From<Stop<Error>> for Error {
    fn from(stop: Stop<Error>) -> Self {
        match stop {
            Stop::Again => EAGAIN,
            Stop::Failed(error) => error,
        }
    }
}
