// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Address spaces of vCPUs: `KVM_S390_UCAS_MAP`, `KVM_S390_UCAS_UNMAP` and
//! `KVM_S390_VCPU_FAULT`.
//!
//! | file | holds |
//! |---|---|
//! | `memory.rs` | memory of this process that address spaces can map |
//! | `record.rs` | which part of which memory each segment is mapped to |
//! | `space.rs` | the ioctls on a vCPU's address space |
//! | `fault.rs` | what a vCPU has missed when it exits |
//! | `error.rs` | why an address space could not be changed |

mod error;
mod fault;
mod memory;
mod record;
mod space;

pub use error::GmapError;
pub use fault::VcpuFdGmapExt;
pub use memory::{HostMemory, Memory, Part};
pub use space::VcpuAddressSpace;

pub(crate) use space::enable;

/// Bytes in a segment: the unit in which userspace maps memory into the address
/// space of a vCPU.
pub const SEGMENT_SIZE: u64 = 1 << 20;
