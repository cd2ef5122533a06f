// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The guest, which does one thing in a loop, and the VMM that serves it.

use std::sync::atomic::{fence, Ordering};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{
    kvm_enable_cap, kvm_regs, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES,
    KVM_MSR_EXIT_REASON_FILTER,
};
use kvm_ioctls::{
    Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit, VcpuFd, VmFd,
};
use kvm_memory_uapi::bindings::{
    kvm_memory_area, KVM_MEM_AREA_MAX_SIZE, KVM_MEM_AREA_NO_ANSWER, KVM_MEM_AREA_OK,
    KVM_MEM_AREA_TYPE_STEAL_TIME, KVM_MEM_AREA_TYPE_VMM, MSR_KVM_REGISTER_MEM_AREA,
};
use kvm_memory_uapi::{
    offer_areas, Answer, Flags, Region, Request, Slot, Stats, VcpuFdAreaExt, VmFdMemoryExt,
    MSR_OP_EXIT, PAGE_SIZE,
};
use vm_memory::MmapRegion;

use crate::areas::case::{Method, Sample};
use crate::vcpu::enter_protected_mode;

/// Where things are in the guest's only page.
const CODE: u64 = 0;
const DESC: u64 = 0x400;
const AREA: u64 = 0x800;
const AREA_SIZE: u32 = 64;

/// 32-bit code, each a loop that ends with HLT when EDI has come to 0.
const WRMSR: &[u8] = &[0x0f, 0x30, 0x4f, 0x75, 0xfb, 0xf4];
const COUNT: &[u8] = &[0xff, 0x06, 0x4f, 0x75, 0xfb, 0xf4]; // incl (%esi)
const CPUID: &[u8] = &[0x31, 0xc0, 0x0f, 0xa2, 0x4f, 0x75, 0xf9, 0xf4]; // xorl %eax, %eax; cpuid

const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
const KVM_MSR_ENABLED: u64 = 1;
/// An MSR that a VMM makes up.
const MSR_MADE_UP: u32 = 0x4b56_4df0;

/// A VM for one method.
pub struct Guest {
    method: Method,
    // Dropped in this order: nothing runs in memory that is gone.
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: MmapRegion,
}

impl Guest {
    pub fn new(kvm: &Kvm, method: Method) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let memory = MmapRegion::new(PAGE_SIZE as usize).context("mmap")?;
        let region = Region {
            slot: Slot::new(0),
            flags: Flags::empty(),
            guest_phys_addr: 0,
            memory_size: PAGE_SIZE,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the memory stays mapped for as long as the VM exists; the VMM accesses it
        // through raw pointers only.
        unsafe { vm.set_user_memory_region(region.into()) }.context("memory")?;

        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        match method {
            Method::Kvm => ensure!(offer_areas(&mut cpuid), "no CPUID leaf of KVM"),
            Method::Vmm | Method::Heartbeat => {
                ensure!(offer_areas(&mut cpuid), "no CPUID leaf of KVM");
                vm.serve_areas(true)
                    .context("KVM_USERSPACE_REGISTER_MEM_AREA")?;
            }
            Method::Filter => filter(&vm)?,
            Method::Plain | Method::Msr => {}
        }

        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        enter_protected_mode(&vcpu)?;

        let mut guest = Guest {
            method,
            vcpu,
            _vm: vm,
            memory,
        };
        guest.write_descriptor();
        guest.write_code(match method {
            Method::Plain => CPUID,
            _ => WRMSR,
        });
        if method == Method::Heartbeat {
            // Registers the area that the heart then beats in.
            guest.measure(1)?;
            guest.write_code(COUNT);
        }
        // After this run no fault counts.
        guest.measure(2)?;
        Ok(guest)
    }

    fn write_code(&mut self, code: &[u8]) {
        for (offset, &byte) in code.iter().enumerate() {
            // SAFETY: inside the page, whose code the vCPU does not execute now.
            unsafe { self.at::<u8>(CODE).add(offset).write(byte) };
        }
    }

    fn write_descriptor(&mut self) {
        let kind = match self.method {
            Method::Kvm => KVM_MEM_AREA_TYPE_STEAL_TIME,
            _ => KVM_MEM_AREA_TYPE_VMM,
        };
        let desc = kvm_memory_area {
            base: AREA,
            size: AREA_SIZE,
            type_: kind,
            result: KVM_MEM_AREA_NO_ANSWER as u8,
            pad: [0; 7],
        };
        // SAFETY: inside the page, and aligned.
        unsafe { self.at::<kvm_memory_area>(DESC).write_volatile(desc) };
    }

    fn at<T>(&self, gpa: u64) -> *mut T {
        assert!(gpa + size_of::<T>() as u64 <= PAGE_SIZE);
        // SAFETY: inside the mapping.
        unsafe { self.memory.as_ptr().add(gpa as usize).cast() }
    }

    /// Lets the guest do it `times` times.
    pub fn measure(&mut self, times: u32) -> Result<Sample> {
        let (msr, value) = match self.method {
            Method::Msr => (MSR_KVM_STEAL_TIME, AREA | KVM_MSR_ENABLED),
            Method::Filter => (MSR_MADE_UP, DESC),
            _ => (MSR_KVM_REGISTER_MEM_AREA, DESC),
        };
        self.vcpu.set_regs(&kvm_regs {
            rip: CODE,
            rcx: msr.into(),
            rax: value,
            rsi: AREA,
            rdi: times.into(),
            rflags: 2,
            ..Default::default()
        })?;
        let before = self.exits()?;
        let start = Instant::now();
        self.run()?;
        let nanos = start.elapsed().as_nanos() as f64 / f64::from(times);
        // One of them is for HLT.
        let exits = (self.exits()? - before - 1) as f64 / f64::from(times);

        // SAFETY: inside the page, and aligned; the vCPU does not run.
        let result = unsafe { self.at::<kvm_memory_area>(DESC).read_volatile() }.result;
        ensure!(
            u32::from(result) == KVM_MEM_AREA_OK
                || matches!(self.method, Method::Plain | Method::Msr),
            "{}: the result is {result}",
            self.method
        );
        Ok(Sample { nanos, exits })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => return Ok(()),
                Ok(VcpuExit::Unsupported(MSR_OP_EXIT)) => {
                    self.vcpu.serve_area(|request| match request {
                        Request::Register(_) => Answer::Done,
                        _ => Answer::Fault,
                    });
                }
                Ok(VcpuExit::X86Wrmsr(exit)) => {
                    *exit.error = 0;
                    let desc = exit.data;
                    self.serve_filtered(desc)?;
                }
                Ok(exit) => bail!("the guest stopped with {exit:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e).context("KVM_RUN"),
            }
        }
    }

    /// What a VMM does without areas: reads the descriptor once, checks what KVM checks, and writes
    /// the result last.
    fn serve_filtered(&self, desc: u64) -> Result<()> {
        ensure!(
            desc % 32 == 0 && desc < PAGE_SIZE,
            "a descriptor at {desc:#x}"
        );
        // SAFETY: inside the page, and aligned. The guest may write to it at the same time.
        let area = unsafe { self.at::<kvm_memory_area>(desc).read_volatile() };
        let end = area.base.checked_add(area.size.into());
        let is_good = area.pad == [0; 7]
            && (1..=KVM_MEM_AREA_MAX_SIZE).contains(&area.size)
            && end.is_some_and(|end| end <= PAGE_SIZE && (end <= desc || area.base >= desc + 24))
            && area.type_ == KVM_MEM_AREA_TYPE_VMM;
        ensure!(is_good, "{area:?}");
        fence(Ordering::Release);
        // SAFETY: inside the page.
        unsafe {
            self.at::<u8>(desc + 16)
                .write_volatile(KVM_MEM_AREA_OK as u8)
        };
        Ok(())
    }

    fn exits(&self) -> Result<u64> {
        let exits = self.vcpu.stat("exits").context("KVM_GET_STATS_FD")?;
        exits.context("KVM does not count 'exits'")
    }
}

/// Has the guest's writes of the made-up MSR exit.
fn filter(vm: &VmFd) -> Result<()> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..Default::default()
    };
    cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
    vm.enable_cap(&cap).context("KVM_CAP_X86_USER_SPACE_MSR")?;
    let ranges = [MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_MADE_UP,
        msr_count: 1,
        bitmap: &[0],
    }];
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .context("KVM_X86_SET_MSR_FILTER")
}
