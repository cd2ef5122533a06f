// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs that have address spaces of their own, which userspace maps memory to in segments of 1 MiB
//! (`KVM_S390_UCAS_MAP`, `KVM_S390_UCAS_UNMAP`, `KVM_S390_VCPU_FAULT`).
//!
//! | file | contents |
//! |---|---|
//! | `ioctl.rs` | the functions that C calls |
//! | `space.rs` | the address space of a vCPU: its memslots, and the ids that they have |
//! | `segments.rs` | what mapping segments means for memslots; pure |
//! | `gmap.c` | where the address spaces are, when they are made and freed |
//! | `x86.c` | exits where nothing is mapped; what such a VM cannot do |
//!
//! The memslots of an address space are all that says what is mapped. Mapping a range becomes a
//! list of updates of memslots, which [`crate::memslots`] carries out at once.

pub mod ioctl;
pub mod segments;
mod space;
