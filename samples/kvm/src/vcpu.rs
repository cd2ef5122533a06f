// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A vCPU in 64-bit mode, at the entry point of a guest.

use anyhow::{anyhow, Context, Result};
use kvm_bindings::{kvm_cpuid_entry2, kvm_regs, kvm_segment, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// A CPUID function that these vCPUs have and no processor has.
pub const CPUID_FUNCTION: u32 = 0x4000_ff00;
/// Its result: eax, ebx, ecx, edx.
pub const CPUID_RESULT: [u32; 4] = [0x0123_4567, 0x89ab_cdef, 0x1357_9bdf, 0x0246_8ace];

/// The registers with which a vCPU starts. All others are 0.
#[derive(Default)]
pub struct Entry {
    /// Guest physical address of the PML4.
    pub page_table: u64,
    pub rip: u64,
    pub rsp: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r14: u64,
    pub r15: u64,
}

/// Creates vCPU `id`, which will start at `entry`.
pub fn new_vcpu(kvm: &Kvm, vm: &VmFd, id: u64, entry: &Entry) -> Result<VcpuFd> {
    let fd = vm.create_vcpu(id).context("KVM_CREATE_VCPU failed")?;

    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID failed")?;
    let [eax, ebx, ecx, edx] = CPUID_RESULT;
    cpuid
        .push(kvm_cpuid_entry2 {
            function: CPUID_FUNCTION,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        })
        .map_err(|e| anyhow!("no room for one more CPUID entry: {e:?}"))?;
    fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2 failed")?;

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS failed")?;
    // The guests never load a segment register, so they need no GDT. They have no
    // IDT either: an exception ends a guest.
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3, // data, writable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x8,
        type_: 11, // code, readable, accessed
        db: 0,
        l: 1,
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.idt.limit = 0;
    sregs.cr0 = (1 << 31) | (1 << 5) | (1 << 4) | 1; // PG, NE, ET, PE
    sregs.cr3 = entry.page_table;
    sregs.cr4 = 1 << 5; // PAE
    sregs.efer = (1 << 10) | (1 << 8); // LMA, LME
    fd.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
    fd.set_regs(&kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rflags: 2,
        r10: entry.r10,
        r11: entry.r11,
        r12: entry.r12,
        r14: entry.r14,
        r15: entry.r15,
        ..Default::default()
    })
    .context("KVM_SET_REGS failed")?;
    Ok(fd)
}
