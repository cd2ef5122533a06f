// SPDX-License-Identifier: GPL-2.0-only

//! The last dirty bits of slots that a list deletes, for entries that ask for them.
//!
//! A log that the slot had before the list is copied when no reader of the slot is left. A log that
//! the list itself has started says what it said at its start.

use super::{
    check::{
        LastLog,
        Plan,
        View, //
    },
    few::Few,
    locks::SlotsLocked, //
};

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// The logs that a list starts, and whose last bits it asks for.
pub(super) struct StartedLogs(Few<LastLog>);

impl StartedLogs {
    /// Finds out whether userspace can be given all last bits that `plan` asks for.
    ///
    /// Returns the number of the first entry for which it cannot, and why.
    pub(super) fn new<V: View>(plan: &Plan<'_, V>) -> Result<Self, (usize, Error)> {
        let mut started = Few::new();
        for log in plan.last_logs() {
            // SAFETY: The function only accesses memory of the current task's userspace.
            to_result(unsafe { bindings::kvm_memory_fault_in_log(log.address, log.npages) })
                .map_err(|error| (log.entry, error))?;
            if log.started {
                started
                    .push(log)
                    .map_err(|error| (log.entry, error.into()))?;
            }
        }
        Ok(Self(started))
    }

    /// Copies the bits to userspace. Fails with `EFAULT`.
    pub(super) fn copy(&self, slots: &SlotsLocked<'_>) -> Result {
        for log in &self.0 {
            // SAFETY: By the invariant of `Vm` the VM is not freed. The function only accesses
            // memory of the current task's userspace.
            to_result(unsafe {
                bindings::kvm_memory_copy_started_log(slots.as_ptr(), log.address, log.npages)
            })?;
        }
        Ok(())
    }
}
