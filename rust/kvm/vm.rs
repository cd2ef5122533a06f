// SPDX-License-Identifier: GPL-2.0-only

//! A VM that lives.

use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::bindings;

/// A VM that lives for `'vm`.
///
/// # Invariants
///
/// `kvm` points to a `struct kvm` that is initialised, and not freed during `'vm`.
#[derive(Clone, Copy)]
pub(crate) struct Vm<'vm> {
    kvm: NonNull<bindings::kvm>,
    _vm: PhantomData<&'vm ()>,
}

impl Vm<'_> {
    /// Names a VM that C handed over.
    ///
    /// # Safety
    ///
    /// `kvm` points to an initialised `struct kvm` which is not freed during the lifetime of the
    /// result.
    pub(crate) unsafe fn from_raw(kvm: NonNull<bindings::kvm>) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            kvm,
            _vm: PhantomData,
        }
    }

    pub(crate) fn as_ptr(self) -> *mut bindings::kvm {
        self.kvm.as_ptr()
    }
}
