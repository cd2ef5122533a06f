// SPDX-License-Identifier: GPL-2.0-only

//! What a write of `MSR_KVM_REGISTER_MEM_AREA` or `MSR_KVM_UNREGISTER_MEM_AREA` does.
//!
//! Pure: no kernel type is used here, and the file is compiled and tested on the host too.
//!
//! A command does things in this order, and nothing after the first that fails: read the
//! descriptor, check it, serve the area, write `result`. Reading the descriptor finds out whether
//! `result` can be written, so that no area is registered that the guest is not told of.

use super::{
    descriptor::{
        Answer,
        Area,
        Range,
        DESC_SIZE, //
    },
    types::{
        KvmType,
        Server,
        KVM_TYPES, //
    }, //
};

/// Which of the two MSRs is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `MSR_KVM_REGISTER_MEM_AREA`
    Register,
    /// `MSR_KVM_UNREGISTER_MEM_AREA`
    Unregister,
}

/// What becomes of the WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is complete.
    Done,
    /// It gives #GP, because the guest could not be told otherwise that it has failed.
    Fault,
    /// The VMM must carry out the command, which has had no effect so far: on this area, or on all
    /// of the VMM's. [`Answered`] completes it.
    Ask(Option<Area>),
}

/// The vCPU that executes the WRMSR, or a model of one in tests.
pub trait Vcpu {
    /// Copies a descriptor. Returns [`None`] if it is misaligned, or not in memory that the guest and
    /// KVM can both read and write.
    fn read_descriptor(&mut self, desc: u64) -> Option<[u8; DESC_SIZE]>;

    /// Writes the descriptor's `result`. Returns whether it could.
    fn write_result(&mut self, desc: u64, result: u8) -> bool;

    /// Returns whether all of a range is memory that guest and hypervisor share, and the guest can
    /// write.
    fn is_memory(&self, range: Range) -> bool;

    /// Returns whether KVM can write to the first and to the last byte of a range.
    fn can_write(&self, range: Range) -> bool;

    /// Returns whether KVM can map a range, which is within one page.
    fn can_map(&self, range: Range) -> bool;

    /// Reads an MSR. Returns [`None`] if the vCPU does not have it.
    fn read_msr(&self, msr: u32) -> Option<u64>;

    /// Writes an MSR on behalf of the guest. Returns whether KVM and the VMM let the guest do that.
    fn write_msr(&mut self, msr: u32, value: u64) -> bool;

    /// Returns whether the VMM serves areas.
    fn vmm_serves(&self) -> bool;
}

impl Command {
    /// Carries out a write of the value `desc`.
    pub fn run(self, desc: u64, vcpu: &mut impl Vcpu) -> Outcome {
        if self == Self::Unregister && desc == 0 {
            return if vcpu.vmm_serves() {
                Outcome::Ask(None)
            } else {
                disable_all(vcpu)
            };
        }
        let Some(bytes) = vcpu.read_descriptor(desc) else {
            return Outcome::Fault;
        };
        match self.serve(desc, &bytes, vcpu) {
            Ok(Some(area)) => Outcome::Ask(Some(area)),
            Ok(None) => report(vcpu, desc, Answer::Ok as u8),
            Err(answer) => report(vcpu, desc, answer as u8),
        }
    }

    /// Serves the area if that is up to KVM, or else returns it.
    fn serve(
        self,
        desc: u64,
        bytes: &[u8; DESC_SIZE],
        vcpu: &mut impl Vcpu,
    ) -> Result<Option<Area>, Answer> {
        let area = Area::parse(bytes)?;
        if self == Self::Register {
            // `result` would overwrite the area, or the area's contents the descriptor.
            let desc = Range::new(desc, DESC_SIZE as u32).ok_or(Answer::BadAddress)?;
            if area.range.overlaps(desc) || !vcpu.is_memory(area.range) {
                return Err(Answer::BadAddress);
            }
        }
        match Server::of(area.kind) {
            Server::Kvm(kind) if self == Self::Register => enable(kind, area.range, vcpu)?,
            Server::Kvm(kind) => disable(kind, area.range, vcpu)?,
            Server::Vmm if vcpu.vmm_serves() => return Ok(Some(area)),
            Server::Vmm | Server::Nobody => return Err(Answer::UnknownType),
        }
        Ok(None)
    }
}

/// A command that the VMM has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Where the descriptor is; [`None`] if the command takes back all areas.
    pub desc: Option<u64>,
    /// Whether the VMM wants #GP.
    pub error: bool,
    /// What the VMM wants the guest to find in `result`.
    pub result: u8,
}

impl Answered {
    /// Completes the command. The outcome is not [`Outcome::Ask`].
    ///
    /// The VMM may have changed guest memory meanwhile, or taken the descriptor away.
    pub fn complete(self, vcpu: &mut impl Vcpu) -> Outcome {
        match (self.desc, self.error) {
            (Some(desc), false) => report(vcpu, desc, self.result),
            (Some(_), true) => Outcome::Fault,
            (None, false) => disable_all(vcpu),
            // KVM's own areas end also if the VMM fails to end its own.
            (None, true) => {
                disable_all(vcpu);
                Outcome::Fault
            }
        }
    }
}

fn report(vcpu: &mut impl Vcpu, desc: u64, result: u8) -> Outcome {
    if vcpu.write_result(desc, result) {
        Outcome::Done
    } else {
        Outcome::Fault
    }
}

fn enable(kind: &KvmType, range: Range, vcpu: &mut impl Vcpu) -> Result<(), Answer> {
    let value = kind.value(range)?;
    if !vcpu.can_write(range) || (kind.is_mapped() && !vcpu.can_map(range)) {
        return Err(Answer::BadAddress);
    }
    if !vcpu.write_msr(kind.msr(), value) {
        return Err(Answer::Denied);
    }
    Ok(())
}

fn disable(kind: &KvmType, range: Range, vcpu: &mut impl Vcpu) -> Result<(), Answer> {
    let value = kind.value(range)?;
    match vcpu.read_msr(kind.msr()) {
        // Where there is no MSR, nothing is registered.
        None => Err(Answer::NotRegistered),
        Some(current) if current != value => Err(Answer::NotRegistered),
        Some(_) if vcpu.write_msr(kind.msr(), KvmType::DISABLED) => Ok(()),
        Some(_) => Err(Answer::Denied),
    }
}

/// Disables all that KVM serves to this vCPU.
fn disable_all(vcpu: &mut impl Vcpu) -> Outcome {
    let mut outcome = Outcome::Done;
    for kind in &KVM_TYPES {
        let is_enabled = vcpu
            .read_msr(kind.msr())
            .is_some_and(|value| value != KvmType::DISABLED);
        if is_enabled && !vcpu.write_msr(kind.msr(), KvmType::DISABLED) {
            outcome = Outcome::Fault;
        }
    }
    outcome
}
