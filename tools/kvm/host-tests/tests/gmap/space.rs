// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! An address space that carries out one update of memslots after the other, and refuses what KVM
//! would refuse.

use std::collections::BTreeMap;

use kvm_memory_host_tests::{
    gmap::segments::{Change, Error, Extent, Extents, EXTENT_PAGES},
    memslots::types::{Entry, Mapping, SlotFlags},
    types::{Gfn, GfnRange, Hva, PAGE_SHIFT},
};

pub const AS_ID: u16 = 7;

/// Extents by their first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub ids: u16,
    pub extents: BTreeMap<u64, Extent>,
}

impl Extents for Space {
    fn first_in(&self, gfns: GfnRange) -> Option<Extent> {
        let below = self.extents.range(..=gfns.start.0).next_back();
        let above = self
            .extents
            .range(gfns.start.0..gfns.end.0.max(gfns.start.0))
            .next();
        [below, above]
            .into_iter()
            .flatten()
            .map(|(_, extent)| *extent)
            .find(|extent| extent.mapping.gfns.intersection(gfns).is_some())
    }

    fn free_id(&self, from: u16) -> Option<u16> {
        let mut used = vec![false; self.ids.into()];
        for extent in self.extents.values() {
            used[usize::from(extent.id)] = true;
        }
        (from..self.ids).find(|id| !used[usize::from(*id)])
    }
}

impl Space {
    pub fn new(ids: u16) -> Self {
        Self {
            ids,
            extents: BTreeMap::new(),
        }
    }

    /// Makes a change. Returns its entries, or [`None`] if there were not enough ids.
    pub fn apply(&mut self, change: Change) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let result = change.entries(self, AS_ID, |entry| {
            entries.push(entry);
            Ok::<(), ()>(())
        });
        match result {
            Ok(()) => {}
            Err(Error::NoIds) => return None,
            Err(Error::Caller(())) => unreachable!("the caller takes all entries"),
        }
        for entry in &entries {
            self.update(entry);
        }
        Some(entries)
    }

    fn update(&mut self, entry: &Entry) {
        let slot = entry.slot_id();
        assert_eq!(slot.as_id, AS_ID);
        assert!(slot.id < self.ids);
        let old = self.extents.values().find(|extent| extent.id == slot.id);
        if entry.memory_size == 0 {
            let old = *old.expect("a deleted slot exists");
            self.extents.remove(&old.mapping.gfns.start.0);
            return;
        }
        assert!(old.is_none(), "a created slot exists");
        let start = Gfn(entry.guest_phys_addr >> PAGE_SHIFT);
        let gfns = GfnRange::new(start, entry.memory_size >> PAGE_SHIFT).expect("no overflow");
        assert_eq!(self.first_in(gfns), None, "slots overlap");
        assert!(gfns.npages() <= EXTENT_PAGES);
        let mapping = Mapping {
            gfns,
            hva: Hva(entry.userspace_addr),
            flags: SlotFlags(entry.flags),
        };
        let extent = Extent {
            id: slot.id,
            mapping,
        };
        self.extents.insert(start.0, extent);
    }

    /// Returns the user address of guest address `gpa`.
    pub fn hva(&self, gpa: u64) -> Option<u64> {
        let gfns = GfnRange::new(Gfn(gpa >> PAGE_SHIFT), 1)?;
        let mapping = self.first_in(gfns)?.mapping;
        Some(mapping.hva.0 + (gpa - (mapping.gfns.start.0 << PAGE_SHIFT)))
    }
}
