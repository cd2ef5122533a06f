// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What a command must do, written down a second time: as the table of results in
//! Documentation/virt/kvm/memory/areas.rst, first match counts.

use kvm_memory_host_tests::areas::command::{Command, Outcome};

use crate::guest::{Guest, Step, STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};

/// What a command must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Gp,
    Result(u8),
    /// The VMM is asked about this base, size and type; all 0 for all areas.
    Exit(u64, u32, u32),
    /// All of KVM's areas end.
    AllEnd,
}

/// Returns what `command` with the value `desc` must do in the guest as it is.
pub fn expected(command: Command, desc: u64, guest: &Guest) -> Expected {
    let register = command == Command::Register;
    if !register && desc == 0 {
        return if guest.vmm_serves {
            Expected::Exit(0, 0, 0)
        } else {
            Expected::AllEnd
        };
    }
    if desc % 32 != 0 || desc > u64::MAX - 24 || !guest.has_memory(desc, desc + 24) {
        return Expected::Gp;
    }

    let word = |at: usize| {
        u32::from_le_bytes([
            guest.desc[at],
            guest.desc[at + 1],
            guest.desc[at + 2],
            guest.desc[at + 3],
        ])
    };
    let base = u128::from(word(0)) | (u128::from(word(4)) << 32);
    let size = word(8);
    let kind = word(12);
    let end = base + u128::from(size);
    if guest.desc[17..].iter().any(|byte| *byte != 0) {
        return Expected::Result(5);
    }
    if size == 0 || size > 1 << 20 || end >= 1 << 64 {
        return Expected::Result(3);
    }
    let (base, end) = (base as u64, end as u64);
    let over_descriptor = base < desc + 24 && desc < end;
    if register && (over_descriptor || !guest.has_memory(base, end)) {
        return Expected::Result(2);
    }

    let (msr, right_size, align, value) = match kind {
        1 => (WALL_CLOCK, 12, 4, base),
        2 => (SYSTEM_TIME, 32, 4, base | 1),
        3 => (STEAL_TIME, 64, 64, base | 1),
        0x8000_0000.. if guest.vmm_serves => return Expected::Exit(base, size, kind),
        _ => return Expected::Result(1),
    };
    if size != right_size {
        return Expected::Result(3);
    }
    if base % align != 0 || (kind == 2 && base / 4096 != (end - 1) / 4096) {
        return Expected::Result(4);
    }
    let protected = |at| guest.protected.iter().any(|area| area.contains(&at));
    // The clock is the only one that KVM maps.
    let secret = kind == 2 && guest.secret.iter().any(|area| area.contains(&base));
    if value == 0 || (register && (protected(base) || protected(end - 1) || secret)) {
        return Expected::Result(2);
    }
    match guest.msrs.get(&msr) {
        None if register => Expected::Result(7),
        None => Expected::Result(6),
        Some(current) if !register && *current != value => Expected::Result(6),
        Some(_) if guest.filter.contains(&msr) => Expected::Result(7),
        Some(_) => Expected::Result(0),
    }
}

/// Runs `command` with the value `desc` in the guest as it is, and asserts that it does what it must.
pub fn check(command: Command, desc: u64, before: &Guest) {
    let mut guest = before.clone();
    let outcome = command.run(desc, &mut guest);
    let writes = guest
        .steps
        .iter()
        .filter(|step| matches!(step, Step::WriteMsr(..)))
        .count();
    match (outcome, expected(command, desc, before)) {
        (Outcome::Fault, Expected::Gp) => {
            assert_eq!(guest.msrs, before.msrs);
            assert_eq!(guest.result(), None);
        }
        (Outcome::Done, Expected::Result(result)) => {
            assert_eq!(guest.steps.last(), Some(&Step::Result(desc, result)));
            assert!(writes <= 1);
            if result != 0 {
                assert_eq!(guest.msrs, before.msrs);
            }
        }
        (Outcome::Ask(area), Expected::Exit(base, size, kind)) => {
            let asked = area.map(|area| (area.range.base(), area.range.size(), area.kind));
            assert_eq!(asked.unwrap_or_default(), (base, size, kind));
            assert_eq!(asked.is_none(), desc == 0 && command == Command::Unregister);
            assert_eq!(writes, 0);
            assert_eq!(guest.result(), None);
        }
        (Outcome::Done | Outcome::Fault, Expected::AllEnd) => {
            for (msr, value) in &guest.msrs {
                assert!(*value == 0 || guest.filter.contains(msr));
            }
            let all_end = guest.msrs.values().all(|value| *value == 0);
            assert_eq!(outcome == Outcome::Done, all_end);
        }
        (outcome, expected) => panic!("{outcome:?} is not {expected:?}"),
    }
}
