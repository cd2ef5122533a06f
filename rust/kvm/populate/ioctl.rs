// SPDX-License-Identifier: GPL-2.0-only

//! Where C calls in to populate guest memory.
//!
//! The C side is `include/linux/kvm_memory_core.h`. The struct from userspace is copied once, here.

use super::cursor::Cursor;
use super::cursor::Stop;
use super::fault::MappingFlags;
use super::fault::Populator;
use crate::types::Gfn;
use crate::vcpu::LoadedVcpu;
use core::ffi::c_int;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::from_result;
use kernel::prelude::*;
use kernel::transmute::AsBytes;
use kernel::transmute::FromBytes;
use kernel::uaccess::UserPtr;
use kernel::uaccess::UserSlice;

/// `struct kvm_memory_mapping`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapping {
    base_gfn: u64,
    nr_pages: u64,
    flags: u64,
    source: u64,
}

// SAFETY: All bit patterns are valid for integers, and there is no padding between the fields.
unsafe impl FromBytes for MemoryMapping {}
// SAFETY: There is no padding between the fields, and none at the end.
unsafe impl AsBytes for MemoryMapping {}

const _: () = {
    type Uapi = bindings::kvm_memory_mapping;
    assert!(size_of::<MemoryMapping>() == size_of::<Uapi>());
    assert!(offset_of!(MemoryMapping, nr_pages) == offset_of!(Uapi, nr_pages));
    assert!(offset_of!(MemoryMapping, flags) == offset_of!(Uapi, flags));
    assert!(offset_of!(MemoryMapping, source) == offset_of!(Uapi, source));
};

/// `KVM_MAP_MEMORY`.
///
/// # Safety
///
/// `vcpu` points to a vCPU that lives during this call, is not loaded and in no read section, and
/// whose mutex the current task holds.
#[export]
pub unsafe extern "C" fn kvm_vcpu_ioctl_map_memory(
    vcpu: *mut bindings::kvm_vcpu,
    argp: *mut c_void,
) -> c_int {
    from_result(|| {
        let vcpu = NonNull::new(vcpu).ok_or(EINVAL)?;
        let user = UserSlice::new(UserPtr::from_ptr(argp), size_of::<MemoryMapping>());
        let (mut reader, mut writer) = user.reader_writer();
        let mut mapping: MemoryMapping = reader.read()?;
        // SAFETY: The caller guarantees this of the vCPU during this call.
        let vcpu = unsafe { LoadedVcpu::load(vcpu) };
        let result = map_memory(vcpu, &mut mapping)?;
        writer.write(&mapping)?;
        result.map(|()| 0)
    })
}

/// Has `mapping` describe what is left to do, and gives the result; an error of its own if nothing
/// was begun.
fn map_memory(mut vcpu: LoadedVcpu<'_>, mapping: &mut MemoryMapping) -> Result<Result> {
    let flags = MappingFlags::from_uapi(mapping.flags).ok_or(EINVAL)?;
    let mut populator = Populator::new(&mut vcpu, flags, mapping.source != 0);
    let base = Gfn(mapping.base_gfn);
    let max_gfn = populator.max_gfn();
    let mut cursor = Cursor::new(base, mapping.nr_pages, mapping.source, max_gfn).ok_or(EINVAL)?;
    populator.check()?;
    let result = cursor.run(&mut populator);

    mapping.base_gfn = cursor.base().0;
    mapping.nr_pages = cursor.npages();
    mapping.source = cursor.source();
    Ok(result.map_err(|stop| match stop {
        Stop::Again => EAGAIN,
        Stop::Failed(error) => error,
    }))
}
