// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What is measured: something that a guest does again and again.

use std::fmt;

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Executes CPUID, in a VM that does not offer areas.
    Plain,
    /// Writes `MSR_KVM_STEAL_TIME`.
    Msr,
    /// Registers an area of steal time.
    Kvm,
    /// Writes an MSR that the VMM has filtered. The VMM reads a descriptor from the guest's memory,
    /// checks it, and writes the result there.
    Filter,
    /// Registers an area that the VMM serves.
    Vmm,
    /// Counts up a word in an area.
    Heartbeat,
}

impl Method {
    pub const ALL: [Method; 6] = [
        Method::Plain,
        Method::Msr,
        Method::Kvm,
        Method::Filter,
        Method::Vmm,
        Method::Heartbeat,
    ];

    /// Whether KVM's C code can do it.
    pub fn works_in_c(self) -> bool {
        matches!(self, Method::Plain | Method::Msr | Method::Filter)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Plain => "CPUID, in a guest without areas",
            Method::Msr => "MSR_KVM_STEAL_TIME",
            Method::Kvm => "area that KVM serves",
            Method::Filter => "MSR filter, VMM reads a descriptor",
            Method::Vmm => "area that the VMM serves",
            Method::Heartbeat => "heartbeat in an area",
        })
    }
}

/// What one measurement has found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Nanoseconds for each time that the guest does it.
    pub nanos: f64,
    /// Exits for each time.
    pub exits: f64,
}
