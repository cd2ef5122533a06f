// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Worlds: vCPUs with address spaces of their own, and the guest in them.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_bindings::{kvm_regs, CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{
    HostMemory, Memory, Part, Region, Slot, VcpuAddressSpace, VmFdMemoryExt, SEGMENT_SIZE,
};

use crate::vcpu::enter_protected_mode;

/// Guest physical address of the guest's program, and of what else it maps.
const LOW: u64 = 0;
pub const DATA: u64 = 256 * SEGMENT_SIZE;

/// Offsets in the low segment: the guest halts once STOP is not 0.
const TOUCH: u64 = 0;
const SPIN: u64 = 0x100;
const STOP: u64 = 0x200;
const RUNS: u64 = 0x208;

/// 32-bit code, a segment after the other:
/// `1: movl %esi, (%esi); addl $0x100000, %esi; cmpl %edi, %esi; jb 1b; hlt`.
const TOUCH_CODE: [u8; 13] = [
    0x89, 0x36, 0x81, 0xc6, 0, 0, 0x10, 0, 0x39, 0xfe, 0x72, 0xf4, 0xf4,
];
/// `1: movb $1, RUNS; cmpb $0, STOP; je 1b; hlt`.
const SPIN_CODE: [u8; 17] = [
    0xc6, 0x05, 0x08, 0x02, 0, 0, 1, 0x80, 0x3d, 0, 0x02, 0, 0, 0, 0x74, 0xf0, 0xf4,
];

/// What creates worlds and VMs.
pub struct Factory {
    kvm: Kvm,
    cpuid: CpuId,
}

pub struct World {
    pub vcpu: VcpuFd,
    pub space: VcpuAddressSpace,
    low: Arc<Memory>,
}

impl Factory {
    pub fn new() -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        Ok(Factory { kvm, cpuid })
    }

    /// A VM whose vCPUs have address spaces.
    pub fn vm(&self) -> Result<VmFd> {
        let vm = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.enable_vcpu_address_spaces()
            .context("KVM_CAP_S390_UCONTROL")?;
        Ok(vm)
    }

    /// An ordinary VM with a memslot and a vCPU. The memory must outlive them.
    pub fn ordinary(&self, memory: &Memory) -> Result<(VmFd, VcpuFd)> {
        let vm = self.kvm.create_vm().context("KVM_CREATE_VM")?;
        let region = Region {
            slot: Slot::new(0),
            flags: kvm_memory_uapi::Flags::empty(),
            guest_phys_addr: LOW,
            memory_size: memory.size(),
            userspace_addr: memory.range().start,
        };
        // SAFETY: the caller keeps the memory, to which this process has references to
        // atomics only.
        unsafe { vm.set_user_memory_region(region.into()) }
            .context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = self.vcpu(&vm, 0)?;
        Ok((vm, vcpu))
    }

    fn vcpu(&self, vm: &VmFd, id: u64) -> Result<VcpuFd> {
        let vcpu = vm.create_vcpu(id).context("KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(&self.cpuid).context("KVM_SET_CPUID2")?;
        Ok(vcpu)
    }

    /// A vCPU with a program, in `low`.
    pub fn world(&self, vm: &VmFd, id: u64, low: Arc<Memory>) -> Result<World> {
        for (offset, code) in [(TOUCH, &TOUCH_CODE[..]), (SPIN, &SPIN_CODE[..])] {
            ensure!(low.write(offset, code), "the program does not fit");
        }
        let vcpu = self.vcpu(vm, id)?;
        enter_protected_mode(&vcpu)?;
        let space = VcpuAddressSpace::new(&vcpu)?;
        space.map(LOW, Part::all(low.clone())?)?;
        Ok(World { vcpu, space, low })
    }
}

impl World {
    /// The guest writes to this many segments from [`DATA`] on. `answer` is called for
    /// each that is missing.
    pub fn touch(
        &mut self,
        segments: u64,
        mut answer: impl FnMut(&VcpuAddressSpace, &mut VcpuFd) -> Result<()>,
    ) -> Result<()> {
        self.vcpu.set_regs(&kvm_regs {
            rip: LOW + TOUCH,
            rsi: DATA,
            rdi: DATA + segments * SEGMENT_SIZE,
            rflags: 2,
            ..Default::default()
        })?;
        loop {
            match self.vcpu.run().context("KVM_RUN")? {
                VcpuExit::S390Ucontrol => {}
                VcpuExit::Hlt => return Ok(()),
                exit => bail!("the guest stopped with {exit:?}"),
            }
            answer(&self.space, &mut self.vcpu)?;
        }
    }

    /// Calls `work` while the vCPU runs, if `running`, or just calls it.
    pub fn beside<T>(
        &mut self,
        running: bool,
        work: impl FnOnce(&VcpuAddressSpace) -> Result<T>,
    ) -> Result<T> {
        let World { vcpu, space, low } = self;
        if !running {
            return work(space);
        }
        let (Some(stop), Some(runs)) = (low.word(STOP), low.word(RUNS)) else {
            bail!("no such words");
        };
        stop.store(0, Ordering::Relaxed);
        runs.store(0, Ordering::Relaxed);
        vcpu.set_regs(&kvm_regs {
            rip: LOW + SPIN,
            rflags: 2,
            ..Default::default()
        })?;
        thread::scope(|scope| {
            let guest = scope.spawn(move || match vcpu.run()? {
                VcpuExit::Hlt => Ok(()),
                exit => bail!("the guest stopped with {exit:?}"),
            });
            while runs.load(Ordering::Relaxed) == 0 && !guest.is_finished() {
                thread::yield_now();
            }
            let result = work(space);
            stop.store(1, Ordering::Relaxed);
            guest
                .join()
                .map_err(|_| anyhow!("the vCPU's thread panicked"))?
                .context("KVM_RUN")?;
            result
        })
    }
}
