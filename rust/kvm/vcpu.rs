// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that the current task has loaded, and its read sections of `kvm->srcu`.

use crate::vm::Vm;
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;

/// A vCPU that the current task has loaded, and that is in no read section of `kvm->srcu`.
///
/// # Invariants
///
/// `vcpu` points to a vCPU that lives. The current task holds its mutex, and has loaded it, for as
/// long as this exists.
pub(crate) struct LoadedVcpu<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    _vcpu: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl<'a> LoadedVcpu<'a> {
    /// Loads a vCPU.
    ///
    /// # Safety
    ///
    /// `vcpu` points to a vCPU that is not loaded and in no read section. It lives, and the current
    /// task holds its mutex, for the lifetime of the result.
    pub(crate) unsafe fn load(vcpu: NonNull<bindings::kvm_vcpu>) -> Self {
        // SAFETY: The caller guarantees that the vCPU lives, is not loaded, and that its mutex is
        // held.
        unsafe { bindings::vcpu_load(vcpu.as_ptr()) };
        // INVARIANT: The vCPU was loaded above, and the caller guarantees the rest.
        Self {
            vcpu,
            _vcpu: PhantomData,
            _task: NotThreadSafe,
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }

    /// The VM that the vCPU belongs to.
    pub(crate) fn vm(&self) -> Result<Vm<'a>> {
        // SAFETY: By the type invariant the vCPU lives. Its VM never changes.
        let kvm = NonNull::new(unsafe { (*self.as_ptr()).kvm }).ok_or(EIO)?;
        // SAFETY: The vCPU lives for `'a`, and keeps its VM from being freed.
        Ok(unsafe { Vm::from_raw(kvm) })
    }

    /// Enters a read section. It sees the memslots of now to its end, and no update ends before it
    /// does.
    pub(crate) fn read_memslots(&mut self) -> SrcuSection<'_> {
        // SAFETY: By the type invariant the vCPU lives, and its mutex is held. It is in no section:
        // there is one `SrcuSection` at a time, as it borrows the vCPU mutably.
        unsafe { bindings::kvm_memory_srcu_lock(self.as_ptr()) };
        // INVARIANT: Entered above.
        SrcuSection { vcpu: self }
    }
}

impl Drop for LoadedVcpu<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the vCPU is loaded.
        unsafe { bindings::vcpu_put(self.as_ptr()) };
    }
}

/// A read section of `kvm->srcu`.
///
/// # Invariants
///
/// `vcpu` is in a read section, which it leaves when this is dropped.
pub(crate) struct SrcuSection<'a> {
    vcpu: &'a LoadedVcpu<'a>,
}

impl SrcuSection<'_> {
    /// The vCPU, which is loaded and may read memslots.
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }
}

impl Drop for SrcuSection<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the vCPU is in a read section.
        unsafe { bindings::kvm_memory_srcu_unlock(self.as_ptr()) };
    }
}
