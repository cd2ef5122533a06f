// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of the crate on a kernel that has the ioctls: `cargo test -- --ignored`
//! in the test VM.

mod areas;
mod gmap;
mod guest;
mod memslots;
mod populate;
