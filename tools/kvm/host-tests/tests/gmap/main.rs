// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of rust/kvm/gmap/.

mod segments;
mod space;
