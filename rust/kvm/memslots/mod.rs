// SPDX-License-Identifier: GPL-2.0-only

//! Memslots: every change to them, single ones (`KVM_SET_USER_MEMORY_REGION`, `_REGION2`, internal
//! memslots) and lists (`KVM_SET_USER_MEMORY_REGION_LIST`). All take the same way, a single one as
//! a list of one:
//!
//! ```text
//! entries --check--> plan --prepare--> prepared batch --commit--> done
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `ioctl.rs` | where C calls in |
//! | `types.rs` | slot ids, flags, entries; pure |
//! | `check.rs`, `rank_set.rs` | what each entry means, or why it is refused; pure |
//! | `batch.rs` | the way of a list from its entries to the end |
//! | `changes.rs` | the slots that a batch brings and takes away: prepare and commit |
//! | `new_slot.rs` | a slot that a batch brings |
//! | `dirty.rs` | the dirty bits that its successors get |
//! | `locked.rs` | the locks, the swap, the architecture's hooks |
//! | `list.rs`, `slot.rs` | the lists and the slots of C |
//! | `seam.c` | what Rust needs of C macros and inline functions |

pub(crate) mod batch;
mod changes;
pub mod check;
mod dirty;
pub mod ioctl;
mod list;
pub(crate) mod locked;
mod new_slot;
pub mod rank_set;
mod slot;
pub mod types;
