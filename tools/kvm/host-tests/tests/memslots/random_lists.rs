// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Random lists for random VMs: `check` and the oracle must agree.
//!
//! A list is made from [`Op`]s. Each becomes an entry that takes earlier entries into account, so that most
//! entries are about a slot that exists, and proptest can still shrink the list.

use std::ops::Range;

use kvm_memory_host_tests::memslots::check::{Error, Origin};
use kvm_memory_host_tests::memslots::types::Entry;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture::{region, SINGLE};
use crate::judge::compare;
use crate::oracle::{Log, Rules, Vm, LOG, MEMFD, PAGE, READONLY, USER_END};

/// The size of the VM and its lists. In a small VM slots overlap more often.
#[derive(Clone, Debug)]
struct World {
    ids: u32,
    gfns: u64,
    max_pages: u64,
    history: Range<usize>,
    entries: Range<usize>,
    /// One in this many entries has a fault.
    fault_every: u32,
    /// Only the last entry may be refused, and the rules are those of x86.
    calm: bool,
}

const CROWDED: World = World {
    ids: 7,
    gfns: 20,
    max_pages: 5,
    history: 0..25,
    entries: 1..41,
    fault_every: 40,
    calm: false,
};

/// Enough entries for two levels of a `RankSet`.
const WIDE: World = World {
    ids: 60,
    gfns: 500,
    max_pages: 8,
    history: 0..300,
    entries: 200..900,
    fault_every: 2000,
    calm: true,
};

/// Enough entries for three levels.
const DEEP: World = World {
    ids: 900,
    gfns: 12_000,
    max_pages: 9,
    history: 0..3000,
    entries: 8000..10_000,
    fault_every: 100_000,
    calm: true,
};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Create,
    Delete,
    Move,
    Flags,
    Same,
    Resize,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Padding(usize),
    Memfd(u32),
    Offset(u64),
    Bits,
    Invalidate(u8),
    Flag(u32),
    Slot(u32),
    Gpa(u64),
    Size(u64),
    Hva(u64),
}

#[derive(Clone, Copy, Debug)]
struct Op {
    kind: Kind,
    /// Selects an existing slot, or is the id of a new one.
    pick: u32,
    space: u32,
    gfn: u64,
    pages: u64,
    flags: u32,
    /// Whether a deletion or move sets invalidate_slot.
    says: bool,
    /// File and page of the guest_memfd of a new slot.
    memfd: Option<(u32, u64)>,
    /// Where the deletion of a slot that logs puts the last bits, or 0.
    last_log: u64,
    fault: Option<Fault>,
}

/// Values near the limits.
fn edges(rules: Rules) -> impl Strategy<Value = u64> {
    let places = vec![
        0,
        1 << 32,
        rules.max_user_pages * PAGE,
        rules.gpa_end as u64,
        USER_END,
        1 << 63,
        u64::MAX - PAGE + 1,
    ];
    let offsets = prop_oneof![(-9..9i64).prop_map(|n| n * PAGE as i64), -2..3i64];
    (prop::sample::select(places), offsets).prop_map(|(at, by)| at.wrapping_add_signed(by))
}

fn faults(rules: Rules) -> impl Strategy<Value = Fault> {
    let slots = [rules.user_slots - 1, rules.user_slots, rules.slots, 0xffff];
    let slots = slots.map(|id| [0, 1, 2, 0xffff].map(|space| (space << 16) | id));
    prop_oneof![
        (0..11usize).prop_map(Fault::Padding),
        (0..5u32).prop_map(Fault::Memfd),
        edges(rules).prop_map(Fault::Offset),
        Just(Fault::Bits),
        any::<u8>().prop_map(Fault::Invalidate),
        (0..32u32).prop_map(|bit| Fault::Flag(1 << bit)),
        prop::sample::select(slots.concat()).prop_map(Fault::Slot),
        edges(rules).prop_map(Fault::Gpa),
        edges(rules).prop_map(Fault::Size),
        edges(rules).prop_map(Fault::Hva),
    ]
}

fn ops(rules: Rules, world: &World) -> impl Strategy<Value = Op> {
    use Kind::*;

    let kind = prop::sample::select(vec![
        Create, Create, Create, Create, Delete, Delete, Move, Move, Flags, Flags, Same, Resize,
    ]);
    (
        kind,
        0..world.ids,
        prop_oneof![4 => Just(0), 1 => Just(1u32)],
        0..world.gfns,
        prop_oneof![1..=2u64, 1..=world.max_pages],
        prop::sample::select(vec![0, 0, LOG, LOG, READONLY, READONLY | LOG]),
        any::<bool>(),
        // The pages of a file are few, so that slots collide there.
        proptest::option::weighted(0.2, (0..rules.memfds, 0..12u64)),
        prop_oneof![Just(0), any::<u64>()],
        proptest::option::weighted(1.0 / f64::from(world.fault_every), faults(rules)),
    )
        .prop_map(
            |(kind, pick, space, gfn, pages, flags, says, memfd, last_log, fault)| Op {
                kind,
                pick,
                space,
                gfn,
                pages,
                flags,
                says,
                memfd,
                last_log,
                fault,
            },
        )
}

/// The entry that `op` becomes for `vm`.
fn entry(op: &Op, vm: &Vm) -> Entry {
    // Few user addresses, so that slots can have the same.
    let mut entry = Entry {
        slot: (op.space << 16) | op.pick,
        flags: op.flags,
        guest_phys_addr: op.gfn * PAGE,
        memory_size: op.pages * PAGE,
        userspace_addr: (1 << 32) + op.gfn % 3 * PAGE,
        ..Entry::default()
    };
    if let Some((fd, page)) = op.memfd {
        entry.flags = MEMFD;
        entry.guest_memfd = fd;
        entry.guest_memfd_offset = page * PAGE;
    }
    let there = vm.slots.range(entry.slot..).next();
    if let Some((&key, slot)) = there.or(vm.slots.iter().next()) {
        let same = Entry {
            slot: key,
            flags: slot.flags,
            guest_phys_addr: slot.gpa,
            memory_size: slot.size,
            userspace_addr: slot.hva,
            ..Entry::default()
        };
        match op.kind {
            Kind::Create => {}
            Kind::Delete => {
                entry.slot = key;
                entry.memory_size = 0;
                entry.invalidate_slot = op.says.into();
                if slot.log != Log::Off {
                    entry.dirty_bitmap = op.last_log;
                }
            }
            Kind::Move => {
                entry = Entry {
                    guest_phys_addr: op.gfn * PAGE,
                    flags: slot.flags ^ (op.flags & LOG),
                    invalidate_slot: op.says.into(),
                    ..same
                };
            }
            Kind::Flags => {
                entry = Entry {
                    flags: slot.flags ^ LOG,
                    ..same
                };
            }
            Kind::Same => entry = same,
            Kind::Resize => {
                entry = Entry {
                    memory_size: op.pages * PAGE,
                    ..same
                };
            }
        }
    }
    match op.fault {
        None => {}
        Some(Fault::Padding(i)) => {
            if let Some(byte) = entry.pad1.iter_mut().chain(&mut entry.pad2).nth(i) {
                *byte = 1;
            }
        }
        Some(Fault::Memfd(fd)) => entry.guest_memfd = fd,
        Some(Fault::Offset(value)) => entry.guest_memfd_offset = value,
        Some(Fault::Bits) => entry.dirty_bitmap = 1,
        Some(Fault::Invalidate(value)) => entry.invalidate_slot = value,
        Some(Fault::Flag(flag)) => entry.flags ^= flag,
        Some(Fault::Slot(slot)) => entry.slot = slot,
        Some(Fault::Gpa(value)) => entry.guest_phys_addr = value,
        Some(Fault::Size(value)) => entry.memory_size = value,
        Some(Fault::Hva(value)) => entry.userspace_addr = value,
    }
    entry
}

/// Makes a list of `ops`. If `careful`, leaves out entries that would be refused, except the last.
fn list(vm: &Vm, ops: &[Op], careful: bool) -> Vec<Entry> {
    let mut vm = vm.clone();
    let mut entries = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let entry = entry(op, &vm);
        if vm.set(&entry, Origin::List).is_ok() || !careful || i + 1 == ops.len() {
            entries.push(entry);
        }
    }
    entries
}

fn rules(world: &World) -> BoxedStrategy<Rules> {
    let user_slots = world.ids;
    let slots = user_slots + 2;
    if world.calm {
        return Just(Rules {
            slots,
            user_slots,
            ..Rules::X86
        })
        .boxed();
    }
    (
        prop::sample::select(vec![1, 2, 2, 2]),
        prop::sample::select(vec![7, 1 << 20, (1 << 31) - 1, u64::MAX >> 12]),
        (prop::bool::weighted(0.8), any::<bool>()),
        prop::sample::select(vec![15 << 12, 1 << 48, u128::MAX]),
        prop::bool::weighted(0.9),
    )
        .prop_map(
            move |(
                address_spaces,
                max_user_pages,
                (readonly_mem, guest_memfd),
                gpa_end,
                can_move,
            )| {
                Rules {
                    address_spaces,
                    slots,
                    user_slots,
                    max_user_pages,
                    readonly_mem,
                    guest_memfd,
                    gpa_end,
                    can_move,
                    ..Rules::X86
                }
            },
        )
        .boxed()
}

/// A VM with earlier updates, and a list for it.
fn cases(world: World) -> impl Strategy<Value = (Vm, Vec<Entry>)> {
    rules(&world).prop_flat_map(move |rules| {
        // A list cannot create internal slots.
        let past = World {
            ids: world.ids + 2,
            fault_every: 1000,
            ..world.clone()
        };
        (
            vec(ops(rules, &past), world.history.clone()),
            vec(ops(rules, &world), world.entries.clone()),
            prop::bool::weighted(if world.calm { 1.0 } else { 0.7 }),
            prop_oneof![8 => Just(None), 2 => (0..9u64).prop_map(Some), 1 => (0..30u64).prop_map(|n| Some(u64::MAX - n))],
        )
            .prop_map(move |(past, ops, careful, pages)| {
                let mut vm = Vm::new(rules);
                for op in &past {
                    // A refusal does not matter.
                    let _ = vm.set(&entry(op, &vm), SINGLE);
                }
                vm.settle();
                // Sometimes the count is wrong, or about to overflow.
                vm.pages = pages.unwrap_or(vm.pages);
                let entries = list(&vm, &ops, careful);
                (vm, entries)
            })
    })
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_list_is_its_entries_one_by_one((mut vm, entries) in cases(CROWDED)) {
        let _ = compare(&mut vm, &entries, Origin::List);
    }

    #[test]
    fn single_updates_follow_upstream(
        (mut vm, entries) in cases(CROWDED),
        memfd in vec(prop_oneof![6 => Just(None), 1 => edges(Rules::X86).prop_map(Some)], 40),
    ) {
        for (mut entry, offset) in entries.into_iter().zip(memfd) {
            if let Some(offset) = offset {
                entry.flags |= MEMFD;
                entry.guest_memfd_offset = offset;
            }
            let _ = compare(&mut vm, &[entry], SINGLE);
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn hundreds_of_entries((mut vm, entries) in cases(WIDE)) {
        assert!(entries.len() > 64);
        let _ = compare(&mut vm, &entries, Origin::List);
    }
}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn thousands_of_entries((mut vm, entries) in cases(DEEP)) {
        assert!(entries.len() > 64 * 64);
        let _ = compare(&mut vm, &entries, Origin::List);
    }
}

/// Frames of a cell. Large slots start at cells.
const CELL: u64 = 256;
const CELLS: u64 = 64;

/// Lists whose overlapping slots are far apart in the gfn order of all entries: `dead` small slots, each of
/// which is deleted right after its creation, lie in between.
fn far_neighbours(dead: Range<usize>) -> impl Strategy<Value = Vec<Entry>> {
    let region = |slot, gfn, pages| region(slot, gfn, pages, 0);
    (
        vec((0..CELL * CELLS, 0..CELL * CELLS), dead),
        vec((0..CELLS, 1..=4 * CELL, any::<bool>()), 1..80),
        vec((0..CELL * CELLS, 1..9u64), 1..30),
    )
        .prop_map(move |(dead, large, probes)| {
            // Deletions have a place in the order too.
            let mut entries: Vec<_> = dead
                .into_iter()
                .flat_map(|(from, to)| [region(100, from, 1), region(100, to, 0)])
                .collect();
            let mut vm = Vm::new(Rules::X86);
            for (cell, pages, keep) in large {
                let mut entry = region(cell as u32, cell * CELL, pages);
                if !keep && vm.slots.contains_key(&entry.slot) {
                    entry.memory_size = 0;
                }
                if vm.set(&entry, Origin::List).is_ok() {
                    entries.push(entry);
                }
            }
            for (gfn, pages) in probes {
                entries.push(region(100, gfn, pages));
                if vm
                    .clone()
                    .set(&region(100, gfn, pages), Origin::List)
                    .is_err()
                {
                    break;
                }
                entries.push(region(100, gfn, 0));
            }
            entries
        })
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn neighbours_two_levels_apart(entries in far_neighbours(200..1500)) {
        let _ = compare(&mut Vm::new(Rules::X86), &entries, Origin::List);
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn neighbours_three_levels_apart(entries in far_neighbours(2500..5000)) {
        let _ = compare(&mut Vm::new(Rules::X86), &entries, Origin::List);
    }
}

/// The tests above are only as good as their lists: every result must occur often.
#[test]
fn lists_are_interesting() {
    let mut runner = TestRunner::deterministic();
    let strategy = cases(CROWDED);
    let (mut accepted, mut large, mut exists, mut invalid, mut corrupt, mut late) =
        (0, 0, 0, 0, 0, 0);
    let (mut memfds, mut asked, mut other) = (0, 0, 0);
    for _ in 0..1000 {
        let (mut vm, entries) = strategy
            .new_tree(&mut runner)
            .expect("a strategy without rejections")
            .current();
        match compare(&mut vm, &entries, Origin::List) {
            Ok(verdict) => {
                accepted += 1;
                large += u32::from(verdict.net.len() > 3);
                memfds += u32::from(entries.iter().any(|entry| entry.wants_memfd()));
                asked += u32::from(verdict.net.iter().any(|net| net.last_log != 0));
            }
            Err(refused) => {
                late += u32::from(refused.index > 5);
                match refused.error {
                    Error::Exists => exists += 1,
                    Error::Invalid => invalid += 1,
                    Error::Corrupt => corrupt += 1,
                    Error::BadFile | Error::NoBitmap => other += 1,
                }
            }
        }
    }
    println!("{accepted} accepted, {large} of them large; refused: {exists} EEXIST, {invalid} EINVAL, {corrupt} EIO, {other} others, {late} late");
    println!("{memfds} accepted with a guest_memfd, {asked} with last bits");
    assert!(memfds > 80 && asked > 20);
    assert!(accepted > 300 && large > 80);
    assert!(exists > 80 && invalid > 200 && corrupt > 0 && late > 100);
}
