// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Populating guest memory: `KVM_MAP_MEMORY`.
//!
//! | file | holds |
//! |---|---|
//! | `mapping.rs` | the argument of the ioctl: what remains to be populated |
//! | `ioctl.rs` | the ioctl on a vCPU, and its progress as an iterator |
//! | `error.rs` | why memory could not be populated |

mod error;
mod ioctl;
mod mapping;

pub use error::PopulateError;
pub use ioctl::{PopulateSteps, Progress, VcpuFdMemoryExt};
pub use mapping::{Access, Mapping};
