// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Threads that run vCPUs, which another thread can pause and end.
//!
//! It works as in QEMU: `kvm_run.immediate_exit` and a signal bring a thread out of
//! `KVM_RUN`, and the thread waits until it may continue.
//!
//! | file | holds |
//! |---|---|
//! | `kick.rs` | how a vCPU leaves `KVM_RUN` for another thread |
//! | `threads.rs` | a thread for each vCPU of a VM: paused, resumed, ended |
//!
//! # Example
//!
//! A vCPU is paused for as long as its memslots change. The guest in this VM has no
//! program, so that its vCPU soon fails:
//!
//! ```no_run
//! use anyhow::{Context, Result};
//! use kvm_ioctls::Kvm;
//! use kvm_vcpu_threads::{kick, Threads};
//!
//! # fn main() -> Result<()> {
//! kick::register_kick()?;
//! let vm = Kvm::new()?.create_vm()?;
//! let mut threads = Threads::new();
//! threads.start(0, vm.create_vcpu(0)?, |fd, permit| {
//!     while permit.may_run() {
//!         match fd.run() {
//!             Err(e) if e.errno() == libc::EINTR => {}
//!             exit => return permit.fail(format!("{exit:?}")),
//!         }
//!     }
//! })?;
//!
//! threads.pause();
//! // Memslots change here.
//! threads.resume();
//! threads.join()?;
//! # Ok(())
//! # }
//! ```

pub mod kick;
mod threads;

pub use threads::{Permit, Threads};
