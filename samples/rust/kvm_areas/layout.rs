// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What is in the areas that the guest shares with its VMM, and their types.
//!
//! Guest and VMM compile this file. The guest's `U64` and `Byte` are atomic, because the VMM reads
//! them at any time; the VMM's are the plain integers, of which it uses the offsets only.
//!
//! Numbers are little-endian. Times are in nanoseconds since the guest's boot. A layout never
//! changes; a new layout gets a new type.

/// The types, from those that belong to the VMM.
pub(crate) const HEARTBEAT: u32 = 0x8000_0001;
pub(crate) const RECORD: u32 = 0x8000_0002;
pub(crate) const PRESSURE: u32 = 0x8000_0003;

/// Shows that the guest is alive, and how much of it.
#[repr(C)]
pub(crate) struct Heartbeat<U64> {
    /// The time between two beats.
    pub(crate) period: U64,
    /// Beats of a timer, and the time of the last one. They prove that the guest takes
    /// interrupts.
    pub(crate) timer_beats: U64,
    pub(crate) timer_time: U64,
    /// Beats of a work item that each beat of the timer queues, and the time of the last one. They
    /// prove that ordinary tasks get to run.
    pub(crate) task_beats: U64,
    pub(crate) task_time: U64,
}

/// Number of bytes of the guest's last messages that are kept.
pub(crate) const LOG_SIZE: usize = 3072;
/// Number of bytes of the reason for a panic that are kept.
pub(crate) const REASON_SIZE: usize = 256;

/// [`Record::state`] after a panic.
pub(crate) const PANICKED: u64 = 1;

/// What remains of a guest that has died.
#[repr(C)]
pub(crate) struct Record<U64, Byte> {
    /// 0, or [`PANICKED`].
    pub(crate) state: U64,
    /// The time of the panic.
    pub(crate) time: U64,
    /// Bytes that have gone into `log` so far. The next one goes to this number modulo
    /// [`LOG_SIZE`].
    pub(crate) logged: U64,
    /// Why the guest panicked; a 0 ends it.
    pub(crate) reason: [Byte; REASON_SIZE],
    /// The end of the kernel log, as far as the guest's console loglevel lets messages through.
    pub(crate) log: [Byte; LOG_SIZE],
}

/// How much memory the guest has left, in bytes.
///
/// The guest increments `sequence` before and after it changes the other fields: they belong
/// together if it is even and has not changed while they were read.
#[repr(C)]
pub(crate) struct Pressure<U64> {
    pub(crate) sequence: U64,
    pub(crate) total: U64,
    pub(crate) free: U64,
    /// What tasks can still get without swapping.
    pub(crate) available: U64,
}
