// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#![allow(non_camel_case_types, missing_docs)]
use kvm_ioctls::VmFd;
use vmm_sys_util::{errno, ioctl::ioctl_with_ref};
pub const KVM_CAP_REGISTER_MEM_AREA: u32 = 0x10003;
pub const KVM_EXIT_X86_MSR_OP: u32 = 0x10001;
pub const KVM_FEATURE_MEM_AREA: u32 = 23;
pub const MSR_KVM_REGISTER_MEM_AREA: u32 = 0x4b564d80;
pub const MSR_KVM_UNREGISTER_MEM_AREA: u32 = 0x4b564d81;
pub const KVM_MEM_AREA_OK: u32 = 0;
pub const KVM_MEM_AREA_UNKNOWN_TYPE: u32 = 1;
pub const KVM_MEM_AREA_BAD_SIZE: u32 = 3;
pub const KVM_MEM_AREA_BAD_ALIGNMENT: u32 = 4;
pub const KVM_MEM_AREA_NOT_REGISTERED: u32 = 6;
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
pub trait AreaExt {
    fn can_serve_areas(&self) -> bool;
    fn serve_areas(&self, enabled: bool) -> Result<(), errno::Error>;
}
impl AreaExt for VmFd {
    fn can_serve_areas(&self) -> bool {
        self.check_extension_raw(KVM_CAP_REGISTER_MEM_AREA.into()) > 0
    }
    fn serve_areas(&self, enabled: bool) -> Result<(), errno::Error> {
        let info = [u8::from(enabled), 0, 0, 0];
        // SAFETY: KVM reads 4 bytes.
        let ret = unsafe { ioctl_with_ref(self, 0x4004_aea8, &info) };
        if ret == 0 { Ok(()) } else { Err(errno::Error::last()) }
    }
}
