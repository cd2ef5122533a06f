// SPDX-License-Identifier: GPL-2.0-only

//! KVM's guest-memory core.
//!
//! Every change to the memslots of a VM is made here: single ones
//! (`KVM_SET_USER_MEMORY_REGION`, `_REGION2`, internal memslots) and lists
//! (`KVM_SET_USER_MEMORY_REGION_LIST`). All take the same way, a single one as a list of one:
//!
//! ```text
//! entries --check--> plan --prepare--> prepared batch --commit--> done
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `types.rs` | frame numbers, slot ids, flags; pure |
//! | `check.rs` | phase 1, what each entry means, or why it is refused; pure |
//! | `slots.rs` | the memslot lists and the locks around them; nearly all of the unsafe code |
//! | `batch.rs` | phases 2 and 3, prepare and commit |
//! | `populate.rs` | `KVM_MAP_MEMORY`: what is left to do, and in which portions; pure |
//! | `vcpu.rs` | a loaded vCPU, and the faults that are made in its name |
//! | `ioctl.rs` | where C calls in |
//! | `seam.c` | what Rust needs of C macros and inline functions |
//!
//! The later uAPI families get a file each beside these: address spaces of single vCPUs (`gmap.rs`), areas
//! shared with the guest kernel (`area.rs`).
//!
//! # Lock order
//!
//! `kvm->lock`, then `vcpu->mutex`, then `kvm->slots_lock`, then `kvm->slots_arch_lock`, then `kvm->mn_invalidate_lock`
//! or `kvm->mmu_lock`. Binding a guest_memfd takes its `invalidate_lock` inside of `slots_arch_lock`.
//!
//! `slots_lock` is held for the whole of a batch. `slots_arch_lock` guards the architecture's part of
//! slots that are in a list; it is dropped once lists are swapped, before the wait for `kvm->srcu`, as
//! vCPUs take it inside an SRCU read section. `slots_lock` is never taken inside of one.

mod batch;
pub mod check;
pub mod ioctl;
pub mod populate;
mod slots;
pub mod types;
mod vcpu;

const __LOG_PREFIX: &[u8] = b"kvm\0";
