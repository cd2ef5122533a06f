// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/areas/`: `rules.rs` has one test for each rule, `random.rs` random commands,
//! `oracle.rs` says what they must do, and `guest.rs` is the model of a guest.

mod guest;
mod oracle;
mod random;
mod rules;
