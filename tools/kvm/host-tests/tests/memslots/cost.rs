// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! How often `check` looks up slots of the VM while KVM holds slots_lock. The tests count, they do not
//! time: for lists that cause long scans, look-ups must be linear in the number of entries and slots.

use kvm_memory_host_tests::memslots::check::Origin;
use kvm_memory_host_tests::memslots::types::Entry;

use crate::fixture::{self, delete};
use crate::judge::{judge, Snapshot};
use crate::oracle::{Rules, Slot, Vm, LOG, PAGE};

/// Number of slots of the VM: slot i maps frame i.
const SLOTS: u32 = 1500;
/// Number of scans over them in a list.
const SCANS: u32 = 1500;
/// Most look-ups per slot and entry.
const PER_ITEM: usize = 5;

fn region(slot: u32, gfn: u32, pages: u32) -> Entry {
    fixture::region(slot, gfn.into(), pages.into(), 0)
}

/// Creates slot `SLOTS` over the frames `start..end`, and deletes it again.
fn scan(start: u32, end: u32) -> [Entry; 2] {
    [region(SLOTS, start, end - start), delete(SLOTS)]
}

fn vm() -> Vm {
    let mut vm = Vm::new(Rules::X86);
    for slot in 0..SLOTS {
        let entry = region(slot, slot, 1);
        assert!(vm.set(&entry, Origin::List).is_ok());
    }
    vm.settle();
    vm
}

/// The number of look-ups until `check` accepts `entries`.
fn calls(vm: &Vm, entries: &[Entry]) -> usize {
    let snapshot = Snapshot::new(vm, entries);
    judge(&snapshot, Origin::List).expect("a list without faults");
    snapshot.calls.get()
}

#[track_caller]
fn assert_linear(entries: &[Entry]) {
    let vm = vm();
    let calls = calls(&vm, entries);
    let items = entries.len() + vm.slots.len();
    println!("{calls} look-ups, {} entries", entries.len());
    assert!(
        calls <= PER_ITEM * items,
        "{calls} look-ups for {items} entries and slots"
    );
}

/// Deletes all slots, then scans.
fn after_deleting(scans: impl Iterator<Item = (u32, u32)>) -> Vec<Entry> {
    let scans = scans.flat_map(|(start, end)| scan(start, end));
    (0..SLOTS).map(delete).chain(scans).collect()
}

#[test]
fn the_same_range() {
    assert_linear(&after_deleting((0..SCANS).map(|_| (0, SLOTS))));
}

#[test]
fn ascending_starts() {
    assert_linear(&after_deleting((0..SCANS).map(|i| (i, SLOTS))));
}

#[test]
fn descending_starts() {
    assert_linear(&after_deleting((0..SCANS).rev().map(|i| (i, SLOTS))));
}

#[test]
fn ascending_ends() {
    assert_linear(&after_deleting((0..SCANS).map(|i| (0, i + 1))));
}

#[test]
fn descending_ends() {
    assert_linear(&after_deleting((0..SCANS).map(|i| (0, SLOTS - i))));
}

#[test]
fn a_window_that_shrinks_and_grows() {
    let shrinks = (0..SCANS / 2).map(|i| (i, SLOTS - i));
    assert_linear(&after_deleting(shrinks.clone().chain(shrinks.rev())));
}

#[test]
fn windows_all_over() {
    // 1319 is prime, so every residue occurs.
    let starts = (0..SCANS).map(|i| i * 1319 % (SLOTS - 1));
    assert_linear(&after_deleting(starts.map(|start| (start, SLOTS))));
    let windows = (0..SCANS).map(|i| (i * 1319 % 700, 700 + i * 997 % 800));
    assert_linear(&after_deleting(windows));
}

/// Each scan finds one more deleted slot than the one before.
#[test]
fn deletions_in_between() {
    let descending = (0..SLOTS).rev().flat_map(|slot| {
        let [create, end] = scan(slot, SLOTS);
        [delete(slot), create, end]
    });
    assert_linear(&descending.collect::<Vec<_>>());
    let ascending = (0..SLOTS).flat_map(|slot| {
        let [create, end] = scan(0, slot + 1);
        [delete(slot), create, end]
    });
    assert_linear(&ascending.collect::<Vec<_>>());
}

/// The slots move away and come back, they are not deleted.
#[test]
fn slots_that_moved() {
    let away = (0..SLOTS).map(|slot| region(slot, slot + 2 * SLOTS, 1));
    let scans = (0..SCANS).flat_map(|_| scan(0, SLOTS));
    let back = (0..SLOTS).map(|slot| region(slot, slot, 1));
    let again = (0..SLOTS).map(|slot| region(slot, slot + 2 * SLOTS, 1));
    let entries = away.chain(scans).chain(back).chain(again);
    assert_linear(&entries.collect::<Vec<_>>());
}

/// A slot moves over itself: the scan stops at the slot and continues after it.
#[test]
fn moves_over_itself() {
    let mut vm = vm();
    let middle = SLOTS / 2;
    // The last slot is in the middle, as large as all slots before it together.
    for slot in middle..SLOTS {
        vm.slots.remove(&slot);
    }
    let gpa = u64::from(middle) * PAGE;
    let wide = Slot {
        gpa,
        size: gpa,
        ..vm.slots[&0]
    };
    vm.slots.insert(SLOTS - 1, wide);
    let before = vm.slots.len();

    let moves = (0..SCANS).map(|i| region(SLOTS - 1, i % middle, middle));
    let entries: Vec<_> = (0..middle).map(delete).chain(moves).collect();
    let calls = calls(&vm, &entries);
    println!("{calls} look-ups, {} entries", entries.len());
    assert!(calls <= PER_ITEM * (entries.len() + before));
}

/// All scans begin in one slot, while slots in their range are deleted one by one. A slot that moves over
/// itself splits each scan, and `check` must join the parts later.
#[test]
fn own_moves_that_split_scans() {
    // Every odd slot moves by less than its size ...
    let mut vm = Vm::new(Rules::X86);
    for slot in 0..SLOTS {
        let entry = region(slot, 4 * slot, if slot % 2 == 0 { 4 } else { 2 });
        assert!(vm.set(&entry, Origin::List).is_ok());
    }
    let even = (0..SLOTS).step_by(2).map(delete);
    // ... and towards the frames of the slots before it, which are deleted.
    let odd = (1..SLOTS).step_by(2).flat_map(|slot| {
        let [create, end] = scan(0, 4 * slot);
        [region(slot, 4 * slot - 1, 2), delete(slot), create, end]
    });
    let entries: Vec<_> = even.chain(odd).collect();
    let calls = calls(&vm, &entries);
    println!("{calls} look-ups, {} entries", entries.len());
    assert!(calls <= PER_ITEM * (entries.len() + vm.slots.len()));
}

/// The cost of entries without a scan does not depend on the number of slots.
#[test]
fn entries_without_a_scan() {
    let vm = vm();
    let entries: Vec<_> = (0..SLOTS)
        .flat_map(|slot| {
            let same = region(slot, slot, 1);
            let flags = Entry { flags: LOG, ..same };
            [flags, same, flags, same]
        })
        .collect();
    assert!(calls(&vm, &entries) <= 2 * vm.slots.len());
}

/// Each scan begins where it must pass the largest number of runs one by one. This is the worst case for
/// skipping: a logarithmic number of look-ups per entry.
#[test]
fn the_longest_chains() {
    // For each deleted slot, where a scan that reaches it continues.
    let mut next: Vec<usize> = (0..SLOTS as usize).map(|slot| slot + 1).collect();
    let mut entries = Vec::new();
    for end in 1..next.len() {
        let mut length = vec![0; end + 1];
        for slot in (0..end).rev() {
            length[slot] = 1 + length[next[slot]];
        }
        let start = (0..end).max_by_key(|&slot| length[slot]).unwrap_or(0);
        let mut slot = start;
        while slot < end {
            slot = std::mem::replace(&mut next[slot], end);
        }
        entries.push(delete(end as u32 - 1));
        entries.extend(scan(start as u32, end as u32));
    }
    let vm = vm();
    let calls = calls(&vm, &entries);
    let items = entries.len() + vm.slots.len();
    println!("{calls} look-ups, {} entries", entries.len());
    assert!(calls <= items * SLOTS.ilog2() as usize, "{calls} look-ups");
}
