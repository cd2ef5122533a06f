// SPDX-License-Identifier: GPL-2.0-only

//! A VM (`struct kvm`).

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::bindings;

/// A pointer to a VM that stays allocated during `'vm`.
///
/// # Invariants
///
/// `kvm` points to an initialised `struct kvm`, which is not freed during `'vm`.
#[derive(Clone, Copy)]
pub(crate) struct Vm<'vm> {
    kvm: NonNull<bindings::kvm>,
    _vm: PhantomData<&'vm ()>,
}

impl Vm<'_> {
    /// Wraps the pointer that C passed in.
    ///
    /// # Safety
    ///
    /// `kvm` points to an initialised `struct kvm`, which is not freed during the lifetime of the
    /// result.
    pub(crate) unsafe fn from_raw(kvm: NonNull<bindings::kvm>) -> Self {
        // INVARIANT: The caller guarantees that the VM is initialised and not freed during `'vm`.
        Self {
            kvm,
            _vm: PhantomData,
        }
    }

    pub(crate) fn as_ptr(self) -> *mut bindings::kvm {
        self.kvm.as_ptr()
    }
}
