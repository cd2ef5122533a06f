// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! How the VMM handles the guest's exits, and how guests die.

use kvm_ioctls::{VcpuExit, VcpuFd};
use kvm_vcpu_threads::Permit;

use crate::memslots::guest::{Device, DEVICE, PORT};

/// Why a vCPU stopped.
pub enum End {
    /// The guest reached the end of its program.
    Halted,
    Died(String),
}

/// Lets the vCPU run until its guest ends. Returns `None` if its thread must end before.
pub fn run_until_end(fd: &mut VcpuFd, device: &mut Device, permit: &Permit<'_>) -> Option<End> {
    while permit.may_run() {
        if let Some(end) = run(fd, device) {
            return Some(end);
        }
    }
    None
}

/// Lets the vCPU run until its next exit. Returns `None` if it can run again.
fn run(fd: &mut VcpuFd, device: &mut Device) -> Option<End> {
    let how = match fd.run() {
        Ok(VcpuExit::IoOut(PORT, bytes) | VcpuExit::MmioWrite(DEVICE, bytes)) => {
            device.write(bytes);
            return None;
        }
        Ok(VcpuExit::IoIn(PORT, bytes) | VcpuExit::MmioRead(DEVICE, bytes)) => {
            device.read(bytes);
            return None;
        }
        Ok(VcpuExit::Hlt) => return Some(End::Halted),
        Err(e) if e.errno() == libc::EINTR => return None,
        Ok(VcpuExit::MmioWrite(gpa, bytes)) => mmio("write", gpa, bytes.len()),
        Ok(VcpuExit::MmioRead(gpa, bytes)) => mmio("read", gpa, bytes.len()),
        Ok(VcpuExit::InternalError) => internal_error(fd),
        // An exception. KVM has reset the vCPU, so its rip says nothing.
        Ok(VcpuExit::Shutdown) => {
            return Some(End::Died("KVM_EXIT_SHUTDOWN (triple fault)".to_owned()))
        }
        Ok(exit) => format!("unexpected exit {exit:?}"),
        Err(e) => format!("KVM_RUN: {e}"),
    };
    let rip = fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
    Some(End::Died(format!("{how} at rip {rip:#x}")))
}

/// An MMIO exit at an address where the guest has memory: the guest would lose
/// the write, or read other contents.
fn mmio(what: &str, gpa: u64, bytes: usize) -> String {
    format!("KVM_EXIT_MMIO, {what} of {bytes} bytes of its memory at {gpa:#x}")
}

fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: for KVM_EXIT_INTERNAL_ERROR this is the member that KVM fills.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let name = match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "emulation failed",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "event delivery",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({name})")
}
