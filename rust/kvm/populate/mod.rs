// SPDX-License-Identifier: GPL-2.0-only

//! Populating guest memory: `KVM_MAP_MEMORY`.
//!
//! | file | holds |
//! |---|---|
//! | `ioctl.rs` | where C calls in |
//! | `cursor.rs` | what is left to do, and in which portions; pure |
//! | `fault.rs` | the page faults that populate memory, and the contents that come with them |
//! | `fill.c` | finding and copying pages |

pub mod cursor;
mod fault;
pub mod ioctl;
