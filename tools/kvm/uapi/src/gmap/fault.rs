// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What a vCPU has missed when it exits with `KVM_EXIT_S390_UCONTROL`.

use kvm_bindings::KVM_EXIT_S390_UCONTROL;
use kvm_ioctls::VcpuFd;

/// The only `pgm_code`: a segment is not mapped.
const SEGMENT_TRANSLATION: u32 = 0x10;

/// Exits of a vCPU that has an address space of its own.
pub trait VcpuFdGmapExt {
    /// The page that was not mapped, if the vCPU has left its last run because of
    /// that: after [`VcpuExit::S390Ucontrol`](kvm_ioctls::VcpuExit::S390Ucontrol).
    /// The guest executes the instruction again when the vCPU runs next.
    fn missing_page(&mut self) -> Option<u64>;
}

impl VcpuFdGmapExt for VcpuFd {
    fn missing_page(&mut self) -> Option<u64> {
        let run = self.get_kvm_run();
        if run.exit_reason != KVM_EXIT_S390_UCONTROL {
            return None;
        }
        // SAFETY: all of the union is initialised, and numbers may have any value. The
        // exit reason says that it is this one.
        let exit = unsafe { run.__bindgen_anon_1.s390_ucontrol };
        (exit.pgm_code == SEGMENT_TRANSLATION).then_some(exit.trans_exc_code)
    }
}
