// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The memslot updates that the guest must survive.
//!
//! The guest works in the first [`Window::working`] bytes of a window. Every
//! update replaces one complete set of slots for the window by another one, over
//! the same host memory, so a guest that sees only the old or the new slots sees
//! no difference. Between two entries of an update a part of the working set has
//! no slot at all.

use std::{fmt, ops::Range};

use kvm_memory_uapi::{EntryError, Flags, Region, RegionList, Slot, PAGE_SIZE};

const LOW: Slot = Slot::new(0);
const HIGH: Slot = Slot::new(1);

/// The guest physical range whose slots the updates change. Sizes and addresses
/// are in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub gpa: u64,
    /// Address to which a slot moves out of the window.
    pub alias_gpa: u64,
    /// The host memory behind the window, [`Window::full`] bytes long.
    pub hva: u64,
    /// Size of what the guest uses and must never lose; at least two pages.
    pub working: u64,
    /// Size of the window after [`Operation::Grow`].
    pub full: u64,
}

impl Window {
    fn region(&self, slot: Slot, part: Range<u64>) -> Region {
        Region {
            slot,
            flags: Flags::empty(),
            guest_phys_addr: self.gpa + part.start,
            memory_size: part.end - part.start,
            userspace_addr: self.hva + part.start,
        }
    }

    /// The slot with which a [`Plan`] starts, and to which it returns after each
    /// round.
    pub fn initial(&self) -> Region {
        self.region(LOW, 0..self.working)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Grow,
    Split,
    Merge,
    Shrink,
    MoveAway,
    MoveBack,
}

impl Operation {
    /// Whether a slot moves. All other operations reshape slots, and every page of
    /// the working set stays where it is.
    pub fn moves(self) -> bool {
        matches!(self, Operation::MoveAway | Operation::MoveBack)
    }

    const ROUND: [Operation; 6] = [
        Operation::Grow,
        Operation::Split,
        Operation::Merge,
        Operation::Shrink,
        Operation::MoveAway,
        Operation::MoveBack,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Grow => "grow",
            Operation::Split => "split",
            Operation::Merge => "merge",
            Operation::Shrink => "shrink",
            Operation::MoveAway => "move away",
            Operation::MoveBack => "move back",
        })
    }
}

/// One update, from a complete set of slots to the next.
#[derive(Debug)]
pub struct Update {
    pub operation: Operation,
    pub list: RegionList,
}

/// Repeats all [`Operation`]s, round after round, without end.
pub struct Plan {
    window: Window,
    count: u64,
}

impl Plan {
    pub fn new(window: Window) -> Self {
        Plan { window, count: 0 }
    }

    /// The next update.
    pub fn next_update(&mut self) -> Result<Update, EntryError> {
        let w = &self.window;
        let round = self.count / Operation::ROUND.len() as u64;
        let operation = Operation::ROUND[(self.count % Operation::ROUND.len() as u64) as usize];
        // The border is at another page each round, and so between page tables,
        // code, stacks and data in turn. 37 is prime to the usual sizes: no border
        // returns before all others have been used.
        let border = (1 + round * 37 % (w.working / PAGE_SIZE - 1)) * PAGE_SIZE;
        let whole = w.region(LOW, 0..w.full);

        let mut list = RegionList::new();
        match operation {
            Operation::Grow => list.delete(LOW)?.create(whole)?,
            Operation::Split => list
                .delete(LOW)?
                .create(w.region(LOW, 0..border))?
                .create(w.region(HIGH, border..w.full))?,
            Operation::Merge => list.delete(LOW)?.delete(HIGH)?.create(whole)?,
            Operation::Shrink => list.delete(LOW)?.create(w.initial())?,
            // The slot moves away and another one takes its place, over the same
            // memory.
            Operation::MoveAway => list
                .move_to(&w.initial(), w.alias_gpa)?
                .create(w.region(HIGH, 0..w.working))?,
            Operation::MoveBack => {
                let away = Region {
                    guest_phys_addr: w.alias_gpa,
                    ..w.initial()
                };
                list.delete(HIGH)?.move_to(&away, w.gpa)?
            }
        };
        self.count += 1;
        Ok(Update { operation, list })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kvm_memory_uapi::bindings::kvm_userspace_memory_region_entry as Entry;
    use proptest::prelude::*;

    use super::*;

    /// The slots of a VM, with the rules of KVM_SET_USER_MEMORY_REGION.
    #[derive(Default)]
    struct Model(BTreeMap<u32, Entry>);

    impl Model {
        fn apply(&mut self, entry: &Entry) -> Result<(), &'static str> {
            let old = self.0.get(&entry.slot);
            if entry.memory_size == 0 {
                return match self.0.remove(&entry.slot) {
                    Some(_) => Ok(()),
                    None => Err("EINVAL: no such slot"),
                };
            }
            if old.is_some_and(|old| {
                old.memory_size != entry.memory_size || old.userspace_addr != entry.userspace_addr
            }) {
                return Err("EINVAL: size or hva of a slot changes");
            }
            let end = |slot: &Entry| slot.guest_phys_addr + slot.memory_size;
            if self.0.values().any(|other| {
                other.slot != entry.slot
                    && other.guest_phys_addr < end(entry)
                    && entry.guest_phys_addr < end(other)
            }) {
                return Err("EEXIST");
            }
            self.0.insert(entry.slot, *entry);
            Ok(())
        }

        /// Host address of every page in the guest's working set, if it has a slot.
        fn working_set(&self, w: &Window) -> Vec<Option<u64>> {
            (0..w.working / PAGE_SIZE)
                .map(|page| {
                    let gpa = w.gpa + page * PAGE_SIZE;
                    self.0.values().find_map(|slot| {
                        let offset = gpa.checked_sub(slot.guest_phys_addr)?;
                        (offset < slot.memory_size).then_some(slot.userspace_addr + offset)
                    })
                })
                .collect()
        }
    }

    fn window(working: u64, full: u64) -> Window {
        Window {
            gpa: 0x100_0000,
            alias_gpa: 0x200_0000,
            hva: 0x7f00_0000_0000,
            working: working * PAGE_SIZE,
            full: full * PAGE_SIZE,
        }
    }

    proptest! {
        #[test]
        fn same_memory_before_and_after_each_update(
            working in 2u64..300,
            growth in 1u64..300,
            updates in 1usize..200,
        ) {
            let window = window(working, working + growth);
            let expected: Vec<_> =
                (0..working).map(|page| Some(window.hva + page * PAGE_SIZE)).collect();
            let mut plan = Plan::new(window);
            let mut initial = RegionList::new();
            initial.create(window.initial()).expect("valid region");
            let mut model = Model::default();
            prop_assert_eq!(model.apply(&initial.entries()[0]), Ok(()));

            for _ in 0..updates {
                let update = plan.next_update().expect("valid entries");
                let (last, before) = update.list.entries().split_last().expect("an entry");
                for entry in before {
                    prop_assert_eq!(model.apply(entry), Ok(()), "{:?}", update);
                }
                prop_assert!(
                    model.working_set(&window) != expected,
                    "nothing is missing before the last entry: {update:?}"
                );
                prop_assert_eq!(model.apply(last), Ok(()), "{:?}", update);
                prop_assert_eq!(model.working_set(&window), expected.clone(), "{:?}", update);
            }
        }
    }

    #[test]
    fn borders_wander_through_the_whole_working_set() {
        let mut plan = Plan::new(window(256, 512));
        let mut borders = Vec::new();
        for _ in 0..255 {
            for operation in Operation::ROUND {
                let update = plan.next_update().expect("valid entries");
                assert_eq!(update.operation, operation);
                if operation == Operation::Split {
                    borders.push(update.list.entries()[1].memory_size / PAGE_SIZE);
                }
            }
        }
        borders.sort_unstable();
        assert_eq!(borders, (1..256).collect::<Vec<_>>());
    }
}
