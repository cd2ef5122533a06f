// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What a running guest loses when its memslots are split and merged: by single
//! ioctls while all vCPUs are paused, and by `KVM_SET_USER_MEMORY_REGION_LIST`.
//!
//! | file | holds |
//! |---|---|
//! | `case.rs` | numbers of vCPUs and sizes of memory |
//! | `slots.rs` | the memslots, and how the ioctls reshape them |
//! | `guest.rs` | the VM, its program, and what can be observed from outside |
//! | `measure.rs` | stall, lost progress and page faults of single updates |
//! | `endure.rs` | thousands of lists, one after the other |
//! | `results.rs`, `report.rs`, `picture.rs` | all samples, tables, picture |
//! | `run.rs` | all measurements |

mod case;
mod endure;
mod guest;
mod measure;
mod picture;
mod report;
mod results;
mod run;
mod slots;

pub use case::Case;
pub use run::{endure_all, measure_all};
