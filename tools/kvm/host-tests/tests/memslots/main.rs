// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/memslots/`.
//!
//! | file | tests |
//! |---|---|
//! | `entry_rules.rs`, `list_rules.rs` | the rules of `check.rs`, one by one |
//! | `random_lists.rs` | `check.rs` against the oracle, on random lists |
//! | `frames.rs` | `frames.rs` against a table of frames, on random slots |
//! | `cost.rs` | how many look-ups `check.rs` needs |
//! | `grace_period.rs` | how an update finds out that nobody reads, under all interleavings |
//! | `swap.rs` | the order of the steps in `changes.rs`, under all interleavings |
//!
//! `oracle.rs` is the oracle, `judge.rs` compares `check` with it, `fixture.rs` has a VM and entries, and
//! `interleavings.rs` runs an update beside other threads.

mod cost;
mod entry_rules;
mod fixture;
mod frames;
mod grace_period;
mod interleavings;
mod judge;
mod list_rules;
mod oracle;
mod random_lists;
mod swap;
