// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that the current task has loaded, and its read sections of `kvm->srcu`.

use crate::vm::Vm;

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    bindings,
    prelude::*,
    types::NotThreadSafe, //
};

/// A vCPU that the current task has loaded. It is in a read section of `kvm->srcu` only while a
/// [`SrcuSection`] borrows it.
///
/// # Invariants
///
/// `vcpu` points to a vCPU that is not freed during `'a`. The current task holds its mutex, and has
/// loaded it, for as long as this exists.
pub(crate) struct LoadedVcpu<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    _vcpu: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl<'a> LoadedVcpu<'a> {
    /// Loads a vCPU. Dropping the result puts it.
    ///
    /// # Safety
    ///
    /// `vcpu` points to a vCPU that is neither loaded nor in a read section of `kvm->srcu`. During
    /// the lifetime of the result it is not freed, and the current task holds its mutex.
    pub(crate) unsafe fn load(vcpu: NonNull<bindings::kvm_vcpu>) -> Self {
        // SAFETY: The caller guarantees that the vCPU is allocated and not loaded, and that the
        // current task holds its mutex.
        unsafe { bindings::vcpu_load(vcpu.as_ptr()) };
        // INVARIANT: vcpu_load() has loaded it. The caller guarantees that it is not freed during
        // `'a`, and that the mutex stays held.
        Self {
            vcpu,
            _vcpu: PhantomData,
            _task: NotThreadSafe,
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }

    /// Returns the VM that the vCPU belongs to.
    pub(crate) fn vm(&self) -> Result<Vm<'a>> {
        // SAFETY: By the type invariant the vCPU is allocated. `vcpu->kvm` never changes.
        let kvm = NonNull::new(unsafe { (*self.as_ptr()).kvm }).ok_or(EIO)?;
        // SAFETY: By the type invariant the vCPU is not freed during `'a`, and a VM is freed after
        // its vCPUs.
        Ok(unsafe { Vm::from_raw(kvm) })
    }

    /// Enters a read section. The section sees the memslots that are active when it begins, and no
    /// memslot update completes before it ends.
    pub(crate) fn read_memslots(&mut self) -> SrcuSection<'_> {
        // SAFETY: By the type invariant the vCPU is allocated and the current task holds its mutex.
        // It is in no read section: load()'s caller guaranteed that it was in none, and each
        // `SrcuSection` borrows the vCPU mutably until it has left its section.
        unsafe { bindings::kvm_memory_srcu_lock(self.as_ptr()) };
        // INVARIANT: kvm_memory_srcu_lock() has entered the read section.
        SrcuSection { vcpu: self }
    }
}

impl Drop for LoadedVcpu<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task has loaded the vCPU.
        unsafe { bindings::vcpu_put(self.as_ptr()) };
    }
}

/// A vCPU's read section of `kvm->srcu`. Dropping it leaves the section.
///
/// # Invariants
///
/// `vcpu` is in a read section for as long as this exists.
pub(crate) struct SrcuSection<'a> {
    vcpu: &'a LoadedVcpu<'a>,
}

impl SrcuSection<'_> {
    /// Returns the vCPU, which is loaded and may look up memslots.
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }
}

impl Drop for SrcuSection<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the vCPU is in a read section, which nothing else leaves.
        unsafe { bindings::kvm_memory_srcu_unlock(self.as_ptr()) };
    }
}
