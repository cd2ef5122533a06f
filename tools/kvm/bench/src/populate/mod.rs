// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What it costs to populate guest memory: `KVM_MAP_MEMORY` against
//! `KVM_PRE_FAULT_MEMORY` and page faults of the guest.

mod case;
mod guest;
pub mod measure;
pub mod memory;
mod report;
mod run;

pub use run::run;
