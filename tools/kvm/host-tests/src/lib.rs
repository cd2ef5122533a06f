// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The pure logic of rust/kvm/, compiled for the host. `tests/` has the tests, one folder per family.
//!
//! Compiling it here shows that it has no `unsafe`, allocates nothing and uses no kernel type.

#![no_std]
#![forbid(unsafe_code)]

#[path = "../../../../rust/kvm/types.rs"]
pub mod types;

/// What a list of memslot updates means.
#[path = "../../../../rust/kvm/memslots"]
pub mod memslots {
    pub mod check;
    pub mod frames;
    pub mod rank_set;
    pub mod types;
}

/// What is left to populate.
#[path = "../../../../rust/kvm/populate"]
pub mod populate {
    pub mod cursor;
}

/// What mapping segments to the address space of a vCPU means for its memslots.
#[path = "../../../../rust/kvm/gmap"]
pub mod gmap {
    pub mod segments;
}

/// Memory areas that a guest shares with its hypervisor.
#[path = "../../../../rust/kvm/areas"]
pub mod areas {
    pub mod command;
    pub mod descriptor;
    pub mod types;
}
