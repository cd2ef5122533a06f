// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! How another thread brings a vCPU out of `KVM_RUN`: `kvm_run.immediate_exit` and a
//! signal, as in QEMU.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use kvm_bindings::kvm_run;
use kvm_ioctls::KvmRunWrapper;
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// `kvm_run.immediate_exit` of a vCPU, for its own and the controlling thread. It has a
/// mapping of its own, which the `VcpuFd` need not outlive.
///
/// # Invariants
///
/// `byte` is in the mapping of `_run`, to which nobody makes references.
#[derive(Clone)]
pub struct ImmediateExit {
    byte: *mut u8,
    _run: Arc<KvmRunWrapper>,
}

// SAFETY: all accesses to the byte are atomic.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// That of the vCPU `fd`.
    ///
    /// # Errors
    ///
    /// The system does not map the vCPU's `kvm_run`.
    pub fn of(fd: &impl AsRawFd) -> Result<ImmediateExit> {
        let mut run = KvmRunWrapper::mmap_from_fd(fd, size_of::<kvm_run>())
            .context("cannot map the vCPU's kvm_run")?;
        // INVARIANT: the reference ends here, and the mapping goes with `_run`.
        Ok(ImmediateExit {
            byte: &raw mut run.as_mut_ref().immediate_exit,
            _run: Arc::new(run),
        })
    }

    /// With `true`, each `KVM_RUN` returns `EINTR` at its entry, until this is `false`
    /// again. It takes a [`kick`] to end one that has begun.
    pub fn set(&self, value: bool) {
        // SAFETY: the invariants say that the byte is mapped.
        unsafe { AtomicU8::from_ptr(self.byte) }.store(value.into(), Ordering::SeqCst);
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
