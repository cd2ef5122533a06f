// SPDX-License-Identifier: GPL-2.0-only

//! KVM's guest-memory core.
//!
//! | folder or file | contents |
//! |---|---|
//! | `memslots/` | changing memslots: single updates, and lists of updates |
//! | `populate/` | populating guest memory (`KVM_MAP_MEMORY`) |
//! | `gmap/` | vCPUs that have address spaces of their own (`KVM_S390_UCAS_MAP`) |
//! | `areas/` | memory areas that a guest shares with its hypervisor |
//! | `types.rs` | guest frame numbers and host virtual addresses; pure |
//! | `vm.rs`, `vcpu.rs` | a VM; a loaded vCPU and its SRCU read sections |
//! | `seam.c` | inline functions of C that `vcpu.rs` needs |
//!
//! Each family of ioctls has a folder. It contains `ioctl.rs`, which C calls; pure logic, which uses
//! neither kernel types nor `unsafe` and is compiled and tested on the host too; the code that
//! carries out what the logic decided; and what only C can do.
//!
//! # Lock order
//!
//! `kvm->lock`, then `vcpu->mutex`, then `kvm->slots_lock`, then `kvm->slots_arch_lock`, then
//! `kvm->mn_invalidate_lock` or `kvm->mmu_lock`. Binding a guest_memfd takes that file's
//! `invalidate_lock` inside `slots_arch_lock`.
//!
//! A batch holds `slots_lock` throughout. `slots_arch_lock` protects the architecture's part of
//! the slots in a list. A swap drops it before it waits for `kvm->srcu`, because vCPUs take it
//! inside a read section. Nothing takes `slots_lock` inside a read section, because a batch holds it
//! while it waits for readers.

pub mod areas;
pub mod gmap;
pub mod memslots;
pub mod populate;
pub mod types;
mod vcpu;
mod vm;

const __LOG_PREFIX: &[u8] = b"kvm\0";
