// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What address spaces of vCPUs cost: `KVM_S390_UCAS_MAP` and
//! `KVM_S390_UCAS_UNMAP`, faults, and worlds against VMs.

mod measure;
mod report;
mod run;
mod world;

pub use run::run;
