// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! How another thread brings a vCPU out of `KVM_RUN`: `kvm_run.immediate_exit` and a
//! signal, as in QEMU.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// `kvm_run.immediate_exit` of a vCPU, for its own and the controlling thread.
///
/// # Invariants
///
/// Points into the mapping of the vCPU's `kvm_run`. Nothing uses it after the
/// `VcpuFd` that owns the mapping is gone.
#[derive(Clone, Copy)]
pub struct ImmediateExit(*mut u8);

// SAFETY: all accesses to the byte are atomic.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// That of `fd`, which must outlive the last use of the result.
    pub fn of(fd: &mut VcpuFd) -> ImmediateExit {
        // INVARIANT: the byte is in the mapping of `fd`.
        ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit)
    }

    #[cfg(test)]
    pub(crate) fn of_no_vcpu() -> ImmediateExit {
        // INVARIANT: the byte is never freed.
        ImmediateExit(Box::leak(Box::new(0)))
    }

    /// With `true`, each `KVM_RUN` returns `EINTR` at its entry, until this is `false`
    /// again. It takes a [`kick`] to end one that has begun.
    pub fn set(self, value: bool) {
        // SAFETY: the invariants say that the byte is mapped.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value.into(), Ordering::SeqCst);
    }
}

/// Registers the signal of [`kick`], `SIGRTMIN`; once per process, before the first
/// vCPU thread.
///
/// # Errors
///
/// The system refuses the signal handler.
pub fn register_kick() -> Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).context("cannot set the signal handler")
}

/// Interrupts the thread's `KVM_RUN`. [`ImmediateExit`] must be set before, as the signal
/// may come before the thread enters it.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // Fails for a thread that has ended, which needs no kick.
    let _ = thread.kill(SIGRTMIN());
}
