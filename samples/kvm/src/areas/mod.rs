// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `sample-vmm areas`: memory areas that Linux in the VM shares with this VMM.
//!
//! | file | holds |
//! |---|---|
//! | `demo.rs` | what the guest goes through, and the verdict |
//! | `guest.rs` | the guest, and a shell in it |
//! | `served.rs` | the areas, and what is in them |
//! | `watch.rs` | the heartbeat over time |
//! | `transfer.rs` | the guest goes on in another process |
//! | `torture.rs` | the guest where it does not get what it wants |
//! | `report.rs` | the table and the chart |

pub mod demo;
mod guest;
mod report;
mod served;
pub mod torture;
pub mod transfer;
mod watch;

pub use guest::Files;

/// The guest's side has the file.
#[path = "../../../rust/kvm_areas/layout.rs"]
mod layout;
