// SPDX-License-Identifier: GPL-2.0-only
//! Memory areas that a guest shares with KVM.

use kernel::prelude::*;

module! {
    type: Areas,
    name: "kvm_areas",
    authors: ["KVM guest-memory core"],
    description: "Memory areas shared with KVM",
    license: "GPL",
}

struct Areas;

impl kernel::Module for Areas {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Areas)
    }
}
