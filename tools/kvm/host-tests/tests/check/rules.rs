// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The rules one by one: what each kind of entry does, what it is refused for, and what lists come to.

use kvm_memory_host_tests::memslots::check::{
    Error::{self, *},
    NetKind, Origin, Refused,
    Relog::{self, *},
};
use kvm_memory_host_tests::memslots::types::{
    Change::{self, *},
    Entry, Mapping, SlotFlags, SlotId,
};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};

use crate::vm::{compare, Rules, Vm, LOG, MEMFD, PAGE, READONLY, USER_END};

const SINGLE: Origin = Origin::Single {
    guest_memfd_offset: 0,
};
const HVA: u64 = 1 << 32;
const GPA_END: u64 = Rules::X86.gpa_end as u64;
const MAX_PAGES: u64 = Rules::X86.max_user_pages;
/// The first slot that is not for users, and the first that is for nobody.
const INTERNAL: u32 = Rules::X86.user_slots;
const BEYOND: u32 = Rules::X86.slots;
const SMM: u32 = 1 << 16;

fn region(slot: u32, gfn: u64, pages: u64, flags: u32) -> Entry {
    Entry {
        slot,
        flags,
        guest_phys_addr: gfn * PAGE,
        memory_size: pages * PAGE,
        userspace_addr: HVA,
        ..Entry::default()
    }
}

fn delete(slot: u32) -> Entry {
    region(slot, 0, 0, 0)
}

fn invalidate(entry: Entry) -> Entry {
    Entry {
        invalidate_slot: 1,
        ..entry
    }
}

/// Slots 0 (logged), 1 (read-only), 2 (on a guest_memfd), one of SMM, and one of KVM's own.
fn vm() -> Vm {
    let mut vm = Vm::new(Rules::X86);
    for slot in [
        region(0, 10, 4, LOG),
        region(1, 20, 4, READONLY),
        region(2, 30, 4, MEMFD),
        region(SMM, 10, 4, 0),
        region(INTERNAL, 40, 4, 0),
    ] {
        assert_eq!(vm.set(&slot, SINGLE), Ok(Create));
    }
    vm
}

#[track_caller]
fn expect(vm: &Vm, entry: Entry, origin: Origin, expected: Result<Change, Error>) {
    let found = compare(&mut vm.clone(), &[entry], origin);
    let found = found.map(|verdict| verdict.changes[0]);
    let expected = expected.map_err(|error| Refused { index: 0, error });
    assert_eq!(found, expected, "{entry:x?} from {origin:?}");
}

/// What is the same for a list and a single update.
#[track_caller]
fn expect_both(entry: Entry, expected: Result<Change, Error>) {
    expect(&vm(), entry, Origin::List, expected);
    expect(&vm(), entry, SINGLE, expected);
}

#[test]
fn changes() {
    for (entry, change) in [
        (region(3, 0, 10, LOG), Create),
        (region(3, 14, 6, READONLY | LOG), Create),
        (region(SMM | 1, 20, 4, 0), Create), // frames of another address space
        (region(0, 10, 4, LOG), Nothing),
        (region(0, 10, 4, 0), FlagsOnly),
        (region(1, 20, 4, READONLY | LOG), FlagsOnly),
        (region(0, 5, 4, LOG), Move),
        (region(0, 14, 4, 0), Move),
        (region(0, 9, 4, LOG), Move), // over itself
        (region(0, 13, 4, LOG), Move),
        (delete(0), Delete),
        (delete(2), Delete),
        (delete(SMM), Delete),
    ] {
        expect_both(entry, Ok(change));
        let expected = match change {
            Delete | Move => Ok(change),
            _ => Err(Invalid),
        };
        expect_both(invalidate(entry), expected);
    }
}

#[test]
fn overlaps() {
    for (gfn, pages) in [
        (20, 4),
        (19, 2),
        (23, 1),
        (23, 9),
        (21, 2),
        (15, 20),
        (0, 60),
    ] {
        expect_both(region(3, gfn, pages, 0), Err(Exists));
    }
    expect_both(region(0, 17, 4, LOG), Err(Exists));
    expect_both(region(0, 23, 4, LOG), Err(Exists));
    expect_both(region(3, 43, 2, 0), Err(Exists)); // KVM's own slot
                                                   // The wrong picture of the slots comes before the collision, the architecture after.
    expect_both(invalidate(region(3, 20, 4, 0)), Err(Invalid));
    let mut vm = vm();
    vm.rules.gpa_end = 35 << 12;
    expect(&vm, region(3, 33, 4, 0), Origin::List, Err(Exists));
    expect(&vm, region(3, 34, 2, 0), Origin::List, Err(Invalid));
    expect(&vm, region(3, 34, 1, 0), Origin::List, Ok(Create));
}

#[test]
fn what_an_existing_slot_keeps() {
    for entry in [
        region(0, 10, 3, LOG),
        region(0, 10, 5, LOG),
        region(0, 5, 5, LOG),
        region(0, 10, 4, LOG | READONLY),
        region(1, 20, 4, 0),
        region(2, 30, 4, 0),
        region(2, 30, 4, MEMFD),
        region(2, 34, 4, MEMFD),
        region(0, 10, 4, MEMFD),
        Entry {
            userspace_addr: HVA + PAGE,
            ..region(0, 10, 4, LOG)
        },
        delete(3),
        delete(SMM | 1),
    ] {
        expect_both(entry, Err(Invalid));
    }
}

#[test]
fn arguments() {
    let good = region(3, 100, 4, 0);
    for bit in 0..32 {
        let expected = match 1 << bit {
            LOG | READONLY => Ok(Create),
            _ => Err(Invalid),
        };
        let entry = Entry {
            flags: 1 << bit,
            ..good
        };
        expect(&vm(), entry, Origin::List, expected);
    }
    for i in 0..31 {
        let mut entry = good;
        entry.padding[i] = 0x80;
        expect_both(entry, Err(Invalid));
    }
    for value in 2..=255 {
        let mut entry = delete(0);
        entry.invalidate_slot = value;
        expect_both(entry, Err(Invalid));
    }

    type Field = fn(&mut Entry) -> &mut u64;
    let size: Field = |entry| &mut entry.memory_size;
    let gpa: Field = |entry| &mut entry.guest_phys_addr;
    let hva: Field = |entry| &mut entry.userspace_addr;
    for (field, value, expected) in [
        (size, 4 * PAGE + 1, Err(Invalid)),
        (size, 1, Err(Invalid)),
        (size, MAX_PAGES * PAGE, Ok(Create)),
        (size, (MAX_PAGES + 1) * PAGE, Err(Invalid)),
        (size, 1 << 63, Err(Invalid)),
        (size, PAGE.wrapping_neg(), Err(Invalid)),
        (gpa, 100 * PAGE + 0x800, Err(Invalid)),
        (gpa, GPA_END - 4 * PAGE, Ok(Create)),
        (gpa, GPA_END - 3 * PAGE, Err(Invalid)),
        (gpa, (4 * PAGE).wrapping_neg(), Err(Invalid)),
        (hva, HVA + 8, Err(Invalid)),
        (hva, 0, Ok(Create)),
        (hva, USER_END - 4 * PAGE, Ok(Create)),
        (hva, USER_END - 3 * PAGE, Err(Invalid)),
        (hva, PAGE.wrapping_neg(), Err(Invalid)),
    ] {
        let mut entry = good;
        *field(&mut entry) = value;
        expect_both(entry, expected);
    }
    // A deletion's arguments are looked at as well, as far as they go.
    for (entry, expected) in [
        (region(0, 77, 0, LOG), Ok(Delete)),
        (region(0, 77, 0, 8), Err(Invalid)),
        (
            Entry {
                guest_phys_addr: 1,
                ..delete(0)
            },
            Err(Invalid),
        ),
        (
            Entry {
                userspace_addr: 1,
                ..delete(0)
            },
            Err(Invalid),
        ),
        (
            Entry {
                userspace_addr: 1 << 60,
                ..delete(0)
            },
            Err(Invalid),
        ),
    ] {
        expect_both(entry, expected);
    }

    // The last frame there is ends where 64 bits do: too far for upstream.
    let mut vm = vm();
    vm.rules.gpa_end = u128::MAX;
    let last = (4 * PAGE).wrapping_neg();
    for (gpa, expected) in [(last, Err(Invalid)), (last - PAGE, Ok(Create))] {
        let entry = Entry {
            guest_phys_addr: gpa,
            ..good
        };
        expect(&vm, entry, Origin::List, expected);
    }
}

#[test]
fn slot_numbers() {
    for (slot, list, single) in [
        (INTERNAL - 1, Ok(Create), Ok(Create)),
        (SMM | (INTERNAL - 1), Ok(Create), Ok(Create)),
        (INTERNAL + 1, Err(Invalid), Ok(Create)),
        (BEYOND - 1, Err(Invalid), Ok(Create)),
        (BEYOND, Err(Invalid), Err(Invalid)),
        (0xffff, Err(Invalid), Err(Invalid)),
        ((2 << 16) | 3, Err(Invalid), Err(Invalid)),
        ((1 << 24) | 3, Err(Invalid), Err(Invalid)),
        ((1 << 31) | 3, Err(Invalid), Err(Invalid)),
        (u32::MAX, Err(Invalid), Err(Invalid)),
    ] {
        expect(&vm(), region(slot, 100, 4, 0), Origin::List, list);
        expect(&vm(), region(slot, 100, 4, 0), SINGLE, single);
    }
    // KVM's own slots are exempt from the limit on size.
    let large = region(BEYOND - 1, 100, MAX_PAGES + 1, 0);
    expect(&vm(), large, SINGLE, Ok(Create));
    expect(&vm(), delete(INTERNAL), SINGLE, Ok(Delete));
    expect(&vm(), delete(INTERNAL), Origin::List, Err(Invalid));
}

#[test]
fn flags_of_the_vm() {
    let mut vm = vm();
    vm.rules.readonly_mem = false;
    vm.rules.guest_memfd = false;
    for flags in [READONLY, READONLY | LOG, MEMFD] {
        expect(&vm, region(3, 100, 4, flags), SINGLE, Err(Invalid));
    }
    expect(&vm, region(3, 100, 4, LOG), SINGLE, Ok(Create));
}

#[test]
fn guest_memfd() {
    let entry = |flags| region(3, 100, 4, MEMFD | flags);
    expect(&vm(), entry(0), Origin::List, Err(Invalid));
    expect(&vm(), entry(LOG), SINGLE, Err(Invalid));
    expect(&vm(), entry(READONLY), SINGLE, Err(Invalid));
    let at_end = (4 * PAGE).wrapping_neg();
    for (guest_memfd_offset, expected) in [
        (0, Ok(Create)),
        (7 * PAGE, Ok(Create)),
        (7 * PAGE + 1, Err(Invalid)),
        (at_end - PAGE, Ok(Create)),
        (at_end, Err(Invalid)),
        (at_end + PAGE, Err(Invalid)),
    ] {
        let origin = Origin::Single { guest_memfd_offset };
        expect(&vm(), entry(0), origin, expected);
        expect(&vm(), region(3, 100, 4, 0), origin, Ok(Create));
    }
    // The file is looked at before the architecture is asked.
    let beyond = region(3, GPA_END / PAGE, 4, MEMFD);
    expect(&vm(), beyond, SINGLE, Ok(Create));
    expect(&vm(), region(3, 8, 4, MEMFD), SINGLE, Err(Exists));
}

#[test]
fn the_number_of_pages() {
    let mut vm = vm();
    vm.pages = u64::MAX - 4;
    let create = region(3, 100, 4, 0);
    expect(&vm, create, Origin::List, Ok(Create));
    vm.pages += 1;
    expect(&vm, create, Origin::List, Err(Invalid));
    // It fits again once another is deleted, not before; and moves do not count.
    let ok = |entries: &[Entry]| compare(&mut vm.clone(), entries, Origin::List).is_ok();
    assert!(ok(&[delete(0), create]));
    assert!(!ok(&[create, delete(0)]));
    assert!(ok(&[region(0, 200, 4, LOG), delete(1), create]));
    assert!(!ok(&[delete(0), create, region(4, 200, 4, 0)]));

    vm.pages = 3;
    expect(&vm, delete(0), Origin::List, Err(Corrupt));
    vm.pages = 4;
    expect(&vm, delete(0), Origin::List, Ok(Delete));
}

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

/// What one entry found to be gone must not make the next pass over a slot that is still there.
#[test]
fn slots_behind_those_that_are_gone() {
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

/// Lists of entries on one slot, and the one change that they come to.
#[test]
fn net_changes() {
    let (on, off) = (region(0, 10, 4, LOG), region(0, 10, 4, 0));
    let (away, away_off) = (region(0, 50, 4, LOG), region(0, 50, 4, 0));
    let created = |slot| Some(NetKind::Create(mapping(50, 4, slot)));
    let replaced = |gfn, pages, flags| Some(NetKind::Replace(mapping(gfn, pages, flags)));
    let new = region(3, 50, 4, 0);
    let new_on = region(3, 50, 4, LOG);

    // Slot 0 is there, at frame 10, and logs.
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
    // Slot 3 is not there.
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

#[test]
fn ranges() {
    let range = |start, end| GfnRange {
        start: Gfn(start),
        end: Gfn(end),
    };
    assert_eq!(GfnRange::new(Gfn(3), 4), Some(range(3, 7)));
    assert_eq!(
        GfnRange::new(Gfn(u64::MAX), 0),
        Some(range(u64::MAX, u64::MAX))
    );
    assert_eq!(GfnRange::new(Gfn(u64::MAX), 1), None);
    assert_eq!(range(3, 7).intersection(range(5, 9)), Some(range(5, 7)));
    assert_eq!(range(3, 7).intersection(range(4, 5)), Some(range(4, 5)));
    assert_eq!(range(3, 7).intersection(range(7, 9)), None);
    assert_eq!(range(7, 9).intersection(range(3, 7)), None);
    assert_eq!(range(3, 7).intersection(range(5, 5)), None);
}
