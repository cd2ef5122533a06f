// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Memory areas that a guest shares with the VMM: `KVM_EXIT_X86_MSR_OP`.
//!
//! | file | holds |
//! |---|---|
//! | `request.rs` | what the guest asks, and what the VMM answers |
//! | `exit.rs` | the exit of a vCPU |
//! | `cpuid.rs` | the bit that lets a guest use areas |

mod cpuid;
mod exit;
mod request;

pub use cpuid::offer_areas;
pub use exit::{VcpuFdAreaExt, MSR_OP_EXIT};
pub use request::{Answer, Area, CustomResult, Request};
