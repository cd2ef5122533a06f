// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The pure logic of rust/kvm/, compiled for the host. The tests are in `tests/`.
//!
//! That it compiles here shows that it has no `unsafe`, allocates nothing and knows no kernel type.

#![no_std]
#![forbid(unsafe_code)]

#[path = "../../../../rust/kvm/check.rs"]
pub mod check;
#[path = "../../../../rust/kvm/populate.rs"]
pub mod populate;
#[path = "../../../../rust/kvm/types.rs"]
pub mod types;
