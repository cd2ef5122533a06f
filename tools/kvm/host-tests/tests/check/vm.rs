// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The oracle: a VM whose slots are updated one at a time, by looking at all of them; and the glue that
//! has `check` judge a list for such a VM.
//!
//! [`Vm::set`] follows upstream's `kvm_set_memory_region()`, in bytes and with integers that cannot
//! overflow, and shares no arithmetic with the code under test.

use std::cell::Cell;
use std::collections::BTreeMap;

use kvm_memory_host_tests::memslots::check::{
    check, Error, Limits, NetChange, NetKind, Origin, Refused, Relog, Scratch, Step, View,
};
use kvm_memory_host_tests::memslots::rank_set::RankSet;
use kvm_memory_host_tests::memslots::types::{Change, Entry, Mapping, SlotFlags, SlotId};
use kvm_memory_host_tests::types::{Gfn, GfnRange, Hva};

pub const LOG: u32 = 1;
pub const READONLY: u32 = 2;
pub const MEMFD: u32 = 4;
pub const PAGE: u64 = 4096;

/// Where user addresses end.
pub const USER_END: u64 = (1 << 47) - PAGE;

/// Where the dirty log of a slot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Off,
    /// It was on before the list and was never off since.
    Kept,
    /// The list has started it.
    Started,
}

/// A slot as the uAPI describes it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub flags: u32,
    /// The list has created it.
    pub created: bool,
    pub log: Log,
}

impl Slot {
    fn end(&self) -> u128 {
        u128::from(self.gpa) + u128::from(self.size)
    }

    fn shares_a_byte(&self, other: &Slot) -> bool {
        u128::from(self.gpa) < other.end() && u128::from(other.gpa) < self.end()
    }
}

/// What does not change while slots do.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub address_spaces: u32,
    pub slots: u32,
    pub user_slots: u32,
    pub max_user_pages: u64,
    pub readonly_mem: bool,
    pub guest_memfd: bool,
    /// The guest's physical addresses are below.
    pub gpa_end: u128,
    pub can_move: bool,
}

impl Rules {
    /// Those of x86.
    pub const X86: Self = Self {
        address_spaces: 2,
        slots: 32767,
        user_slots: 32764,
        max_user_pages: (1 << 31) - 1,
        readonly_mem: true,
        guest_memfd: true,
        gpa_end: 1 << 48,
        can_move: true,
    };

    fn is_user_range(&self, hva: u64, size: u64) -> bool {
        u128::from(hva) + u128::from(size) <= u128::from(USER_END)
    }

    fn arch_allows(&self, change: Change, gpa: u128, size: u128) -> bool {
        (change != Change::Move || self.can_move) && gpa + size <= self.gpa_end
    }
}

/// A VM.
#[derive(Clone, Debug)]
pub struct Vm {
    pub rules: Rules,
    /// By the `slot` field of the uAPI.
    pub slots: BTreeMap<u32, Slot>,
    /// What the VM believes to be the number of pages in all slots.
    pub pages: u64,
}

impl Vm {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            slots: BTreeMap::new(),
            pages: 0,
        }
    }

    /// Forgets which update did what: from here on everything was there before.
    pub fn settle(&mut self) {
        for slot in self.slots.values_mut() {
            slot.created = false;
            if slot.log == Log::Started {
                slot.log = Log::Kept;
            }
        }
    }

    /// Does what one entry asks for, or says why not.
    pub fn set(&mut self, entry: &Entry, origin: Origin) -> Result<Change, Error> {
        let rules = self.rules;
        let (as_id, id) = (entry.slot >> 16, entry.slot & 0xffff);
        let end = u128::from(entry.guest_phys_addr) + u128::from(entry.memory_size);

        // What only a list has, or has not.
        if entry.invalidate_slot > 1 || entry.padding.iter().any(|&byte| byte != 0) {
            return Err(Error::Invalid);
        }
        let offset = match origin {
            Origin::Single { guest_memfd_offset } => u128::from(guest_memfd_offset),
            Origin::List if entry.flags & MEMFD != 0 || id >= rules.user_slots => {
                return Err(Error::Invalid);
            }
            Origin::List => 0,
        };

        // check_memory_region_flags()
        let mut flags = LOG;
        if rules.guest_memfd {
            flags |= MEMFD;
        }
        if entry.flags & MEMFD != 0 {
            flags &= !LOG;
        } else if rules.readonly_mem {
            flags |= READONLY;
        }
        if entry.flags & !flags != 0 {
            return Err(Error::Invalid);
        }

        // "General sanity checks"
        if entry.memory_size % PAGE != 0
            || entry.guest_phys_addr % PAGE != 0
            || entry.userspace_addr % PAGE != 0
            || !rules.is_user_range(entry.userspace_addr, entry.memory_size)
        {
            return Err(Error::Invalid);
        }
        if entry.flags & MEMFD != 0
            && (offset % u128::from(PAGE) != 0
                || offset + u128::from(entry.memory_size) > u128::from(u64::MAX))
        {
            return Err(Error::Invalid);
        }
        if as_id >= rules.address_spaces || id >= rules.slots {
            return Err(Error::Invalid);
        }
        if end > u128::from(u64::MAX) {
            return Err(Error::Invalid);
        }
        let npages = entry.memory_size / PAGE;
        if id < rules.user_slots && npages > rules.max_user_pages {
            return Err(Error::Invalid);
        }

        let old = self.slots.get(&entry.slot).copied();
        if npages == 0 {
            let old = old.ok_or(Error::Invalid)?;
            let gone = old.size / PAGE;
            if self.pages < gone {
                return Err(Error::Corrupt);
            }
            self.pages -= gone;
            self.slots.remove(&entry.slot);
            return Ok(Change::Delete);
        }

        let logs = entry.flags & LOG != 0;
        let mut new = Slot {
            gpa: entry.guest_phys_addr,
            size: entry.memory_size,
            hva: entry.userspace_addr,
            flags: entry.flags,
            created: true,
            log: if logs { Log::Started } else { Log::Off },
        };
        let mut pages = u128::from(self.pages);
        let change = match old {
            None => {
                pages += u128::from(npages);
                if pages > u128::from(u64::MAX) {
                    return Err(Error::Invalid);
                }
                Change::Create
            }
            Some(old) => {
                if entry.flags & MEMFD != 0
                    || new.hva != old.hva
                    || new.size != old.size
                    || (new.flags ^ old.flags) & (READONLY | MEMFD) != 0
                {
                    return Err(Error::Invalid);
                }
                new.created = old.created;
                if logs && old.log != Log::Off {
                    new.log = old.log;
                }
                if new.gpa != old.gpa {
                    Change::Move
                } else if new.flags != old.flags {
                    Change::FlagsOnly
                } else {
                    Change::Nothing
                }
            }
        };
        if entry.invalidate_slot == 1 && change != Change::Move {
            return Err(Error::Invalid);
        }

        if change == Change::Create || change == Change::Move {
            let collides = |(&slot, other): (&u32, &Slot)| {
                slot != entry.slot && slot >> 16 == as_id && other.shares_a_byte(&new)
            };
            if self.slots.iter().any(collides) {
                return Err(Error::Exists);
            }
            // With a guest_memfd, the architecture is asked after check.
            if entry.flags & MEMFD == 0
                && !rules.arch_allows(change, new.gpa.into(), new.size.into())
            {
                return Err(Error::Invalid);
            }
        }
        self.slots.insert(entry.slot, new);
        self.pages = pages as u64;
        Ok(change)
    }

    /// Does what a whole list asks for, or nothing.
    pub fn set_list(&mut self, entries: &[Entry], origin: Origin) -> Result<Vec<Change>, Refused> {
        let mut after = self.clone();
        let changes = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                after
                    .set(entry, origin)
                    .map_err(|error| Refused { index, error })
            })
            .collect::<Result<_, _>>()?;
        *self = after;
        Ok(changes)
    }

    /// Makes one net change, which must be one that is possible and says something.
    pub fn apply(&mut self, net: &NetChange) {
        let key = (u32::from(net.slot.as_id) << 16) | u32::from(net.slot.id);
        let old = self.slots.get(&key).copied();
        let slot = |mapping: Mapping| Slot {
            gpa: mapping.gfns.start.0 * PAGE,
            size: (mapping.gfns.end.0 - mapping.gfns.start.0) * PAGE,
            hva: mapping.hva.0,
            flags: mapping.flags.0,
            created: true,
            log: match mapping.flags.0 & LOG {
                0 => Log::Off,
                _ => Log::Started,
            },
        };
        let handed_on = |mapping: Mapping, relog: Relog| {
            let old = old.expect("a slot to change");
            let mut new = slot(mapping);
            assert_eq!((new.size, new.hva), (old.size, old.hva));
            new.created = old.created;
            if new.log != Log::Off && old.log != Log::Off && relog == Relog::No {
                new.log = old.log;
            }
            assert_ne!(new, old, "a change that changes nothing");
            new
        };
        let new = match net.kind {
            NetKind::Delete => {
                old.expect("a slot to delete");
                self.slots.remove(&key);
                return;
            }
            NetKind::Create(mapping) => {
                assert_eq!(old, None);
                slot(mapping)
            }
            NetKind::Replace(mapping) => {
                old.expect("a slot to replace");
                slot(mapping)
            }
            NetKind::Move(mapping, relog) => {
                let new = handed_on(mapping, relog);
                assert_ne!(Some(new.gpa), old.map(|old| old.gpa));
                new
            }
            NetKind::FlagsOnly(mapping, relog) => {
                let new = handed_on(mapping, relog);
                assert_eq!(Some(new.gpa), old.map(|old| old.gpa));
                new
            }
        };
        self.slots.insert(key, new);
    }
}

/// A VM as `check` sees it.
pub struct Snapshot<'a> {
    vm: &'a Vm,
    /// (first frame, frame after the last, slot), ordered, for each address space.
    by_gfn: Vec<Vec<(u64, u64, u32)>>,
    /// Look-ups so far.
    pub calls: Cell<usize>,
}

impl<'a> Snapshot<'a> {
    pub fn new(vm: &'a Vm) -> Self {
        let mut by_gfn = vec![Vec::new(); vm.rules.address_spaces as usize];
        for (&key, slot) in &vm.slots {
            let start = slot.gpa / PAGE;
            by_gfn[key as usize >> 16].push((start, start + slot.size / PAGE, key));
        }
        for slots in &mut by_gfn {
            slots.sort_unstable();
        }
        Self {
            vm,
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
}

/// What `check` says of a list.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub changes: Vec<Change>,
    pub net: Vec<NetChange>,
}

/// Has `check` judge `entries`.
pub fn judge(
    snapshot: &Snapshot<'_>,
    entries: &[Entry],
    origin: Origin,
) -> Result<Verdict, Refused> {
    let n = entries.len();
    let scratch = Scratch {
        steps: &mut vec![Step::EMPTY; n],
        by_slot: &mut vec![0; n],
        by_gfn: &mut vec![0; n],
        ranks: &mut vec![0; RankSet::words(n)],
    };
    let plan = check(snapshot, entries, origin, scratch)?;
    Ok(Verdict {
        changes: plan.changes().collect(),
        net: plan.net_changes().collect(),
    })
}

/// Has both judge `entries`, fails where they differ, and leaves `vm` as it is after them.
#[track_caller]
pub fn compare(vm: &mut Vm, entries: &[Entry], origin: Origin) -> Result<Verdict, Refused> {
    vm.settle();
    let mut by_net = vm.clone();
    let verdict = judge(&Snapshot::new(&by_net), entries, origin);
    let expected = vm.set_list(entries, origin);
    match (&verdict, &expected) {
        (Ok(verdict), Ok(changes)) => {
            assert_eq!(&verdict.changes, changes);
            for net in &verdict.net {
                by_net.apply(net);
            }
            assert_eq!(by_net.slots, vm.slots);
            assert!(
                verdict.net.is_sorted_by(|a, b| a.slot < b.slot),
                "more than one change of a slot, or in no order"
            );
        }
        _ => assert_eq!(verdict.as_ref().err(), expected.as_ref().err()),
    }
    verdict
}
