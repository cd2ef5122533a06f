// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#![allow(non_camel_case_types, missing_docs)]
pub const KVM_EXIT_X86_MSR_OP: u32 = 0x10001;
pub const KVM_FEATURE_MEM_AREA: u32 = 23;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct kvm_x86_msr_op {
    pub msr_data: u64,
    pub base: u64,
    pub size: u32,
    pub type_: u32,
    pub index: u32,
    pub error: u8,
    pub result: u8,
    pub pad: [u8; 2],
}
