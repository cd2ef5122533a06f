// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A model of a vCPU that registers areas. It asserts that the order of steps is right.

use std::collections::BTreeMap;

use kvm_memory_host_tests::areas::command::Vcpu;
use kvm_memory_host_tests::areas::descriptor::{Range, DESC_SIZE};

/// What the tests use as memory.
pub const MEMORY: std::ops::Range<u64> = 0x1_0000..0x40_0000;

/// Where the tests have the descriptor.
pub const DESC: u64 = 0x1_1000;

pub const WALL_CLOCK: u32 = 0x4b56_4d00;
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
pub const STEAL_TIME: u32 = 0x4b56_4d03;

/// A step with an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Read(u64),
    WriteMsr(u32, u64),
    Result(u64, u8),
}

/// The vCPU.
#[derive(Clone, Debug)]
pub struct Guest {
    pub desc: [u8; DESC_SIZE],
    /// Holes, read-only slots and private memory: what is no shared memory inside of [`MEMORY`].
    pub holes: Vec<std::ops::Range<u64>>,
    /// What userspace does not let KVM write to.
    pub protected: Vec<std::ops::Range<u64>>,
    /// What KVM can write to, but cannot map.
    pub secret: Vec<std::ops::Range<u64>>,
    /// The MSRs that the vCPU has.
    pub msrs: BTreeMap<u32, u64>,
    /// The MSRs that the VMM does not let the guest write.
    pub filter: Vec<u32>,
    pub vmm_serves: bool,
    /// Whether `result` can be written when the time comes.
    pub result_fails: bool,
    pub steps: Vec<Step>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            desc: descriptor(0x2_0000, 4096, 0x8000_0000),
            holes: vec![],
            protected: vec![],
            secret: vec![],
            msrs: [(WALL_CLOCK, 0), (SYSTEM_TIME, 0), (STEAL_TIME, 0)].into(),
            filter: vec![],
            vmm_serves: false,
            result_fails: false,
            steps: vec![],
        }
    }
}

/// Returns the bytes of a descriptor with a preset `result`.
pub fn descriptor(base: u64, size: u32, kind: u32) -> [u8; DESC_SIZE] {
    let mut bytes = [0; DESC_SIZE];
    bytes[..8].copy_from_slice(&base.to_le_bytes());
    bytes[8..12].copy_from_slice(&size.to_le_bytes());
    bytes[12..16].copy_from_slice(&kind.to_le_bytes());
    bytes[16] = 0xff;
    bytes
}

impl Guest {
    /// Returns whether all of `start..end` is shared memory.
    pub fn has_memory(&self, start: u64, end: u64) -> bool {
        start >= MEMORY.start
            && end <= MEMORY.end
            && !self
                .holes
                .iter()
                .any(|hole| start < hole.end && hole.start < end)
    }

    /// Returns the result that has been written, if it has.
    pub fn result(&self) -> Option<u8> {
        match self.steps.last() {
            Some(Step::Result(_, result)) => Some(*result),
            _ => None,
        }
    }
}

impl Vcpu for Guest {
    fn read_descriptor(&mut self, desc: u64) -> Option<[u8; DESC_SIZE]> {
        assert_eq!(self.steps, [], "the descriptor is read once, and first");
        self.steps.push(Step::Read(desc));
        let end = desc.checked_add(DESC_SIZE as u64)?;
        (desc % 32 == 0 && self.has_memory(desc, end)).then_some(self.desc)
    }

    fn write_result(&mut self, desc: u64, result: u8) -> bool {
        assert_eq!(self.result(), None, "the result is written once");
        self.steps.push(Step::Result(desc, result));
        !self.result_fails
    }

    fn is_memory(&self, range: Range) -> bool {
        self.has_memory(range.base(), range.base() + u64::from(range.size()))
    }

    fn can_write(&self, range: Range) -> bool {
        assert!(self.is_memory(range), "KVM writes to memory only");
        let ends = [range.base(), range.base() + u64::from(range.size()) - 1];
        !ends
            .iter()
            .any(|end| self.protected.iter().any(|area| area.contains(end)))
    }

    fn can_map(&self, range: Range) -> bool {
        assert!(self.can_write(range), "KVM maps what it can write to");
        let last = range.base() + u64::from(range.size()) - 1;
        assert_eq!(range.base() / 4096, last / 4096, "KVM maps one page");
        !self.secret.iter().any(|area| area.contains(&last))
    }

    fn read_msr(&self, msr: u32) -> Option<u64> {
        self.msrs.get(&msr).copied()
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        assert_eq!(self.result(), None, "the result is written last");
        self.steps.push(Step::WriteMsr(msr, value));
        let allowed = !self.filter.contains(&msr);
        match self.msrs.get_mut(&msr) {
            Some(current) if allowed => *current = value,
            _ => return false,
        }
        true
    }

    fn vmm_serves(&self) -> bool {
        self.vmm_serves
    }
}
