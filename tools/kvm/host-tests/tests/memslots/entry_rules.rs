// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The rules for a single entry: what it changes, and why it is refused.

use kvm_memory_host_tests::memslots::check::{
    Error::{self, *},
    Origin, Refused,
};
use kvm_memory_host_tests::memslots::types::{
    Change::{self, *},
    Entry,
};

use crate::fixture::{delete, region, vm, HVA, INTERNAL, SINGLE, SMM};
use crate::judge::compare;
use crate::oracle::{Rules, Vm, LOG, MEMFD, PAGE, READONLY, USER_END};

const GPA_END: u64 = Rules::X86.gpa_end as u64;
const MAX_PAGES: u64 = Rules::X86.max_user_pages;
/// The first slot id that does not exist.
const BEYOND: u32 = Rules::X86.slots;

fn invalidate(entry: Entry) -> Entry {
    Entry {
        invalidate_slot: 1,
        ..entry
    }
}

#[track_caller]
fn expect(vm: &Vm, entry: Entry, origin: Origin, expected: Result<Change, Error>) {
    let found = compare(&mut vm.clone(), &[entry], origin);
    let found = found.map(|verdict| verdict.changes[0]);
    let expected = expected.map_err(|error| Refused { index: 0, error });
    assert_eq!(found, expected, "{entry:x?} from {origin:?}");
}

/// Expects the same of a list and of the single ioctl.
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
        (region(SMM | 1, 20, 4, 0), Create), // frames that another address space uses
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
    // KVM's own slot.
    expect_both(region(3, 43, 2, 0), Err(Exists));
    // A wrong invalidate_slot is found before an overlap, the architecture's objection after it.
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
            // Slot 2 is bound to the same pages.
            MEMFD => Err(Exists),
            _ => Err(Invalid),
        };
        let entry = Entry {
            flags: 1 << bit,
            ..good
        };
        expect(&vm(), entry, Origin::List, expected);
    }
    for i in 0..3 {
        let mut entry = good;
        entry.pad1[i] = 0x80;
        expect_both(entry, Err(Invalid));
    }
    for i in 0..8 {
        let mut entry = good;
        entry.pad2[i] = 0x80;
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
    // The arguments of a deletion are checked too.
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

    // Upstream refuses a slot whose end (exclusive) is 2^64.
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
    // The limit on the size does not apply to KVM's own slots.
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
    let at = |guest_memfd, guest_memfd_offset| Entry {
        guest_memfd,
        guest_memfd_offset,
        ..entry(0)
    };
    expect_both(entry(LOG), Err(Invalid));
    expect_both(entry(READONLY), Err(Invalid));
    let (size, closed) = (Rules::X86.memfd_size as u64, Rules::X86.memfds + 1);
    for (fd, offset, expected) in [
        // Slot 2 is bound to the first four pages of file 0.
        (0, 0, Err(Exists)),
        (0, 3 * PAGE, Err(Exists)),
        (0, 4 * PAGE, Ok(Create)),
        (1, 0, Ok(Create)),
        (1, 7 * PAGE + 1, Err(Invalid)),
        (1, size - 4 * PAGE, Ok(Create)),
        (1, size - 3 * PAGE, Err(Invalid)),
        (1, (4 * PAGE).wrapping_neg(), Err(Invalid)),
        (1, (3 * PAGE).wrapping_neg(), Err(Invalid)),
        (closed - 1, 0, Err(Invalid)),
        (closed, 0, Err(BadFile)),
        (u32::MAX, 0, Err(BadFile)),
    ] {
        expect_both(at(fd, offset), expected);
    }
    // Without the flag, both fields must be 0.
    for (guest_memfd, guest_memfd_offset) in [(1, 0), (0, PAGE)] {
        let entry = Entry {
            guest_memfd,
            guest_memfd_offset,
            ..region(3, 100, 4, 0)
        };
        expect_both(entry, Err(Invalid));
    }
    // The memslots come first, then the file, then the architecture, then what is bound to the file.
    let place = |gfn, guest_memfd| Entry {
        guest_memfd,
        ..region(3, gfn, 4, MEMFD)
    };
    expect_both(place(8, closed), Err(Exists));
    expect_both(place(GPA_END / PAGE, closed), Err(BadFile));
    expect_both(place(GPA_END / PAGE, 0), Err(Invalid));
    expect_both(place(100, 0), Err(Exists));
}

#[test]
fn last_bits_of_a_log() {
    let ask = |entry: Entry| Entry {
        dirty_bitmap: 0x1008,
        ..entry
    };
    expect_both(ask(delete(0)), Ok(Delete));
    for entry in [
        delete(1),
        delete(2),
        delete(3),
        region(0, 10, 4, LOG),
        region(0, 10, 4, 0),
        region(0, 50, 4, LOG),
        region(3, 100, 4, LOG),
    ] {
        expect_both(ask(entry), Err(Invalid));
    }
    // With a dirty ring there are no bits.
    let mut vm = vm();
    vm.rules.bitmaps = false;
    expect(&vm, ask(delete(0)), Origin::List, Err(NoBitmap));
    expect(&vm, ask(delete(1)), Origin::List, Err(Invalid));
}

#[test]
fn the_number_of_pages() {
    let mut vm = vm();
    vm.pages = u64::MAX - 4;
    let create = region(3, 100, 4, 0);
    expect(&vm, create, Origin::List, Ok(Create));
    vm.pages += 1;
    expect(&vm, create, Origin::List, Err(Invalid));
    // It fits after another slot is deleted, not before. Moves do not count.
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
