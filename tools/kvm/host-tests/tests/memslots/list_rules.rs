// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The rules for a list: which entry is refused, and the net changes that the entries add up to.

use kvm_memory_host_tests::memslots::check::{
    Error::*,
    NetKind, Origin, Refused,
    Relog::{self, *},
};
use kvm_memory_host_tests::memslots::types::{Change::*, Entry, Mapping, SlotFlags, SlotId};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};

use crate::fixture::{delete, region, vm, HVA, SINGLE, SMM};
use crate::judge::compare;
use crate::oracle::{Rules, Vm, LOG, READONLY};

#[test]
fn an_empty_list_does_nothing() {
    let verdict = compare(&mut vm(), &[], Origin::List).expect("a list without faults");
    assert!(verdict.changes.is_empty() && verdict.net.is_empty());
}

#[test]
fn the_first_failing_entry_counts() {
    let collides = region(3, 8, 4, 0);
    let faulty = region(3, 100, 4, 1 << 31);
    for (entries, index, error) in [
        (vec![collides, faulty], 0, Exists),
        (vec![faulty, collides], 0, Invalid),
        (vec![delete(1), delete(1), collides], 1, Invalid),
        (vec![delete(1), collides, delete(0)], 1, Exists),
        (vec![delete(0), collides, delete(9)], 2, Invalid),
        (vec![delete(0), collides, region(0, 11, 1, LOG)], 2, Exists),
        (
            vec![region(0, 50, 4, LOG), collides, region(0, 10, 4, LOG)],
            2,
            Exists,
        ),
        (vec![region(0, 50, 4, LOG), region(3, 51, 1, 0)], 1, Exists),
        (vec![region(0, 10, 4, 0), region(3, 12, 1, 0)], 1, Exists),
        (
            vec![
                region(3, 50, 4, 0),
                delete(3),
                region(3, 52, 9, 0),
                region(4, 60, 1, 0),
            ],
            3,
            Exists,
        ),
    ] {
        let found = compare(&mut vm(), &entries, Origin::List).map(|_| ());
        assert_eq!(found, Err(Refused { index, error }), "{entries:x?}");
    }
}

/// After a scan has skipped deleted slots, the next one must not skip slots that still exist.
#[test]
fn slots_after_deleted_ones() {
    let mut vm = Vm::new(Rules::X86);
    for slot in 0..4 {
        let entry = region(slot, 10 + u64::from(slot), 1, 0);
        assert_eq!(vm.set(&entry, SINGLE), Ok(Create));
    }
    for (gone, free) in [
        (0..1, 10..11),
        (0..2, 10..12),
        (0..2, 9..12),
        (1..3, 11..13),
    ] {
        let new = |start, end| region(9, start, end - start, 0);
        let scan = [new(free.start, free.end), delete(9)];
        let list: Vec<_> = gone.map(delete).chain(scan).chain(scan).collect();
        let index = list.len();
        for (start, end, error) in [
            (free.start, free.end, None),
            (free.start, free.end + 1, Some(Exists)),
            (free.end - 1, free.end + 1, Some(Exists)),
            (free.start, 20, Some(Exists)),
            (0, free.end + 1, Some(Exists)),
        ] {
            let entries = [&list[..], &[new(start, end)]].concat();
            let found = compare(&mut vm.clone(), &entries, Origin::List).err();
            let expected = error.map(|error| Refused { index, error });
            assert_eq!(found, expected, "{free:?}, then {start}..{end}");
        }
    }
}

fn mapping(gfn: u64, pages: u64, flags: u32) -> Mapping {
    Mapping {
        gfns: GfnRange {
            start: Gfn(gfn),
            end: Gfn(gfn + pages),
        },
        hva: Hva(HVA),
        flags: SlotFlags(flags),
    }
}

fn flags_only(flags: u32, relog: Relog) -> Option<NetKind> {
    Some(NetKind::FlagsOnly(mapping(10, 4, flags), relog))
}

fn moved(gfn: u64, flags: u32, relog: Relog) -> Option<NetKind> {
    Some(NetKind::Move(mapping(gfn, 4, flags), relog))
}

/// Lists of entries on one slot, and the one net change that they add up to.
#[test]
fn net_changes() {
    let (on, off) = (region(0, 10, 4, LOG), region(0, 10, 4, 0));
    let (away, away_off) = (region(0, 50, 4, LOG), region(0, 50, 4, 0));
    let created = |slot| Some(NetKind::Create(mapping(50, 4, slot)));
    let replaced = |gfn, pages, flags| Some(NetKind::Replace(mapping(gfn, pages, flags)));
    let new = region(3, 50, 4, 0);
    let new_on = region(3, 50, 4, LOG);

    // Slot 0 exists, at frame 10, and logs.
    for (entries, expected) in [
        (vec![on], None),
        (vec![on, on], None),
        (vec![off], flags_only(0, No)),
        (vec![off, off], flags_only(0, No)),
        (vec![off, on], flags_only(LOG, Yes)),
        (vec![on, off, on, on], flags_only(LOG, Yes)),
        (vec![off, on, off], flags_only(0, No)),
        (vec![away], moved(50, LOG, No)),
        (vec![away, on], None),
        (vec![away, off], flags_only(0, No)),
        (vec![away_off], moved(50, 0, No)),
        (vec![away_off, away], moved(50, LOG, Yes)),
        (vec![away_off, on], flags_only(LOG, Yes)),
        (vec![off, away], moved(50, LOG, Yes)),
        (vec![away, region(0, 60, 4, LOG)], moved(60, LOG, No)),
        (vec![delete(0)], Some(NetKind::Delete)),
        (vec![away, delete(0)], Some(NetKind::Delete)),
        (vec![delete(0), on, delete(0)], Some(NetKind::Delete)),
        (vec![delete(0), on], replaced(10, 4, LOG)),
        (vec![delete(0), on, off], replaced(10, 4, 0)),
        (vec![delete(0), off, on], replaced(10, 4, LOG)),
        (vec![delete(0), away, on], replaced(10, 4, LOG)),
        (
            vec![away, delete(0), region(0, 1, 2, READONLY)],
            replaced(1, 2, READONLY),
        ),
    ] {
        expect_net(0, &entries, expected);
    }
    // Slot 3 does not exist.
    for (entries, expected) in [
        (vec![new], created(0)),
        (vec![new, new_on], created(LOG)),
        (vec![new_on, new, new_on], created(LOG)),
        (vec![region(3, 70, 4, LOG), new_on], created(LOG)),
        (vec![new, delete(3)], None),
        (vec![new, delete(3), new_on], created(LOG)),
        (vec![region(3, 70, 9, READONLY), delete(3), new], created(0)),
    ] {
        expect_net(3, &entries, expected);
    }
    // Slot 0 of SMM does not log.
    let smm = |flags| region(SMM, 10, 4, flags);
    expect_net(SMM, &[smm(LOG)], flags_only(LOG, No));
    expect_net(SMM, &[smm(LOG), smm(0)], None);
}

#[track_caller]
fn expect_net(slot: u32, entries: &[Entry], expected: Option<NetKind>) {
    let verdict = compare(&mut vm(), entries, Origin::List).expect("a list without faults");
    let found: Vec<_> = verdict.net.iter().map(|net| (net.slot, net.kind)).collect();
    let expected: Vec<_> = expected
        .into_iter()
        .map(|kind| (SlotId::from_uapi(slot), kind))
        .collect();
    assert_eq!(found, expected, "{entries:x?}");
}

#[test]
fn net_changes_are_in_the_order_of_slots() {
    let entries = [
        region(SMM, 50, 4, 0),
        region(5, 80, 4, 0),
        delete(1),
        region(5, 90, 4, 0),
        region(0, 10, 4, LOG),
        region(4, 20, 4, 0),
    ];
    let verdict = compare(&mut vm(), &entries, Origin::List).expect("a list without faults");
    let slots: Vec<_> = verdict.net.iter().map(|net| net.slot).collect();
    assert_eq!(slots, [1, 4, 5, SMM].map(SlotId::from_uapi));
    assert_eq!(
        verdict.changes,
        [Move, Create, Delete, Move, Nothing, Create]
    );
}
