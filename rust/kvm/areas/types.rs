// SPDX-License-Identifier: GPL-2.0-only

//! The types of areas that KVM serves. A new one is a new entry of [`KVM_TYPES`].
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.
//!
//! Each type stands for an MSR that takes the address of a struct. What is checked here, the MSR
//! either does not check, or does not report.

use super::descriptor::{
    Answer,
    Range, //
};

use crate::types::PAGE_SIZE;

/// The first type that the VMM serves. Those below are KVM's, known or not: otherwise a newer KVM
/// would take types away from VMMs.
pub const FIRST_VMM_TYPE: u32 = 0x8000_0000;

/// The types that KVM serves.
pub const KVM_TYPES: [KvmType; 3] = [WALL_CLOCK, SYSTEM_TIME, STEAL_TIME];

/// `struct pvclock_wall_clock`, which `MSR_KVM_WALL_CLOCK_NEW` fills when it is written.
const WALL_CLOCK: KvmType = KvmType {
    kind: 1,
    msr: 0x4b56_4d00,
    enable: 0,
    size: 12,
    align: 4,
    one_page: false,
    mapped: false,
};

/// `struct pvclock_vcpu_time_info`, which `MSR_KVM_SYSTEM_TIME_NEW` keeps up to date.
const SYSTEM_TIME: KvmType = KvmType {
    kind: 2,
    msr: 0x4b56_4d01,
    enable: MSR_ENABLED,
    size: 32,
    align: 4,
    // kvm_gpc_activate() fails otherwise, and nothing reports that.
    one_page: true,
    mapped: true,
};

/// `struct kvm_steal_time`, which `MSR_KVM_STEAL_TIME` keeps up to date.
const STEAL_TIME: KvmType = KvmType {
    kind: 3,
    msr: 0x4b56_4d03,
    enable: MSR_ENABLED,
    size: 64,
    align: STEAL_TIME_ALIGN,
    one_page: true,
    mapped: false,
};

/// `KVM_MSR_ENABLED`.
pub const MSR_ENABLED: u64 = 1;

/// The alignment of `struct kvm_steal_time`, which `MSR_KVM_STEAL_TIME` checks.
pub const STEAL_TIME_ALIGN: u64 = 64;

/// A type of area that KVM serves.
#[derive(Debug, PartialEq, Eq)]
pub struct KvmType {
    kind: u32,
    msr: u32,
    /// Bits that the MSR's value has besides the address.
    enable: u64,
    size: u32,
    /// A power of two above `enable`.
    align: u64,
    /// Whether the area must not cross a page.
    one_page: bool,
    /// Whether KVM maps the area, and does not access it through userspace's mapping.
    mapped: bool,
}

/// Who serves a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// KVM does.
    Kvm(&'static KvmType),
    /// The VMM does, if it has asked for that.
    Vmm,
    /// Nobody does.
    Nobody,
}

impl Server {
    /// Returns who serves the type `kind`.
    pub fn of(kind: u32) -> Self {
        if kind >= FIRST_VMM_TYPE {
            return Self::Vmm;
        }
        KVM_TYPES
            .iter()
            .find(|known| known.kind == kind)
            .map_or(Self::Nobody, Self::Kvm)
    }
}

impl KvmType {
    /// Returns whether the type is number `kind`, and stands for `msr`, which takes a struct of
    /// `size` bytes.
    pub const fn is(&self, kind: u32, msr: u32, size: usize) -> bool {
        self.kind == kind && self.msr == msr && self.size as usize == size
    }

    /// Returns the MSR that the type stands for.
    pub const fn msr(&self) -> u32 {
        self.msr
    }

    /// Returns whether KVM must be able to map the area.
    pub const fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// Returns the MSR's value for an area.
    ///
    /// Fails if the MSR cannot take the area. Whether there is memory at all, it does not check.
    pub fn value(&self, range: Range) -> Result<u64, Answer> {
        if range.size() != self.size {
            return Err(Answer::BadSize);
        }
        let in_page = range.base() % PAGE_SIZE;
        if range.base() % self.align != 0
            || (self.one_page && in_page + u64::from(self.size) > PAGE_SIZE)
        {
            return Err(Answer::BadAlignment);
        }
        match range.base() | self.enable {
            // The MSR takes 0 for no area.
            Self::DISABLED => Err(Answer::BadAddress),
            value => Ok(value),
        }
    }

    /// The MSR's value without an area.
    pub const DISABLED: u64 = 0;
}
