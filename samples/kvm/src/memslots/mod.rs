// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What updates of memslots do to a running guest: `sample-vmm demo`.
//!
//! | file | holds |
//! |---|---|
//! | `plan.rs` | the updates, as lists |
//! | `guest.rs` | the guest: memory layout, program, and a replay to check it |
//! | `exits.rs` | how the VMM handles the guest's exits, and how guests die |
//! | `machine.rs` | the VM, and the three ways to apply a list |
//! | `experiment.rs` | runs and measures one guest with one of the ways |
//! | `report.rs` | table and charts |
//! | `demo.rs` | all experiments, and the verdict |

pub mod demo;
mod exits;
mod experiment;
pub mod guest;
mod machine;
mod plan;
mod report;
