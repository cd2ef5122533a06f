// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A vCPU with its address space.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_memory_uapi::{Memory, Part, VcpuAddressSpace};

use crate::{
    gmap::guest::{Program, LOW},
    vcpu::new_vcpu,
};

/// A vCPU that has its low segment only.
pub struct World {
    pub vcpu: VcpuFd,
    pub space: Arc<VcpuAddressSpace>,
    pub low: Arc<Memory>,
}

impl World {
    pub fn new(kvm: &Kvm, vm: &VmFd, id: u64, program: Program) -> Result<Self> {
        let vcpu = new_vcpu(kvm, vm, id, &program.entry())?;
        let space = VcpuAddressSpace::new(&vcpu).context("the vCPU has no address space")?;
        let low = Arc::new(Memory::new(1).context("no memory for a world")?);
        ensure!(program.load(&low), "the program does not fit");
        space
            .map(LOW, Part::all(low.clone())?)
            .context("cannot map the low segment")?;
        Ok(World {
            vcpu,
            space: Arc::new(space),
            low,
        })
    }
}
