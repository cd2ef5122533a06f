// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What all guests of the bench begin with.

use anyhow::{Context, Result};
use kvm_ioctls::VcpuFd;

/// Puts a new vCPU in protected mode with flat segments, without paging.
pub fn enter_protected_mode(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cr0 = (1 << 4) | 1; // ET, PE
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.ss] {
        segment.base = 0;
        segment.limit = u32::MAX;
        segment.g = 1;
        segment.db = 1;
    }
    sregs.cs.selector = 8;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")
}
