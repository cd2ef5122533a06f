// SPDX-License-Identifier: GPL-2.0-only

//! Changing memslots: single updates (`KVM_SET_USER_MEMORY_REGION`, `KVM_SET_USER_MEMORY_REGION2`,
//! internal memslots) and lists of updates (`KVM_SET_USER_MEMORY_REGION_LIST`). A single update is a
//! batch of one entry:
//!
//! ```text
//! entries --check--> plan --prepare--> prepared batch --commit--> done
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `ioctl.rs` | the functions that C calls |
//! | `batch.rs` | the phases of a batch, in their order |
//! | `changes.rs` | prepare and commit |
//! | `items.rs` | the changes of a batch: slots that it adds and removes |
//! | `last_log.rs` | last dirty bits of slots that a list deletes |
//! | `new_slot.rs`, `old_slot.rs` | a slot that a batch adds, one that it removes |
//! | `dirty.rs` | carrying dirty bits to the slots that a batch adds |
//! | `reshape.rs` | what a batch does about frames that stay, and about those that go |
//! | `view.rs` | the active slots, as check looks at them |
//! | `memfd.rs` | the guest_memfds that entries name |
//! | `check.rs`, `rank_set.rs` | what each entry means, or why it is refused; pure |
//! | `few.rs` | a vector that allocates nothing for its first element |
//! | `frames.rs` | which frames stay where they are; pure |
//! | `swap.rs` | the two lists of each address space, and the swap |
//! | `hooks.rs` | the architecture's hooks, the VM's counts, tracing |
//! | `list.rs`, `slot.rs` | C's lists and slots |
//! | `locks.rs` | the locks, as proof of what their holder may do |
//! | `types.rs` | slot ids, flags, mappings, entries; pure |
//! | `seam.c`, `x86.c` | C macros and inline functions; second-level page tables of x86 |
//! | `debugfs.c` | the file in debugfs that shows both lists |
//!
//! Each file uses only those below it in this table.

mod batch;
mod changes;
pub mod check;
mod dirty;
mod few;
pub mod frames;
mod hooks;
pub mod ioctl;
mod items;
mod last_log;
mod list;
pub(crate) mod locks;
mod memfd;
mod new_slot;
mod old_slot;
pub mod rank_set;
mod reshape;
mod slot;
mod swap;
pub mod types;
mod view;
