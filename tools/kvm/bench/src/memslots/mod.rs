// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What memslot updates cost: `KVM_SET_USER_MEMORY_REGION_LIST` against single
//! ioctls. `reshape/` measures what they cost a running guest.

mod measure;
mod report;
pub mod reshape;
mod run;

pub use report::Unit;
pub use run::run;
