// SPDX-License-Identifier: GPL-2.0-only

//! The guest_memfds that the entries of a batch name, and which pages of them slots are bound to.
//!
//! Entries are checked in their order, and the first that would fail counts. So the files are looked
//! up before the check, which learns here what a single update would have found.

use super::{
    check::{
        self,
        Origin, //
    },
    few::Few,
    locks::SlotsLocked,
    slot::Slot,
    types::{
        Entry,
        FilePages,
        SlotId, //
    }, //
};

use crate::types::PAGE_SHIFT;

use core::ptr::{
    null_mut,
    NonNull, //
};

use kernel::{
    alloc::AllocError,
    bindings,
    error::to_result,
    prelude::*, //
};

/// The file of a guest_memfd.
///
/// # Invariants
///
/// Owns a reference to the file.
pub(super) struct MemfdFile(NonNull<bindings::file>);

impl MemfdFile {
    /// # Safety
    ///
    /// The caller owns a reference to `file`, and leaves it to the result.
    pub(super) unsafe fn from_raw(file: NonNull<bindings::file>) -> Self {
        // INVARIANT: The caller leaves its reference to the result.
        Self(file)
    }

    /// Returns whether both are the same file.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for MemfdFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant `self` owns the reference that is dropped here.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// What an entry with a guest_memfd names.
struct Named {
    entry: usize,
    pages: Result<FilePages, check::Error>,
    file: Option<MemfdFile>,
}

/// The guest_memfds of a batch. Usually it has none.
pub(super) struct Memfds {
    /// In the order of entries.
    named: Few<Named>,
    /// What slots are bound to.
    bound: Few<(FilePages, SlotId)>,
    /// Positions in `bound`, in the order of files and pages. (Sorting numbers needs less code than
    /// sorting what they stand for.)
    order: Few<u32>,
}

impl Memfds {
    /// Returns no guest_memfds.
    pub(super) const fn new() -> Self {
        Self {
            named: Few::new(),
            bound: Few::new(),
            order: Few::new(),
        }
    }

    /// Looks up the guest_memfds of `entries`. There must be none yet.
    pub(super) fn look_up(
        &mut self,
        slots: &SlotsLocked<'_>,
        entries: &[Entry],
        origin: Origin,
    ) -> Result<(), AllocError> {
        for (i, entry) in entries.iter().enumerate() {
            if entry.wants_memfd() {
                let named = Named::new(slots, i, entry);
                self.named.push(named)?;
            }
        }
        // Binding the slot of a single update finds by itself whether another slot is bound there.
        if origin == Origin::List && !self.named.is_empty() {
            self.find_bound(slots)?;
        }
        Ok(())
    }

    /// Returns the number of entries that name pages of a guest_memfd.
    pub(super) fn len(&self) -> usize {
        self.named
            .iter()
            .filter(|named| named.pages.is_ok())
            .count()
    }

    fn find(&self, entry: usize) -> Option<&Named> {
        let at = self
            .named
            .binary_search_by_key(&entry, |named| named.entry)
            .ok()?;
        self.named.get(at)
    }

    /// Returns the pages that entry number `entry` names.
    pub(super) fn pages(&self, entry: usize) -> Result<FilePages, check::Error> {
        self.find(entry).ok_or(check::Error::Invalid)?.pages
    }

    /// Returns the file that entry number `entry` names.
    pub(super) fn file(&self, entry: usize) -> Option<&MemfdFile> {
        self.find(entry)?.file.as_ref()
    }

    /// Returns the lowest slot in the file that is bound to any of `pages`, and the end of what it is
    /// bound to.
    pub(super) fn first_bound(&self, pages: FilePages) -> Option<(SlotId, u64)> {
        let (bound, order) = (&self.bound, &self.order);
        let before = |bound: &FilePages| (bound.file, bound.end) <= (pages.file, pages.start);
        let at = order.partition_point(|&i| before(&bound[i as usize].0));
        let &(found, slot) = bound.get(*order.get(at)? as usize)?;
        found.overlaps(pages).then_some((slot, found.end))
    }

    fn find_bound(&mut self, slots: &SlotsLocked<'_>) -> Result<(), AllocError> {
        for as_id in 0..slots.limits().address_spaces {
            for slot in slots.active(as_id).slots() {
                if let Some(pages) = bound_pages(slot) {
                    self.order.push(self.bound.len() as u32)?;
                    self.bound.push((pages, slot.id()))?;
                }
            }
        }
        let bound = &self.bound;
        self.order.sort_unstable_by_key(|&i| bound[i as usize].0);
        Ok(())
    }
}

impl Named {
    fn new(slots: &SlotsLocked<'_>, entry: usize, wanted: &Entry) -> Self {
        let mut this = Self {
            entry,
            pages: Err(check::Error::Invalid),
            file: None,
        };
        let Some(bytes) = wanted.memfd_range() else {
            return this;
        };
        let mut file = null_mut();
        // SAFETY: By the invariant of `Vm` the VM is not freed. `file` is there to be written to.
        let result = to_result(unsafe {
            bindings::kvm_memory_gmem_get(
                slots.as_ptr(),
                wanted.guest_memfd,
                bytes.start,
                wanted.memory_size >> PAGE_SHIFT,
                &raw mut file,
            )
        });
        match (result, NonNull::new(file)) {
            (Ok(()), Some(file)) => {
                this.pages = Ok(FilePages {
                    file: file.as_ptr().addr(),
                    start: bytes.start >> PAGE_SHIFT,
                    end: bytes.end >> PAGE_SHIFT,
                });
                // SAFETY: kvm_memory_gmem_get() has taken a reference for its caller.
                this.file = Some(unsafe { MemfdFile::from_raw(file) });
            }
            (Err(error), _) if error == EBADF => this.pages = Err(check::Error::BadFile),
            _ => {}
        }
        this
    }
}

/// Returns what `slot` is bound to, or [`None`] if that is nothing.
fn bound_pages(slot: Slot<'_>) -> Option<FilePages> {
    let mapping = slot.mapping();
    if !mapping.has_guest_memfd() {
        return None;
    }
    // SAFETY: By the invariant of `Slot` the slot is allocated. The binding of a slot in the lists
    // changes under slots_lock only, which the slot was found under.
    let (file, start) = unsafe {
        (
            bindings::kvm_memory_gmem_file(slot.as_ptr()),
            bindings::kvm_memory_gmem_pgoff(slot.as_ptr()),
        )
    };
    let file = NonNull::new(file)?;
    Some(FilePages {
        file: file.as_ptr().addr(),
        start,
        end: start.wrapping_add(mapping.npages()),
    })
}
