// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Memory areas that a guest shares.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_regs, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::bindings::{
    kvm_memory_area, KVM_MEM_AREA_NO_ANSWER, KVM_MEM_AREA_TYPE_VMM, MSR_KVM_REGISTER_MEM_AREA,
    MSR_KVM_UNREGISTER_MEM_AREA,
};
use kvm_memory_uapi::{
    offer_areas, Answer, Area, Region, RegionList, Request, VcpuFdAreaExt, VmFdMemoryExt,
    MSR_OP_EXIT,
};

use crate::guest::{page, vm};

/// `wrmsr; hlt`, and where it is.
const CODE: [u8; 3] = [0x0f, 0x30, 0xf4];
const CODE_GPA: u64 = 0x1000;
const DESC_GPA: u64 = 0x1100;
const AREA: Area = Area {
    guest_phys_addr: 0x1200,
    size: 64,
    kind: KVM_MEM_AREA_TYPE_VMM + 7,
};

struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Region,
}

impl Guest {
    fn new() -> Result<Self, Box<dyn StdError>> {
        let vm = vm()?;
        assert!(vm.can_serve_areas(), "no memory areas");
        let memory = page(0, CODE_GPA >> 12)?;
        let mut list = RegionList::new();
        list.create(memory)?;
        // SAFETY: the page stays mapped, and is accessed through raw pointers only.
        unsafe { vm.set_user_memory_regions(&list) }?;
        let mut cpuid = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        assert!(offer_areas(&mut cpuid));
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&cpuid)?;
        let mut sregs = vcpu.get_sregs()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs)?;
        let guest = Guest { vcpu, vm, memory };
        for (offset, byte) in (0..).zip(CODE) {
            guest.byte(CODE_GPA + offset).store(byte, Ordering::Relaxed);
        }
        Ok(guest)
    }

    /// A byte of the page, which the guest and KVM may write to at the same time.
    fn byte(&self, gpa: u64) -> &AtomicU8 {
        assert!((CODE_GPA..CODE_GPA + self.memory.memory_size).contains(&gpa));
        let addr = self.memory.userspace_addr + gpa - CODE_GPA;
        // SAFETY: inside a mapping that stays, and only accessed atomically.
        unsafe { AtomicU8::from_ptr(addr as *mut u8) }
    }

    /// Prepares a write of an MSR, with a descriptor of [`AREA`] in memory.
    fn prepare(&mut self, msr: u32, value: u64) -> Result<(), kvm_ioctls::Error> {
        let desc = kvm_memory_area {
            base: AREA.guest_phys_addr,
            size: AREA.size,
            type_: AREA.kind,
            result: KVM_MEM_AREA_NO_ANSWER as u8,
            pad: [0; 7],
        };
        let addr = self.memory.userspace_addr + DESC_GPA - CODE_GPA;
        // SAFETY: inside the page and aligned; the vCPU does not run.
        unsafe { (addr as *mut kvm_memory_area).write_volatile(desc) };
        self.vcpu.set_regs(&kvm_regs {
            rip: CODE_GPA,
            rcx: msr.into(),
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            rflags: 2,
            ..Default::default()
        })
    }

    fn result(&self) -> u8 {
        self.byte(DESC_GPA + 16).load(Ordering::Relaxed)
    }
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn a_guest_finds_what_the_vmm_answers() -> Result<(), Box<dyn StdError>> {
    let mut guest = Guest::new()?;
    guest.vm.serve_areas(true)?;
    let custom = Answer::custom(0x9a).ok_or("not custom")?;
    let (register, unregister) = (MSR_KVM_REGISTER_MEM_AREA, MSR_KVM_UNREGISTER_MEM_AREA);
    for (msr, value, request, answer, result) in [
        (register, DESC_GPA, Request::Register(AREA), custom, 0x9a),
        (register, DESC_GPA, Request::Register(AREA), Answer::Done, 0),
        (
            unregister,
            DESC_GPA,
            Request::Unregister(AREA),
            Answer::NotRegistered,
            6,
        ),
        (
            unregister,
            0,
            Request::UnregisterAll,
            Answer::Done,
            KVM_MEM_AREA_NO_ANSWER as u8,
        ),
    ] {
        guest.prepare(msr, value)?;
        assert!(matches!(
            guest.vcpu.run()?,
            VcpuExit::Unsupported(MSR_OP_EXIT)
        ));
        assert_eq!(guest.result(), KVM_MEM_AREA_NO_ANSWER as u8);
        let served = guest.vcpu.serve_area(|_| answer);
        assert_eq!(served, Some((request, answer)));
        assert!(matches!(guest.vcpu.run()?, VcpuExit::Hlt));
        assert_eq!(guest.result(), result);
        assert_eq!(guest.vcpu.serve_area(|_| unreachable!()), None);
    }
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn an_error_is_a_general_protection_fault() -> Result<(), Box<dyn StdError>> {
    let mut guest = Guest::new()?;
    guest.vm.serve_areas(true)?;
    guest.prepare(MSR_KVM_REGISTER_MEM_AREA, DESC_GPA)?;
    assert!(matches!(
        guest.vcpu.run()?,
        VcpuExit::Unsupported(MSR_OP_EXIT)
    ));
    assert!(guest.vcpu.serve_area(|_| Answer::Fault).is_some());
    // The guest has no handler, and no memory for one.
    assert!(!matches!(guest.vcpu.run(), Ok(VcpuExit::Hlt)));
    assert_eq!(guest.result(), KVM_MEM_AREA_NO_ANSWER as u8);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn nobody_serves_what_the_vmm_does_not() -> Result<(), Box<dyn StdError>> {
    let mut guest = Guest::new()?;
    for served in [true, false] {
        guest.vm.serve_areas(served)?;
        guest.prepare(MSR_KVM_REGISTER_MEM_AREA, DESC_GPA)?;
        if served {
            assert!(matches!(
                guest.vcpu.run()?,
                VcpuExit::Unsupported(MSR_OP_EXIT)
            ));
        }
        // The VMM runs the vCPU again without an answer.
        assert!(matches!(guest.vcpu.run()?, VcpuExit::Hlt));
        assert_eq!(guest.result(), 1);
    }
    Ok(())
}
