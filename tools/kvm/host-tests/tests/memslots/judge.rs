// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Lets `check` judge a list for a VM of the oracle.

use std::cell::Cell;

use kvm_memory_host_tests::memslots::check::{
    check, Error, LastLog, Limits, NetChange, Origin, Refused, Scratch, Step, View,
};
use kvm_memory_host_tests::memslots::rank_set::RankSet;
use kvm_memory_host_tests::memslots::types::{
    Change, Entry, FilePages, Mapping, SlotFlags, SlotId,
};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};

use crate::oracle::{Asked, Slot, Vm, LOG, MEMFD, PAGE, READONLY};

fn slot_id(key: u32) -> SlotId {
    SlotId {
        as_id: (key >> 16) as u16,
        id: key as u16,
    }
}

fn file_pages((fd, start, end): (u32, u128, u128)) -> FilePages {
    let page = |byte| u64::try_from(byte / u128::from(PAGE)).expect("a page");
    FilePages {
        file: fd as usize,
        start: page(start),
        end: page(end),
    }
}

/// A VM as `check` sees it, and the list that it is to judge.
pub struct Snapshot<'a> {
    vm: &'a Vm,
    entries: &'a [Entry],
    /// What slots are bound to, ordered.
    bound: Vec<(FilePages, SlotId)>,
    /// (first frame, end frame (exclusive), slot), ordered, for each address space.
    by_gfn: Vec<Vec<(u64, u64, u32)>>,
    /// Look-ups so far.
    pub calls: Cell<usize>,
}

impl<'a> Snapshot<'a> {
    pub fn new(vm: &'a Vm, entries: &'a [Entry]) -> Self {
        let mut by_gfn = vec![Vec::new(); vm.rules.address_spaces as usize];
        for (&key, slot) in &vm.slots {
            let start = slot.gpa / PAGE;
            by_gfn[key as usize >> 16].push((start, start + slot.size / PAGE, key));
        }
        for slots in &mut by_gfn {
            slots.sort_unstable();
        }
        let bound = |(&key, slot): (&u32, &Slot)| Some((file_pages(slot.bound?), slot_id(key)));
        let mut bound: Vec<_> = vm.slots.iter().filter_map(bound).collect();
        bound.sort_unstable();
        Self {
            vm,
            entries,
            bound,
            by_gfn,
            calls: Cell::new(0),
        }
    }
}

impl View for Snapshot<'_> {
    fn limits(&self) -> Limits {
        let rules = &self.vm.rules;
        let mut flags = LOG;
        if rules.readonly_mem {
            flags |= READONLY;
        }
        if rules.guest_memfd {
            flags |= MEMFD;
        }
        Limits {
            address_spaces: rules.address_spaces as u16,
            slots: rules.slots as u16,
            user_slots: rules.user_slots as u16,
            max_user_pages: rules.max_user_pages,
            flags: SlotFlags(flags),
            bitmaps: rules.bitmaps,
        }
    }

    fn nr_pages(&self) -> u64 {
        self.vm.pages
    }

    fn slot(&self, id: SlotId) -> Option<Mapping> {
        self.calls.set(self.calls.get() + 1);
        let key = (u32::from(id.as_id) << 16) | u32::from(id.id);
        let slot = self.vm.slots.get(&key)?;
        let start = slot.gpa / PAGE;
        Some(Mapping {
            gfns: GfnRange {
                start: Gfn(start),
                end: Gfn(start + slot.size / PAGE),
            },
            hva: Hva(slot.hva),
            flags: SlotFlags(slot.flags),
        })
    }

    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)> {
        self.calls.set(self.calls.get() + 1);
        let slots = &self.by_gfn[usize::from(as_id)];
        let at = slots.partition_point(|&(_, end, _)| end <= gfns.start.0);
        let &(start, end, key) = slots.get(at)?;
        (gfns.start < gfns.end && start < gfns.end.0).then_some((
            SlotId {
                as_id,
                id: key as u16,
            },
            GfnRange {
                start: Gfn(start),
                end: Gfn(end),
            },
        ))
    }

    fn is_user_range(&self, hva: Hva, size: u64) -> bool {
        self.vm.rules.is_user_range(hva.0, size)
    }

    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        let bytes = |gfn: Gfn| u128::from(gfn.0) * u128::from(PAGE);
        let (start, end) = (bytes(gfns.start), bytes(gfns.end));
        self.vm.rules.arch_allows(change, start, end - start)
    }

    fn memfd(&self, index: usize) -> Result<FilePages, Error> {
        let entry = &self.entries[index];
        if !entry.wants_memfd() || entry.guest_memfd_offset % PAGE != 0 {
            return Err(Error::Invalid);
        }
        self.vm.rules.open(entry).map(file_pages)
    }

    fn first_bound(&self, pages: FilePages) -> Option<(SlotId, u64)> {
        self.calls.set(self.calls.get() + 1);
        let before = |bound: &FilePages| (bound.file, bound.end) <= (pages.file, pages.start);
        let at = self.bound.partition_point(|(bound, _)| before(bound));
        let &(bound, slot) = self.bound.get(at)?;
        bound.overlaps(pages).then_some((slot, bound.end))
    }
}

/// What `check` finds a list to mean.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub changes: Vec<Change>,
    pub net: Vec<NetChange>,
    pub last_logs: Vec<LastLog>,
}

/// Lets `check` judge the list of `snapshot`.
pub fn judge(snapshot: &Snapshot<'_>, origin: Origin) -> Result<Verdict, Refused> {
    let entries = snapshot.entries;
    let n = entries.len();
    let memfds = (0..n).filter(|&i| snapshot.memfd(i).is_ok()).count();
    let scratch = Scratch {
        steps: &mut vec![Step::EMPTY; n],
        by_slot: &mut vec![0; n],
        by_gfn: &mut vec![0; n],
        ranks: &mut vec![0; RankSet::words(n)],
        by_file: &mut vec![0; memfds],
        file_ranks: &mut vec![0; RankSet::words(memfds)],
    };
    let plan = check(snapshot, entries, origin, scratch)?;
    Ok(Verdict {
        changes: plan.changes().collect(),
        net: plan.net_changes().collect(),
        last_logs: plan.last_logs().collect(),
    })
}

/// Lets `check` and the oracle judge `entries`, and panics where they differ. `vm` is then as the
/// oracle leaves it.
#[track_caller]
pub fn compare(vm: &mut Vm, entries: &[Entry], origin: Origin) -> Result<Verdict, Refused> {
    vm.settle();
    let mut by_net = vm.clone();
    let verdict = judge(&Snapshot::new(&by_net, entries), origin);
    let expected = vm.set_list(entries, origin);
    match (&verdict, &expected) {
        (Ok(verdict), Ok(changes)) => {
            assert_eq!(&verdict.changes, changes);
            for net in &verdict.net {
                by_net.apply(net, &entries[net.last]);
            }
            assert_eq!(by_net.slots, vm.slots);
            let asked = |log: &LastLog| Asked {
                pages: log.npages,
                address: log.address,
                started: log.started,
            };
            assert!(verdict.last_logs.iter().map(asked).eq(vm.asked.clone()));
            let kept = vm.asked.iter().filter(|log| !log.started);
            let mut kept: Vec<_> = kept.map(|log| log.address).collect();
            let given = verdict.net.iter().map(|net| net.last_log);
            let mut given: Vec<_> = given.filter(|&address| address != 0).collect();
            kept.sort_unstable();
            given.sort_unstable();
            assert_eq!(given, kept);
            assert!(
                verdict.net.is_sorted_by(|a, b| a.slot < b.slot),
                "a slot has two changes, or the changes are not in order"
            );
        }
        _ => assert_eq!(verdict.as_ref().err(), expected.as_ref().err()),
    }
    verdict
}
