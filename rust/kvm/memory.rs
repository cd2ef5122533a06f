// SPDX-License-Identifier: GPL-2.0-only

//! KVM's guest-memory core.
//!
//! | folder or file | holds |
//! |---|---|
//! | `memslots/` | memslots: single updates, and lists of them |
//! | `populate/` | populating guest memory (`KVM_MAP_MEMORY`) |
//! | `types.rs` | frame numbers and host addresses; pure |
//! | `vm.rs`, `vcpu.rs` | a VM that lives; a vCPU that is loaded, and its SRCU read sections |
//! | `seam.c` | what all folders need of C macros and inline functions |
//!
//! A family of ioctls has a folder: with the place where C calls in (`ioctl.rs`), the logic that
//! knows nothing of the kernel (no `unsafe`, compiled and tested on the host too), what makes it
//! take effect, and what must be C.
//!
//! # Lock order
//!
//! `kvm->lock`, then `vcpu->mutex`, then `kvm->slots_lock`, then `kvm->slots_arch_lock`, then
//! `kvm->mn_invalidate_lock` or `kvm->mmu_lock`. Binding a guest_memfd takes its `invalidate_lock`
//! inside of `slots_arch_lock`.
//!
//! `slots_lock` is held for the whole of a batch. `slots_arch_lock` guards the architecture's part
//! of slots that are in a list; it is dropped once lists are swapped, before the wait for
//! `kvm->srcu`, as vCPUs take it inside of an SRCU read section. `slots_lock` is never taken inside
//! of one.

pub mod memslots;
pub mod populate;
pub mod types;
mod vcpu;
mod vm;

const __LOG_PREFIX: &[u8] = b"kvm\0";
