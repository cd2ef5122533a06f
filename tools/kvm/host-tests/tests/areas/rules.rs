// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The rules of Documentation/virt/kvm/memory/areas.rst, one test each.

use kvm_memory_host_tests::areas::command::{Answered, Command, Outcome};
use kvm_memory_host_tests::areas::descriptor::{Area, Range};

use crate::guest::{descriptor, Guest, Step, DESC, MEMORY, STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};

const BASE: u64 = 0x2_0000;
const VMM: u32 = 0x8000_0000;

/// Registers an area, and returns what the guest finds in `result`.
fn register(guest: &mut Guest, base: u64, size: u32, kind: u32) -> u8 {
    command(Command::Register, guest, base, size, kind)
}

fn unregister(guest: &mut Guest, base: u64, size: u32, kind: u32) -> u8 {
    command(Command::Unregister, guest, base, size, kind)
}

fn command(command: Command, guest: &mut Guest, base: u64, size: u32, kind: u32) -> u8 {
    guest.desc = descriptor(base, size, kind);
    guest.steps.clear();
    assert_eq!(command.run(DESC, guest), Outcome::Done);
    guest.result().expect("the guest finds a result")
}

#[test]
fn types_that_kvm_serves_are_their_msrs() {
    let mut guest = Guest::default();
    for (kind, size, msr, value) in [
        (1, 12, WALL_CLOCK, BASE),
        (2, 32, SYSTEM_TIME, BASE | 1),
        (3, 64, STEAL_TIME, BASE | 1),
    ] {
        assert_eq!(register(&mut guest, BASE, size, kind), 0);
        assert_eq!(
            guest.steps,
            [
                Step::Read(DESC),
                Step::WriteMsr(msr, value),
                Step::Result(DESC, 0)
            ]
        );
        assert_eq!(unregister(&mut guest, BASE, size, kind), 0);
        assert_eq!(guest.msrs[&msr], 0);
        assert_eq!(unregister(&mut guest, BASE, size, kind), 6);
    }
}

#[test]
fn registering_again_replaces() {
    let mut guest = Guest::default();
    assert_eq!(register(&mut guest, BASE, 64, 3), 0);
    assert_eq!(register(&mut guest, BASE + 64, 64, 3), 0);
    assert_eq!(guest.msrs[&STEAL_TIME], (BASE + 64) | 1);
    assert_eq!(unregister(&mut guest, BASE, 64, 3), 6);
    assert_eq!(unregister(&mut guest, BASE + 64, 64, 3), 0);
}

#[test]
fn sizes() {
    let mut guest = Guest {
        vmm_serves: true,
        ..Guest::default()
    };
    for (base, size, kind) in [
        (BASE, 0, VMM),
        (BASE, (1 << 20) + 1, VMM),
        (BASE, u32::MAX, VMM),
        (u64::MAX, 1, VMM),
        (u64::MAX - 4094, 4096, VMM),
        (BASE, 0, 1),
        (BASE, 11, 1),
        (BASE, 13, 1),
        (BASE, 31, 2),
        (BASE, 64, 2),
        (BASE, 63, 3),
        (BASE, 4096, 3),
    ] {
        assert_eq!(
            register(&mut guest, base, size, kind),
            3,
            "{base:#x} {size} {kind}"
        );
    }
    guest.desc = descriptor(BASE, 1 << 20, VMM);
    guest.steps.clear();
    assert!(matches!(
        Command::Register.run(DESC, &mut guest),
        Outcome::Ask(Some(_))
    ));
}

#[test]
fn alignment() {
    let mut guest = Guest::default();
    for (base, size, kind) in [
        (BASE + 1, 12, 1),
        (BASE + 2, 12, 1),
        (BASE + 1, 32, 2),
        (BASE + 4096 - 28, 32, 2),
        (BASE + 32, 64, 3),
    ] {
        assert_eq!(
            register(&mut guest, base, size, kind),
            4,
            "{base:#x} {kind}"
        );
    }
    // The struct of the wall clock may cross a page.
    assert_eq!(register(&mut guest, BASE + 4096 - 8, 12, 1), 0);
    assert_eq!(register(&mut guest, BASE + 4096 - 32, 32, 2), 0);
}

#[test]
fn pad_must_be_zero() {
    for byte in 17..24 {
        let mut guest = Guest {
            desc: descriptor(BASE, 12, 1),
            ..Guest::default()
        };
        guest.desc[byte] = 1;
        assert_eq!(Command::Register.run(DESC, &mut guest), Outcome::Done);
        assert_eq!(guest.result(), Some(5));
    }
}

#[test]
fn addresses() {
    let mut guest = Guest {
        vmm_serves: true,
        ..Guest::default()
    };
    guest.holes.push(BASE + 0x2000..BASE + 0x3000);
    guest.protected.push(BASE + 0x5000..BASE + 0x6000);
    for (base, size, kind) in [
        (BASE + 0x1000, 0x3000, VMM),
        (MEMORY.end - 0x1000, 0x1001, VMM),
        (MEMORY.start - 1, 2, VMM),
        (1 << 51, 4096, VMM),
        (BASE + 0x2000, 12, 1),
        (BASE + 0x2000, 32, 2),
        (BASE + 0x2000, 64, 3),
        (BASE + 0x5000, 64, 3),
        (BASE + 0x4ff8, 12, 1),
        // Over the descriptor.
        (DESC, 24, VMM),
        (DESC + 23, 1, VMM),
        (DESC - 8, 12, 1),
    ] {
        assert_eq!(
            register(&mut guest, base, size, kind),
            2,
            "{base:#x} {size} {kind}"
        );
    }
    assert!(guest.msrs.values().all(|value| *value == 0));
}

#[test]
fn address_0_means_no_wall_clock() {
    let mut guest = Guest::default();
    assert_eq!(unregister(&mut guest, 0, 12, 1), 2);
}

#[test]
fn unknown_types() {
    let mut guest = Guest::default();
    for vmm_serves in [false, true] {
        guest.vmm_serves = vmm_serves;
        for kind in [0, 4, 5, 0x7fff_ffff] {
            assert_eq!(register(&mut guest, BASE, 4096, kind), 1);
            assert_eq!(unregister(&mut guest, BASE, 4096, kind), 1);
        }
    }
    guest.vmm_serves = false;
    for kind in [VMM, u32::MAX] {
        assert_eq!(register(&mut guest, BASE, 4096, kind), 1);
        assert_eq!(unregister(&mut guest, BASE, 4096, kind), 1);
    }
}

#[test]
fn filters_and_features_deny() {
    let mut guest = Guest::default();
    guest.filter.push(STEAL_TIME);
    assert_eq!(register(&mut guest, BASE, 64, 3), 7);
    guest.msrs.insert(STEAL_TIME, BASE | 1);
    assert_eq!(unregister(&mut guest, BASE, 64, 3), 7);
    // Nothing is registered where there is no MSR.
    guest.msrs.remove(&SYSTEM_TIME);
    assert_eq!(register(&mut guest, BASE, 32, 2), 7);
    assert_eq!(unregister(&mut guest, BASE, 32, 2), 6);
}

#[test]
fn the_clock_must_be_in_memory_that_kvm_can_map() {
    let mut guest = Guest::default();
    guest.secret.push(BASE..BASE + 4096);
    assert_eq!(register(&mut guest, BASE, 32, 2), 2);
    assert_eq!(guest.msrs[&SYSTEM_TIME], 0);
    assert_eq!(register(&mut guest, BASE, 12, 1), 0);
    assert_eq!(register(&mut guest, BASE, 64, 3), 0);
    // It can be taken back from there.
    guest.msrs.insert(SYSTEM_TIME, BASE | 1);
    assert_eq!(unregister(&mut guest, BASE, 32, 2), 0);
}

#[test]
fn the_vmm_is_asked_and_nothing_has_happened_by_then() {
    let mut guest = Guest {
        vmm_serves: true,
        ..Guest::default()
    };
    for command in [Command::Register, Command::Unregister] {
        guest.steps.clear();
        let area = Area {
            range: Range::new(BASE, 4096).expect("a range"),
            kind: VMM,
        };
        assert_eq!(command.run(DESC, &mut guest), Outcome::Ask(Some(area)));
        assert_eq!(guest.steps, [Step::Read(DESC)]);
    }
}

#[test]
fn an_area_can_be_unregistered_when_its_memory_is_gone() {
    let mut guest = Guest {
        vmm_serves: true,
        ..Guest::default()
    };
    guest.msrs.insert(STEAL_TIME, BASE | 1);
    guest.holes.push(BASE..BASE + 4096);
    assert_eq!(unregister(&mut guest, BASE, 64, 3), 0);
    guest.steps.clear();
    guest.desc = descriptor(BASE, 4096, VMM);
    assert!(matches!(
        Command::Unregister.run(DESC, &mut guest),
        Outcome::Ask(Some(_))
    ));
}

#[test]
fn the_vmm_answers() {
    let answered = |desc, error, result| Answered {
        desc,
        error,
        result,
    };
    let mut guest = Guest::default();
    for result in [0, 1, 0x80, 0xfe, 0xff] {
        guest.steps.clear();
        let outcome = answered(Some(DESC), false, result).complete(&mut guest);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(guest.steps, [Step::Result(DESC, result)]);
    }
    guest.steps.clear();
    assert_eq!(
        answered(Some(DESC), true, 0).complete(&mut guest),
        Outcome::Fault
    );
    assert_eq!(guest.steps, []);
    guest.result_fails = true;
    assert_eq!(
        answered(Some(DESC), false, 0).complete(&mut guest),
        Outcome::Fault
    );
    // A descriptor at address 0 is one like any other.
    guest.result_fails = false;
    guest.steps.clear();
    assert_eq!(
        answered(Some(0), false, 0).complete(&mut guest),
        Outcome::Done
    );
    assert_eq!(guest.steps, [Step::Result(0, 0)]);
}

#[test]
fn all_areas_are_taken_back() {
    let registered = |vmm_serves| {
        let mut guest = Guest {
            vmm_serves,
            ..Guest::default()
        };
        for msr in [WALL_CLOCK, SYSTEM_TIME, STEAL_TIME] {
            guest.msrs.insert(msr, BASE | 1);
        }
        guest
    };
    let is_clear = |guest: &Guest| guest.msrs.values().all(|value| *value == 0);

    let mut guest = registered(false);
    assert_eq!(Command::Unregister.run(0, &mut guest), Outcome::Done);
    assert!(is_clear(&guest));
    // Nothing is left to do the next time.
    guest.steps.clear();
    assert_eq!(Command::Unregister.run(0, &mut guest), Outcome::Done);
    assert_eq!(guest.steps, []);

    for error in [false, true] {
        let mut guest = registered(true);
        assert_eq!(Command::Unregister.run(0, &mut guest), Outcome::Ask(None));
        assert_eq!(guest.steps, []);
        let answered = Answered {
            desc: None,
            error,
            result: 1,
        };
        let outcome = answered.complete(&mut guest);
        assert_eq!(outcome == Outcome::Fault, error);
        assert!(is_clear(&guest));
    }

    // What cannot be taken back gives #GP, after all that can.
    let mut guest = registered(false);
    guest.filter.push(WALL_CLOCK);
    guest.msrs.remove(&SYSTEM_TIME);
    assert_eq!(Command::Unregister.run(0, &mut guest), Outcome::Fault);
    assert_eq!(guest.msrs[&STEAL_TIME], 0);
}

#[test]
fn no_descriptor_gives_gp() {
    let mut guest = Guest::default();
    guest.holes.push(0x3_0000..0x3_1000);
    for desc in [
        0,
        1,
        DESC + 8,
        DESC + 24,
        0x3_0000,
        u64::MAX,
        u64::MAX - 31,
        1 << 63,
    ] {
        for command in [Command::Register, Command::Unregister] {
            if (command, desc) == (Command::Unregister, 0) {
                continue;
            }
            guest.steps.clear();
            assert_eq!(command.run(desc, &mut guest), Outcome::Fault);
            assert_eq!(guest.steps, [Step::Read(desc)]);
        }
    }
}

#[test]
fn a_result_that_cannot_be_written_gives_gp() {
    let mut guest = Guest {
        desc: descriptor(BASE, 12, 1),
        result_fails: true,
        ..Guest::default()
    };
    assert_eq!(Command::Register.run(DESC, &mut guest), Outcome::Fault);
}
