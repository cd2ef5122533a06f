// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A VMM's record of its memslots.

use std::collections::BTreeMap;

use super::list::{EntryError, RegionList};
use super::region::{Flags, Region, Slot};
use crate::reason::Reason;

/// A VMM's record of the memslots of a VM.
///
/// Only a [`MemslotUpdate`] that the kernel has accepted changes the record. A
/// refused or dropped update leaves it unchanged. The record is right as long as
/// every memslot update of the VM goes through it. The example is at
/// [`MemslotUpdate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memslots(BTreeMap<Slot, Region>);

impl Memslots {
    /// The memslots of a new VM: none.
    pub fn new() -> Self {
        Self::default()
    }

    /// The slot, `None` if it does not exist.
    pub fn get(&self, slot: Slot) -> Option<&Region> {
        self.0.get(&slot)
    }

    /// All slots, ordered by address space and id.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.values()
    }

    /// Starts an update, which borrows the record: there is one update at a
    /// time.
    pub fn update(&mut self) -> MemslotUpdate<'_> {
        MemslotUpdate {
            memslots: self,
            changed: BTreeMap::new(),
            list: RegionList::new(),
        }
    }
}

/// A list of updates to a VM's [`Memslots`], and the slots that result from it.
///
/// Each method takes earlier entries into account. It appends one entry to the
/// list, or returns what is wrong with the entry and changes nothing.
///
/// # Example
///
/// [`update_memslots`](crate::VmFdMemoryExt::update_memslots) does the ioctl and
/// the commit.
///
/// ```
/// use kvm_memory_uapi::{Flags, Memslots, Reason, Region, Slot};
///
/// # fn ioctl(_list: &kvm_memory_uapi::RegionList) -> Result<(), kvm_memory_uapi::Error> { Ok(()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let slot = Slot::new(0);
/// let mut memslots = Memslots::new();
///
/// let mut update = memslots.update();
/// update.create(Region {
///     slot,
///     flags: Flags::empty(),
///     guest_phys_addr: 0,
///     memory_size: 0x1000,
///     userspace_addr: 0x7f00_0000_0000,
/// })?;
/// update.move_to(slot, 0x8000)?.set_flags(slot, Flags::LOG_DIRTY_PAGES)?;
/// let error = update.delete(Slot::new(1)).unwrap_err();
/// assert_eq!((error.entry, error.reason), (3, Reason::NoSuchSlot));
///
/// ioctl(update.list())?;
/// update.commit();
/// assert_eq!(memslots.get(slot).map(|r| r.guest_phys_addr), Some(0x8000));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an update does nothing until the VM gets it"]
pub struct MemslotUpdate<'a> {
    memslots: &'a mut Memslots,
    /// Slots that the list changes, with their state after it; `None` if the list
    /// deletes them.
    changed: BTreeMap<Slot, Option<Region>>,
    list: RegionList,
}

impl MemslotUpdate<'_> {
    /// Creates a slot.
    ///
    /// # Errors
    ///
    /// [`Reason::SlotExists`], and those of [`RegionList::create`].
    pub fn create(&mut self, region: Region) -> Result<&mut Self, EntryError> {
        if self.current(region.slot).is_ok() {
            return Err(self.list.error(region.slot, Reason::SlotExists));
        }
        self.list.create(region)?;
        Ok(self.record(region.slot, Some(region)))
    }

    /// Deletes a slot.
    ///
    /// # Errors
    ///
    /// [`Reason::NoSuchSlot`], and those of [`RegionList::delete`].
    pub fn delete(&mut self, slot: Slot) -> Result<&mut Self, EntryError> {
        self.current(slot)?;
        self.list.delete(slot)?;
        Ok(self.record(slot, None))
    }

    /// Moves a slot to another guest physical address, in bytes.
    ///
    /// # Errors
    ///
    /// [`Reason::NoSuchSlot`], and those of [`RegionList::move_to`].
    pub fn move_to(&mut self, slot: Slot, guest_phys_addr: u64) -> Result<&mut Self, EntryError> {
        let region = self.current(slot)?;
        self.list.move_to(&region, guest_phys_addr)?;
        let moved = Region {
            guest_phys_addr,
            ..region
        };
        Ok(self.record(slot, Some(moved)))
    }

    /// Changes the flags of a slot.
    ///
    /// # Errors
    ///
    /// [`Reason::NoSuchSlot`], and those of [`RegionList::set_flags`].
    pub fn set_flags(&mut self, slot: Slot, flags: Flags) -> Result<&mut Self, EntryError> {
        let region = self.current(slot)?;
        self.list.set_flags(&region, flags)?;
        Ok(self.record(slot, Some(Region { flags, ..region })))
    }

    /// The list, with the entries so far.
    pub fn list(&self) -> &RegionList {
        &self.list
    }

    /// Writes the update to the record. The caller must call this if, and only
    /// if, the kernel has accepted [`list`](Self::list).
    pub fn commit(self) {
        for (slot, region) in self.changed {
            match region {
                Some(region) => self.memslots.0.insert(slot, region),
                None => self.memslots.0.remove(&slot),
            };
        }
    }

    fn current(&self, slot: Slot) -> Result<Region, EntryError> {
        match self.changed.get(&slot) {
            Some(region) => *region,
            None => self.memslots.get(slot).copied(),
        }
        .ok_or_else(|| self.list.error(slot, Reason::NoSuchSlot))
    }

    fn record(&mut self, slot: Slot, region: Option<Region>) -> &mut Self {
        self.changed.insert(slot, region);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Create(Region),
        Delete(Slot),
        MoveTo(Slot, u64),
        SetFlags(Slot, Flags),
    }

    fn slot() -> impl Strategy<Value = Slot> {
        (0u16..4, 0u16..2).prop_map(|(id, space)| Slot::new(id).in_address_space(space))
    }

    fn flags() -> impl Strategy<Value = Flags> {
        (0u32..4).prop_map(Flags::from_bits_truncate)
    }

    /// Addresses in half pages, so that updates refuse some of them.
    fn gpa() -> impl Strategy<Value = u64> {
        (0u64..8).prop_map(|n| n * 0x800)
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (slot(), flags(), gpa()).prop_map(|(slot, flags, guest_phys_addr)| Op::Create(
                Region {
                    slot,
                    flags,
                    guest_phys_addr,
                    memory_size: 0x1000,
                    userspace_addr: 0x10_0000,
                }
            )),
            slot().prop_map(Op::Delete),
            (slot(), gpa()).prop_map(|(s, gpa)| Op::MoveTo(s, gpa)),
            (slot(), flags()).prop_map(|(s, flags)| Op::SetFlags(s, flags)),
        ]
    }

    fn apply(op: &Op, update: &mut MemslotUpdate<'_>) -> Result<(), EntryError> {
        match *op {
            Op::Create(region) => update.create(region),
            Op::Delete(slot) => update.delete(slot),
            Op::MoveTo(slot, gpa) => update.move_to(slot, gpa),
            Op::SetFlags(slot, flags) => update.set_flags(slot, flags),
        }
        .map(|_| ())
    }

    /// KVM_SET_USER_MEMORY_REGION as the kernel documents it, but for overlaps.
    /// Applies the entries to `slots`, or returns the index of the first entry
    /// that fails.
    fn kernel(slots: &mut BTreeMap<u32, [u64; 4]>, list: &RegionList) -> Result<(), usize> {
        for (i, e) in list.entries().iter().enumerate() {
            let old = slots.get(&e.slot).copied();
            let new = [
                e.guest_phys_addr,
                e.memory_size,
                e.userspace_addr,
                e.flags.into(),
            ];
            let invalidates = match old {
                _ if (e.guest_phys_addr | e.memory_size | e.userspace_addr) & 0xfff != 0 => {
                    return Err(i)
                }
                None if e.memory_size == 0 => return Err(i),
                None => false,
                Some(_) if e.memory_size == 0 => true,
                Some(old) if old[1] != new[1] || old[2] != new[2] => return Err(i),
                Some(old) if (old[3] ^ new[3]) & 2 != 0 => return Err(i),
                Some(old) => old[0] != new[0],
            };
            if e.invalidate_slot == 1 && !invalidates {
                return Err(i);
            }
            if e.memory_size == 0 {
                slots.remove(&e.slot);
            } else {
                slots.insert(e.slot, new);
            }
        }
        Ok(())
    }

    fn as_kernel(memslots: &Memslots) -> BTreeMap<u32, [u64; 4]> {
        memslots
            .iter()
            .map(|r| {
                let value = [
                    r.guest_phys_addr,
                    r.memory_size,
                    r.userspace_addr,
                    r.flags.bits().into(),
                ];
                (u32::from(r.slot), value)
            })
            .collect()
    }

    proptest! {
        /// The kernel accepts every list that an update builds, and then has the
        /// slots of the record. A dropped update changes nothing, and neither
        /// does a refused entry.
        #[test]
        fn the_record_and_the_kernel_agree(
            updates in proptest::collection::vec(
                (proptest::collection::vec(op(), 0..20), any::<bool>()),
                0..10,
            )
        ) {
            let mut memslots = Memslots::new();
            let mut slots = BTreeMap::new();
            for (ops, kernel_agrees) in updates {
                let before = memslots.clone();
                let mut update = memslots.update();
                for op in &ops {
                    let (len, changed) = (update.list().len(), update.changed.clone());
                    match apply(op, &mut update) {
                        Ok(()) => prop_assert_eq!(update.list().len(), len + 1),
                        Err(e) => {
                            prop_assert_eq!(e.entry, len);
                            prop_assert_eq!(update.list().len(), len);
                            prop_assert_eq!(&update.changed, &changed);
                        }
                    }
                }
                if kernel_agrees {
                    prop_assert_eq!(kernel(&mut slots, update.list()), Ok(()));
                    update.commit();
                    prop_assert_eq!(as_kernel(&memslots), slots.clone());
                } else {
                    drop(update);
                    prop_assert_eq!(&memslots, &before);
                }
            }
        }

        /// An update refuses an entry only if the kernel would refuse it, or
        /// would treat it as another operation than the caller's.
        #[test]
        fn nothing_possible_is_refused(ops in proptest::collection::vec(op(), 0..40)) {
            let mut memslots = Memslots::new();
            let mut update = memslots.update();
            for op in &ops {
                let expected = match *op {
                    Op::Create(r) => update.current(r.slot).is_err() && r.guest_phys_addr % 0x1000 == 0,
                    Op::Delete(s) => update.current(s).is_ok(),
                    Op::MoveTo(s, gpa) => update.current(s)
                        .is_ok_and(|r| gpa % 0x1000 == 0 && gpa != r.guest_phys_addr),
                    Op::SetFlags(s, flags) => update.current(s)
                        .is_ok_and(|r| (r.flags ^ flags).bits() & 2 == 0),
                };
                prop_assert_eq!(apply(op, &mut update).is_ok(), expected, "{:x?}", op);
            }
        }
    }
}
