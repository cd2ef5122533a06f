// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A machine that boots Linux.
//!
//! | file | holds |
//! |---|---|
//! | `machine.rs` | the VM, its vCPU and its devices |
//! | `boot.rs` | the kernel in memory, and the vCPU at its entry point |
//! | `initramfs.rs` | the root file system |
//! | `console.rs` | the serial port |
//! | `state.rs` | the machine's state, for another process |

pub mod boot;
pub mod console;
pub mod initramfs;
pub mod machine;
pub mod state;
