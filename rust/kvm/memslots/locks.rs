// SPDX-License-Identifier: GPL-2.0-only

//! The locks of a VM's memslots, as proof of what their holder may do.
//!
//! * [`SlotsLocked`] is proof of `kvm->slots_lock`. Its holder may look at both lists of every
//!   address space, which nobody else changes. Lists and slots borrow from it (`swap.rs`).
//! * [`ArchLocked`] is proof of `kvm->slots_arch_lock` as well. Its holder may also change the
//!   lists that the next swap publishes. The swap consumes it, and drops the lock.
//!
//! The guards know neither lists nor slots: whatever needs a lock as proof builds on this file.

use crate::vm::Vm;

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::lock::{
        mutex::MutexBackend,
        Guard,
        Lock, //
    },
    types::NotThreadSafe, //
};

/// A VM whose `slots_lock` the current task holds.
///
/// # Invariants
///
/// The current task holds `slots_lock` of `vm` for as long as this exists.
pub(crate) struct SlotsLocked<'vm> {
    vm: Vm<'vm>,
    limits: bindings::kvm_memory_limits,
    /// Drops the lock. [`None`] if C has taken the lock, and drops it.
    _guard: Option<Guard<'vm, (), MutexBackend>>,
    _task: NotThreadSafe,
}

impl<'vm> SlotsLocked<'vm> {
    /// Takes `slots_lock`.
    pub(crate) fn lock(vm: Vm<'vm>) -> Self {
        // SAFETY: By the invariant of `Vm` the VM's slots_lock is initialised, and not freed during
        // `'vm`.
        let lock = unsafe { Lock::from_raw(&raw mut (*vm.as_ptr()).slots_lock) };
        let guard = lock.lock();
        // SAFETY: lock() has taken slots_lock, and the result keeps its guard.
        unsafe { Self::new(vm, Some(guard)) }
    }

    /// Takes `slots_lock`, and so waits for the memslot update that is in progress. Fails with
    /// `EINTR` if a signal arrives first.
    ///
    /// Must be called outside read sections of `kvm->srcu`: the update waits for them.
    pub(crate) fn lock_interruptible(vm: Vm<'vm>) -> Result<Self> {
        // SAFETY: By the invariant of `Vm` the VM is initialised and not freed.
        to_result(unsafe { bindings::kvm_memory_lock_slots_interruptible(vm.as_ptr()) })?;
        // SAFETY: By the invariant of `Vm` the VM's slots_lock is initialised, and not freed during
        // `'vm`. The call above has taken it, and no other guard drops it.
        let guard = unsafe {
            let lock: &Lock<(), MutexBackend> = Lock::from_raw(&raw mut (*vm.as_ptr()).slots_lock);
            Guard::new(lock, ())
        };
        // SAFETY: kvm_memory_lock_slots_interruptible() has taken slots_lock, and the result keeps
        // its guard.
        Ok(unsafe { Self::new(vm, Some(guard)) })
    }

    /// Relies on C to hold `slots_lock`.
    ///
    /// # Safety
    ///
    /// The current task holds `slots_lock` of `vm` for as long as the result exists.
    pub(crate) unsafe fn assume_locked(vm: Vm<'vm>) -> Self {
        // SAFETY: The caller guarantees that slots_lock is held for as long as the result exists.
        unsafe { Self::new(vm, None) }
    }

    /// # Safety
    ///
    /// The current task holds `slots_lock` of `vm` for as long as the result exists. `guard`, if
    /// there is one, is the guard of that lock.
    unsafe fn new(vm: Vm<'vm>, guard: Option<Guard<'vm, (), MutexBackend>>) -> Self {
        let mut limits = bindings::kvm_memory_limits::default();
        // SAFETY: By the invariant of `Vm` the VM is initialised and not freed, and the caller
        // guarantees that slots_lock is held.
        unsafe { bindings::kvm_memory_get_limits(vm.as_ptr(), &raw mut limits) };
        // INVARIANT: The caller guarantees that slots_lock is held for as long as the result exists.
        Self {
            vm,
            limits,
            _guard: guard,
            _task: NotThreadSafe,
        }
    }

    /// Fails with `EINVAL` if the vCPUs have address spaces of their own. The VM then has no slots.
    pub(super) fn refuse_gmaps(&self) -> Result {
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self` proves that its
        // slots_lock is held, under which the field is written.
        if unsafe { (*self.as_ptr()).gmaps.is_null() } {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    pub(super) fn vm(&self) -> Vm<'vm> {
        self.vm
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm {
        self.vm.as_ptr()
    }

    /// Returns what the VM allows its memslots to be.
    pub(super) fn limits(&self) -> &bindings::kvm_memory_limits {
        &self.limits
    }

    /// Takes `slots_arch_lock`.
    pub(super) fn lock_arch(&self) -> ArchLocked<'_, 'vm> {
        // SAFETY: By the invariant of `Vm` the VM's slots_arch_lock is initialised, and not freed
        // during `'vm`.
        let lock = unsafe { Lock::from_raw(&raw mut (*self.as_ptr()).slots_arch_lock) };
        // INVARIANT: The guard holds slots_arch_lock of the VM of `self`.
        ArchLocked {
            slots: self,
            _guard: lock.lock(),
        }
    }
}

/// A VM whose `slots_lock` and `slots_arch_lock` the current task holds.
///
/// # Invariants
///
/// The current task holds `slots_arch_lock` of the VM of `slots` for as long as this exists.
pub(super) struct ArchLocked<'a, 'vm> {
    slots: &'a SlotsLocked<'vm>,
    _guard: Guard<'a, (), MutexBackend>,
}

impl<'a, 'vm> ArchLocked<'a, 'vm> {
    /// Returns the proof of `slots_lock`, which outlives this one.
    pub(super) fn slots(&self) -> &'a SlotsLocked<'vm> {
        self.slots
    }
}
