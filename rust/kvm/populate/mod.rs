// SPDX-License-Identifier: GPL-2.0-only

//! Populating guest memory: `KVM_MAP_MEMORY`.
//!
//! | file | contents |
//! |---|---|
//! | `ioctl.rs` | the function that C calls |
//! | `cursor.rs` | what is left to do, and how it is divided into chunks; pure |
//! | `fault.rs` | the page faults that map memory, on behalf of a vCPU |
//! | `fill.c` | finding and copying pages |
//! | `x86.c` | one page fault as the guest would take it |

pub mod cursor;
mod fault;
pub mod ioctl;

pub(crate) use ioctl::fault_in;
