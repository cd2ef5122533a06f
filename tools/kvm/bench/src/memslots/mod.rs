// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What memslot updates cost: `KVM_SET_USER_MEMORY_REGION_LIST` against single
//! ioctls.

mod measure;
mod report;
mod run;

pub use run::run;
