// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The oracle: a VM that applies updates one at a time, and looks at all of its slots each time.
//!
//! [`Vm::set`] follows upstream's `kvm_set_memory_region()`, in bytes and with integers that cannot
//! overflow, and shares no arithmetic with the code under test.

use std::collections::BTreeMap;

use kvm_memory_host_tests::memslots::check::{Error, NetChange, NetKind, Origin, Refused, Relog};
use kvm_memory_host_tests::memslots::types::{Change, Entry, Mapping};

pub const LOG: u32 = 1;
pub const READONLY: u32 = 2;
pub const MEMFD: u32 = 4;
pub const PAGE: u64 = 4096;

/// End of the user addresses (exclusive).
pub const USER_END: u64 = (1 << 47) - PAGE;

/// Since when a slot has had its dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Off,
    /// It was on before the list, and no entry has switched it off.
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
    /// The list has created the slot.
    pub created: bool,
    pub log: Log,
    /// File descriptor and bytes of the guest_memfd that the slot is bound to.
    pub bound: Option<(u32, u128, u128)>,
}

/// The last bits of a log, which an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub pages: u64,
    pub address: u64,
    pub started: bool,
}

impl Slot {
    fn end(&self) -> u128 {
        u128::from(self.gpa) + u128::from(self.size)
    }

    fn shares_a_byte(&self, other: &Slot) -> bool {
        u128::from(self.gpa) < other.end() && u128::from(other.gpa) < self.end()
    }
}

/// The limits of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub address_spaces: u32,
    pub slots: u32,
    pub user_slots: u32,
    pub max_user_pages: u64,
    pub readonly_mem: bool,
    pub guest_memfd: bool,
    /// End of the guest's physical addresses (exclusive).
    pub gpa_end: u128,
    pub can_move: bool,
    pub bitmaps: bool,
    /// File descriptors below this one are guest_memfds of `memfd_size` bytes, this one is another file,
    /// and the others are closed.
    pub memfds: u32,
    pub memfd_size: u128,
}

impl Rules {
    /// The limits on x86.
    pub const X86: Self = Self {
        address_spaces: 2,
        slots: 32767,
        user_slots: 32764,
        max_user_pages: (1 << 31) - 1,
        readonly_mem: true,
        guest_memfd: true,
        gpa_end: 1 << 48,
        can_move: true,
        bitmaps: true,
        memfds: 2,
        memfd_size: 1 << 63,
    };

    pub fn is_user_range(&self, hva: u64, size: u64) -> bool {
        u128::from(hva) + u128::from(size) <= u128::from(USER_END)
    }

    pub fn arch_allows(&self, change: Change, gpa: u128, size: u128) -> bool {
        (change != Change::Move || self.can_move) && gpa + size <= self.gpa_end
    }

    /// What the kernel finds of the file that `entry` names.
    pub fn open(&self, entry: &Entry) -> Result<(u32, u128, u128), Error> {
        let start = u128::from(entry.guest_memfd_offset);
        let end = start + u128::from(entry.memory_size);
        match entry.guest_memfd {
            fd if fd > self.memfds => Err(Error::BadFile),
            fd if fd == self.memfds || end > self.memfd_size => Err(Error::Invalid),
            fd => Ok((fd, start, end)),
        }
    }
}

/// A VM.
#[derive(Clone, Debug)]
pub struct Vm {
    pub rules: Rules,
    /// The slots, by the `slot` field of the uAPI.
    pub slots: BTreeMap<u32, Slot>,
    /// The VM's count of pages in all slots.
    pub pages: u64,
    /// The last logs that updates have asked for.
    pub asked: Vec<Asked>,
}

impl Vm {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            slots: BTreeMap::new(),
            pages: 0,
            asked: Vec::new(),
        }
    }

    /// Forgets which update did what: all slots and logs count as older than the next list.
    pub fn settle(&mut self) {
        self.asked.clear();
        for slot in self.slots.values_mut() {
            slot.created = false;
            if slot.log == Log::Started {
                slot.log = Log::Kept;
            }
        }
    }

    /// Applies one entry, or returns why not.
    pub fn set(&mut self, entry: &Entry, origin: Origin) -> Result<Change, Error> {
        let rules = self.rules;
        let (as_id, id) = (entry.slot >> 16, entry.slot & 0xffff);
        let end = u128::from(entry.guest_phys_addr) + u128::from(entry.memory_size);

        // What only a list has, or cannot have.
        if entry.invalidate_slot > 1 || entry.pad1 != [0; 3] || entry.pad2 != [0; 8] {
            return Err(Error::Invalid);
        }
        if origin == Origin::List && id >= rules.user_slots {
            return Err(Error::Invalid);
        }
        let offset = u128::from(entry.guest_memfd_offset);
        if entry.flags & MEMFD == 0 && (offset != 0 || entry.guest_memfd != 0) {
            return Err(Error::Invalid);
        }

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
            if entry.dirty_bitmap != 0 {
                if old.log == Log::Off {
                    return Err(Error::Invalid);
                }
                if !rules.bitmaps {
                    return Err(Error::NoBitmap);
                }
                self.asked.push(Asked {
                    pages: gone,
                    address: entry.dirty_bitmap,
                    started: old.log == Log::Started,
                });
            }
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
            bound: None,
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
        if entry.dirty_bitmap != 0 {
            return Err(Error::Invalid);
        }

        if change == Change::Create || change == Change::Move {
            let collides = |(&slot, other): (&u32, &Slot)| {
                slot != entry.slot && slot >> 16 == as_id && other.shares_a_byte(&new)
            };
            if self.slots.iter().any(collides) {
                return Err(Error::Exists);
            }
            if entry.flags & MEMFD != 0 {
                new.bound = Some(rules.open(entry)?);
            }
            if !rules.arch_allows(change, new.gpa.into(), new.size.into()) {
                return Err(Error::Invalid);
            }
            let bound = self.slots.values().filter_map(|other| other.bound);
            if let Some((fd, start, end)) = new.bound {
                for (other, from, to) in bound {
                    if other == fd && start < to && from < end {
                        return Err(Error::Exists);
                    }
                }
            }
        }
        self.slots.insert(entry.slot, new);
        self.pages = pages as u64;
        Ok(change)
    }

    /// Applies a whole list, or nothing.
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

    /// Makes one net change, which must be possible and must change something. `last` is the last entry
    /// on the slot.
    pub fn apply(&mut self, net: &NetChange, last: &Entry) {
        let bound = last.wants_memfd().then(|| self.rules.open(last));
        let bound = bound.map(|bound| bound.expect("a guest_memfd"));
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
            bound,
        };
        let carried_over = |mapping: Mapping, relog: Relog| {
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
                let new = carried_over(mapping, relog);
                assert_ne!(Some(new.gpa), old.map(|old| old.gpa));
                new
            }
            NetKind::FlagsOnly(mapping, relog) => {
                let new = carried_over(mapping, relog);
                assert_eq!(Some(new.gpa), old.map(|old| old.gpa));
                new
            }
        };
        self.slots.insert(key, new);
    }
}
