// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The memslots of a guest's memory. Whatever their number, a page is always at the
//! same guest physical and the same host address.

use std::ops::Range;

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use kvm_memory_uapi::{EntryError, Flags, Region, RegionList, Slot, VmFdMemoryExt, PAGE_SIZE};

/// The ids of the slots.
const LOW: Slot = Slot::new(1);
const HIGH: Slot = Slot::new(2);

/// Which part of the memory has slots. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub size: u64,
    /// Where one slot ends and another begins, if there are two.
    pub border: Option<u64>,
}

/// The slots as they are.
pub struct Slots {
    gpa: u64,
    hva: u64,
    layout: Layout,
    borders: u64,
}

impl Slots {
    /// No slots yet; the memory begins at these addresses.
    pub fn new(gpa: u64, hva: u64) -> Self {
        Slots {
            gpa,
            hva,
            layout: Layout::default(),
            borders: 0,
        }
    }

    fn regions(&self, layout: Layout) -> Vec<Region> {
        let region = |slot, part: Range<u64>| Region {
            slot,
            flags: Flags::empty(),
            guest_phys_addr: self.gpa + part.start,
            memory_size: part.end - part.start,
            userspace_addr: self.hva + part.start,
        };
        match layout {
            Layout { size: 0, .. } => Vec::new(),
            Layout { size, border: None } => vec![region(LOW, 0..size)],
            Layout {
                size,
                border: Some(border),
            } => {
                vec![region(LOW, 0..border), region(HIGH, border..size)]
            }
        }
    }

    /// The list that replaces all slots by others. The slots count as replaced.
    pub fn reshape(&mut self, layout: Layout) -> Result<RegionList, EntryError> {
        let mut list = RegionList::new();
        for region in self.regions(self.layout) {
            list.delete(region.slot)?;
        }
        for region in self.regions(layout) {
            list.create(region)?;
        }
        self.layout = layout;
        Ok(list)
    }

    /// Two slots in place of one, or one in place of two.
    pub fn split_or_merge(&mut self) -> Result<RegionList, EntryError> {
        let Layout { size, border } = self.layout;
        let border = match border {
            None => Some(self.next_border(size)),
            Some(_) => None,
        };
        self.reshape(Layout { size, border })
    }

    /// A border between two of the pages of `size` bytes, another one each time.
    pub fn next_border(&mut self, size: u64) -> u64 {
        // A prime, and so another border until all have been used, unless their
        // number is a multiple of it.
        let step = self.borders * 7919;
        self.borders += 1;
        (1 + step % (size / PAGE_SIZE - 1)) * PAGE_SIZE
    }
}

/// Applies the list with one `KVM_SET_USER_MEMORY_REGION` per entry.
///
/// # Safety
///
/// The memory that the list names must stay mapped for as long as the slots exist,
/// and nothing in this process may rely on its contents.
pub unsafe fn one_by_one(vm: &VmFd, list: &RegionList) -> Result<()> {
    for region in list.single_updates() {
        // SAFETY: the caller vouches for the memory.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}

/// Applies the list as a whole.
///
/// # Safety
///
/// As for [`one_by_one`].
pub unsafe fn as_list(vm: &VmFd, list: &RegionList) -> Result<()> {
    // SAFETY: the caller vouches for the memory.
    unsafe { vm.set_user_memory_regions(list) }.context("KVM_SET_USER_MEMORY_REGION_LIST")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_split_at_every_border_and_merged_again() -> Result<()> {
        let size = 100 * PAGE_SIZE;
        let mut slots = Slots::new(0x1000_0000, 0x7f00_0000_0000);
        slots.reshape(Layout { size, border: None })?;
        let mut borders = Vec::new();
        for _ in 0..99 {
            let list = slots.split_or_merge()?;
            let [old, low, high] = list.entries() else {
                panic!("{list:?}");
            };
            assert_eq!((old.memory_size, old.slot), (0, low.slot));
            assert_eq!(low.guest_phys_addr + low.memory_size, high.guest_phys_addr);
            assert_eq!(low.userspace_addr + low.memory_size, high.userspace_addr);
            assert_eq!(low.memory_size + high.memory_size, size);
            borders.push(low.memory_size / PAGE_SIZE);

            let list = slots.split_or_merge()?;
            let [_, _, whole] = list.entries() else {
                panic!("{list:?}");
            };
            assert_eq!((whole.slot, whole.memory_size), (low.slot, size));
        }
        borders.sort_unstable();
        assert_eq!(borders, (1..100).collect::<Vec<_>>());
        Ok(())
    }
}
