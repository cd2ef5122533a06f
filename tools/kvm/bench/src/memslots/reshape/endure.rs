// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Thousands of lists in close succession, under a running guest, and what KVM has
//! counted: page faults, windows and INVALID slots. The figures do not depend on the
//! speed of the machine.

use std::fmt;

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memory_uapi::{Counter, Stats, PAGE_SIZE};

use super::case::{Case, Method, MIB};
use super::guest::Guest;
use super::slots::Layout;
use crate::populate::memory::Memory;

/// The guest. It uses all of its memory.
const CASE: Case = Case {
    size: 64 * MIB,
    vcpus: 2,
};
/// Memory that comes and goes, and that the guest does not use.
const MORE: u64 = 16 * MIB + 5 * PAGE_SIZE;

/// What a list does to the slots. None of them takes a page from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Grow,
    Split,
    /// The border between two slots moves.
    Shift,
    Merge,
    /// The only one with pages that go.
    Shrink,
}

impl Operation {
    pub const ALL: [Operation; 5] = [
        Operation::Grow,
        Operation::Split,
        Operation::Shift,
        Operation::Merge,
        Operation::Shrink,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::Grow => "grow",
            Operation::Split => "split",
            Operation::Shift => "move the border",
            Operation::Merge => "merge",
            Operation::Shrink => "shrink",
        })
    }
}

/// KVM's counters, or what they counted in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lists: u64,
    /// Page faults of the guest.
    pub faults: u64,
    pub windows: u64,
    pub invalid_copies: u64,
    pub gone_pages: u64,
}

impl Counts {
    fn add(&mut self, from: Counts, to: Counts) {
        self.lists += to.lists - from.lists;
        self.faults += to.faults - from.faults;
        self.windows += to.windows - from.windows;
        self.invalid_copies += to.invalid_copies - from.invalid_copies;
        self.gone_pages += to.gone_pages - from.gone_pages;
    }
}

/// What a guest with pages of one size has endured.
pub struct Endured {
    pub huge: bool,
    /// By operation. A fault counts for the list at whose end it is first seen.
    pub counts: Vec<(Operation, Counts)>,
    /// Mappings of 2 MiB that the guest had before the lists and after them.
    pub huge_pages: (u64, u64),
    /// Pages to which the guest has written meanwhile.
    pub steps: u64,
}

impl Endured {
    /// What disturbed a guest that nothing should have disturbed, if anything did: a
    /// page fault, or a window of a list without pages that go.
    pub fn disturbance(&self) -> Option<(Operation, Counts)> {
        let disturbed = |(operation, counts): &&(Operation, Counts)| {
            let windows = counts.windows + counts.invalid_copies + counts.gone_pages;
            counts.faults > 0 || (*operation != Operation::Shrink && windows > 0)
        };
        self.counts.iter().find(disturbed).copied()
    }
}

struct Counters {
    lists: Counter,
    windows: Counter,
    invalid_copies: Counter,
    gone_pages: Counter,
    huge_pages: Counter,
}

impl Counters {
    fn new(vm: &VmFd) -> Result<Self> {
        let counter = |name| {
            vm.counter(name)
                .context("KVM_GET_STATS_FD")?
                .with_context(|| format!("KVM does not count '{name}'"))
        };
        Ok(Counters {
            lists: counter("memslot_list_calls")?,
            windows: counter("memslot_windows")?,
            invalid_copies: counter("memslot_invalid_copies")?,
            gone_pages: counter("memslot_gone_pages")?,
            huge_pages: counter("pages_2m")?,
        })
    }

    fn read(&self, guest: &Guest<'_>) -> Result<Counts> {
        Ok(Counts {
            lists: self.lists.read()?,
            faults: guest.faults()?,
            windows: self.windows.read()?,
            invalid_copies: self.invalid_copies.read()?,
            gone_pages: self.gone_pages.read()?,
        })
    }
}

/// Reshapes the slots of a guest at least `lists` times, whose memory has pages of
/// 2 MiB with `huge`, else of 4 KiB.
pub fn endure(kvm: &Kvm, huge: bool, lists: usize) -> Result<Endured> {
    let memory = Memory::new(CASE.size + MORE, huge)?;
    memory.write();
    let mut guest = Guest::start(kvm, CASE, &memory)?;
    let counters = Counters::new(&guest.vm)?;
    let (used, all) = (CASE.size, CASE.size + MORE);

    let mut counts = Operation::ALL.map(|operation| (operation, Counts::default()));
    let huge_before = counters.huge_pages.read()?;
    let mut before = counters.read(&guest)?;
    let mut steps_before = guest.steps();
    let mut steps = 0;
    for _ in 0..lists.div_ceil(Operation::ALL.len()) {
        for (operation, counts) in &mut counts {
            let (size, border) = match operation {
                Operation::Grow | Operation::Merge => (all, None),
                Operation::Split | Operation::Shift => (all, Some(guest.slots.next_border(used))),
                Operation::Shrink => (used, None),
            };
            let list = guest.slots.reshape(Layout { size, border })?;
            guest
                .update(&list, Method::List)
                .with_context(|| operation.to_string())?;

            let now = counters.read(&guest)?;
            counts.add(before, now);
            before = now;
        }
        let now = guest.steps();
        for (now, before) in now.iter().zip(&steps_before) {
            steps += u64::from(now.wrapping_sub(*before));
        }
        steps_before = now;
    }
    // Faults that only the next access to a page would bring.
    guest.wait_for_sweep(&guest.steps(), &mut || ())?;
    let [.., (_, last)] = &mut counts;
    last.add(before, counters.read(&guest)?);
    let huge_after = counters.huge_pages.read()?;
    guest.finish()?;
    Ok(Endured {
        huge,
        counts: counts.into(),
        huge_pages: (huge_before, huge_after),
        steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_list_that_shrinks_may_have_a_window() {
        let endured = |operation, faults, windows| {
            let counts = Counts {
                lists: 5,
                faults,
                windows,
                ..Counts::default()
            };
            Endured {
                huge: false,
                counts: vec![(operation, counts)],
                huge_pages: (0, 0),
                steps: 1,
            }
        };
        assert!(endured(Operation::Split, 0, 0).disturbance().is_none());
        assert!(endured(Operation::Shrink, 0, 5).disturbance().is_none());
        assert!(endured(Operation::Shrink, 1, 5).disturbance().is_some());
        assert!(endured(Operation::Merge, 0, 1).disturbance().is_some());
    }
}
