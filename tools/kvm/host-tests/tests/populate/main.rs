// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/populate/`: `cursor.rs` has the tests, `guest.rs` the model of a guest.

mod cursor;
mod guest;
