// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Worlds: vCPUs of one VM with memory of their own, which a pager fills when they
//! need it, and a vCPU that looks into them: `sample-vmm worlds`.
//!
//! | file | holds |
//! |---|---|
//! | `demo.rs` | runs the experiment, and shows what it has found |
//! | `guest.rs` | the programs of workers and monitor |
//! | `world.rs` | a vCPU with its address space |
//! | `pager.rs` | the thread that fills segments when a worker misses them |
//! | `experiment.rs` | runs workers, pager and monitor, and checks the results |
//! | `report.rs` | the table and the chart |

pub mod demo;
mod experiment;
mod guest;
mod pager;
mod report;
mod world;
