// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Memslot updates: `KVM_SET_USER_MEMORY_REGION_LIST`.
//!
//! | file | holds |
//! |---|---|
//! | `region.rs` | a memslot: its name, flags and memory |
//! | `list.rs` | the argument of the ioctl |
//! | `record.rs` | a VMM's record of its slots |
//! | `ioctl.rs` | the ioctl; `../vm.rs` offers it to users |
//! | `error.rs` | why the kernel refused a list |

mod error;
pub(crate) mod ioctl;
mod list;
mod record;
mod region;

pub use error::Error;
pub use list::{EntryError, RegionList};
pub use record::{MemslotUpdate, Memslots};
pub use region::{Flags, Region, Slot};
