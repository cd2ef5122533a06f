// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/check.rs`.

mod cost;
mod lists;
mod rules;
mod vm;
