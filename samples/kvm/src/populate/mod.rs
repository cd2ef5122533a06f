// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Populating guest memory before the guest runs: `sample-vmm populate`.
//!
//! | file | holds |
//! |---|---|
//! | `parallel.rs` | populates memory by all vCPUs of a VM at the same time |
//! | `progress.rs` | shows how far that is |
//! | `guest.rs` | a guest that touches all of its memory |
//! | `experiment.rs` | runs this guest with and without populated memory |
//! | `report.rs` | the table |

pub mod experiment;
mod guest;
pub mod parallel;
mod progress;
mod report;
