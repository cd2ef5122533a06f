// SPDX-License-Identifier: GPL-2.0-only
//! A watchdog that is petted by a write to a device's register, as drivers/misc/vcpu_stall_detector.c
//! does it: what a heartbeat in memory is compared with.

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*, //
};

/// # Invariants
///
/// The pointer is to 4 bytes that are mapped until the drop.
pub(crate) struct Watchdog(NonNull<c_void>);

// SAFETY: Writing to the register is all that is done, and can be done anywhere.
unsafe impl Send for Watchdog {}
// SAFETY: Several threads may write to the register at the same time: each write is one instruction.
unsafe impl Sync for Watchdog {}

impl Watchdog {
    /// The watchdog whose register is at this address.
    pub(crate) fn new(gpa: u64) -> Result<Self> {
        // SAFETY: Mapping an address does nothing to what is there. The kernel refuses memory.
        let register = unsafe { bindings::ioremap(gpa, 4) };
        // INVARIANT: The mapping is new.
        NonNull::new(register).map(Self).ok_or(ENOMEM)
    }

    pub(crate) fn pet(&self) {
        // SAFETY: By the type's invariants, 4 bytes are mapped there.
        unsafe { bindings::writel(1, self.0.as_ptr()) };
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and not used any more.
        unsafe { bindings::iounmap(self.0.as_ptr()) };
    }
}
