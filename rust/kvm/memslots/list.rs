// SPDX-License-Identifier: GPL-2.0-only

//! One of the two memslot lists of an address space (`struct kvm_memslots`).

use super::slot::Slot;
use super::types::SlotId;
use crate::types::GfnRange;
use crate::types::PAGE_SHIFT;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ptr::null_mut;
use core::ptr::NonNull;
use kernel::bindings;

/// A list, as those see it who hold `kvm->slots_lock`.
///
/// # Invariants
///
/// `list` points to one of the lists of a VM, which nobody changes during `'l` but through
/// [`Self::replace`]. Its slots stay allocated during `'l`.
#[derive(Clone, Copy)]
pub(super) struct List<'l> {
    list: *mut bindings::kvm_memslots,
    _borrow: PhantomData<&'l ()>,
}

impl<'l> List<'l> {
    /// # Safety
    ///
    /// `list` points to a list of a VM. Nobody changes it but through the result, nor frees slots
    /// in it, during the lifetime of the result.
    pub(super) unsafe fn from_raw(list: *mut bindings::kvm_memslots) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            list,
            _borrow: PhantomData,
        }
    }

    pub(super) fn as_ptr(self) -> *mut bindings::kvm_memslots {
        self.list
    }

    /// Slot `id`, which belongs to the address space of this list.
    pub(super) fn find(self, id: SlotId) -> Option<Slot<'l>> {
        // SAFETY: By the type invariant the list is valid and does not change meanwhile.
        let slot = unsafe { bindings::kvm_memory_find_id(self.list, id.id.into()) };
        // SAFETY: By the type invariant slots in the list stay allocated during `'l`. What a `Slot`
        // needs not to change is not written to while a slot is in a list.
        NonNull::new(slot).map(|slot| unsafe { Slot::from_raw(slot) })
    }

    /// The lowest slot that shares a frame with `gfns`.
    pub(super) fn first_in(self, gfns: GfnRange) -> Option<Slot<'l>> {
        if gfns.start >= gfns.end {
            return None;
        }
        // SAFETY: By the type invariant the list is valid and does not change meanwhile.
        let slot = unsafe { bindings::kvm_memory_find_gfn(self.list, gfns.start.0, gfns.end.0) };
        // SAFETY: By the type invariant slots in the list stay allocated during `'l`. What a `Slot`
        // needs not to change is not written to while a slot is in a list.
        NonNull::new(slot).map(|slot| unsafe { Slot::from_raw(slot) })
    }

    /// Puts `new` in the place of `old`; with one of them [`None`], adds or removes.
    ///
    /// # Safety
    ///
    /// No reader sees the list, and nobody else changes it. `old` is in it; `new` is not, and
    /// overlaps no slot that stays. Both belong to its address space. `new` stays allocated until
    /// it is replaced in its turn.
    pub(super) unsafe fn replace(self, old: Option<Slot<'_>>, new: Option<Slot<'_>>) {
        let list = self.list;
        // SAFETY: By the type invariant the list is valid, and the caller guarantees that it is
        // private to this call, that nodes of `old` are in its trees and those of `new` are not.
        // node_idx is 0 or 1 and never changes.
        unsafe {
            let i = (*list).node_idx as usize;
            let gfn_tree = &raw mut (*list).gfn_tree;

            if let Some(old) = old {
                bindings::kvm_memory_hash_del(list, old.as_ptr());
                self.forget(old);
            }
            if let Some(new) = new {
                let bytes = new.mapping().npages() << PAGE_SHIFT;
                let node = &raw mut (*new.as_ptr()).hva_node[i];
                (*node).start = new.mapping().hva.0 as usize;
                (*node).last = ((*node).start as u64).wrapping_add(bytes).wrapping_sub(1) as usize;
                bindings::kvm_memory_hash_add(list, new.as_ptr());
            }
            self.replace_hva_node(old, new);

            match (old, new) {
                (Some(old), Some(new)) if old.mapping().gfns.start == new.mapping().gfns.start => {
                    bindings::rb_replace_node(
                        &raw mut (*old.as_ptr()).gfn_node[i],
                        &raw mut (*new.as_ptr()).gfn_node[i],
                        gfn_tree,
                    );
                }
                _ => {
                    if let Some(old) = old {
                        bindings::rb_erase(&raw mut (*old.as_ptr()).gfn_node[i], gfn_tree);
                    }
                    if let Some(new) = new {
                        self.insert_by_gfn(new);
                    }
                }
            }
        }
    }

    /// Puts the hva node of `new`, whose range is set, in the place of that of `old`.
    ///
    /// # Safety
    ///
    /// What [`Self::replace`] asks for.
    unsafe fn replace_hva_node(self, old: Option<Slot<'_>>, new: Option<Slot<'_>>) {
        // SAFETY: By the type invariant the list is valid, and the caller guarantees that it is
        // private to this call, that nodes of `old` are in its trees and those of `new` are not.
        unsafe {
            let i = (*self.list).node_idx as usize;
            let tree = &raw mut (*self.list).hva_tree;
            let node = |slot: Slot<'_>| &raw mut (*slot.as_ptr()).hva_node[i];
            let (old, new) = (old.map(node), new.map(node));
            match (old, new) {
                // The same range has the same place, and makes the same of the nodes above it.
                (Some(old), Some(new))
                    if (*old).start == (*new).start && (*old).last == (*new).last =>
                {
                    (*new).__subtree_last = (*old).__subtree_last;
                    let (old, new) = (&raw mut (*old).rb, &raw mut (*new).rb);
                    if (*tree).rb_leftmost == old {
                        (*tree).rb_leftmost = new;
                    }
                    bindings::rb_replace_node(old, new, &raw mut (*tree).rb_root);
                }
                _ => {
                    if let Some(old) = old {
                        bindings::interval_tree_remove(old, tree);
                    }
                    if let Some(new) = new {
                        bindings::interval_tree_insert(new, tree);
                    }
                }
            }
        }
    }

    /// Makes look-ups by gfn not start with `slot`, which leaves the list.
    ///
    /// # Safety
    ///
    /// What [`Self::replace`] asks for.
    unsafe fn forget(self, slot: Slot<'_>) {
        // SAFETY: By the type invariant the list is valid, and the caller guarantees that nobody
        // else uses it.
        unsafe {
            let last_used = &raw mut (*self.list).last_used_slot.counter;
            if last_used.read() == slot.as_ptr() as i64 {
                last_used.write(0);
            }
        }
    }

    /// Adds `new` to the tree of gfns.
    ///
    /// # Safety
    ///
    /// What [`Self::replace`] asks for.
    unsafe fn insert_by_gfn(self, new: Slot<'_>) {
        let list = self.list;
        let gfn = new.mapping().gfns.start;
        // SAFETY: By the type invariant the list is valid, and the caller guarantees that it is
        // private to this call. All nodes in the tree are the `gfn_node[i]` of slots in the list,
        // which are allocated.
        unsafe {
            let i = (*list).node_idx as usize;
            let tree = &raw mut (*list).gfn_tree;
            let mut link = &raw mut (*tree).rb_node;
            let mut parent = null_mut();
            while !(*link).is_null() {
                parent = *link;
                let base = parent.byte_sub(offset_of!(bindings::kvm_memory_slot, gfn_node));
                let base = base.sub(i).cast::<bindings::kvm_memory_slot>();
                link = if gfn.0 < (*base).base_gfn {
                    &raw mut (*parent).rb_left
                } else {
                    &raw mut (*parent).rb_right
                };
            }
            let node = &raw mut (*new.as_ptr()).gfn_node[i];
            bindings::rb_link_node(node, parent, link);
            bindings::rb_insert_color(node, tree);
        }
    }
}

#[kernel::macros::kunit_tests(kvm_memory_list)]
mod tests {
    use super::*;
    use crate::memslots::slot::SlotBox;
    use crate::memslots::types::Mapping;
    use crate::memslots::types::SlotFlags;
    use crate::types::Gfn;
    use crate::types::Hva;
    use core::mem::MaybeUninit;
    use kernel::alloc::flags::GFP_KERNEL;
    use kernel::alloc::AllocError;
    use kernel::prelude::*;

    fn slot(id: u16, gfn: u64, npages: u64) -> Result<SlotBox, AllocError> {
        let mapping = Mapping {
            gfns: range(gfn, gfn + npages),
            hva: Hva(gfn << PAGE_SHIFT),
            flags: SlotFlags(0),
        };
        SlotBox::new(SlotId { as_id: 0, id }, mapping)
    }

    fn range(start: u64, end: u64) -> GfnRange {
        GfnRange {
            start: Gfn(start),
            end: Gfn(end),
        }
    }

    #[test]
    fn list_finds_by_id_and_by_gfn() -> Result {
        let mut raw: MaybeUninit<bindings::kvm_memslots> = MaybeUninit::zeroed();
        // SAFETY: An all-zero list is empty, and this one is private to the test.
        let list = unsafe { List::from_raw(raw.as_mut_ptr()) };
        let mut slots = KVec::new();
        // 300 slots of 2 pages every 4 frames, put in out of order.
        for i in 0..300u16 {
            let id = i * 77 % 300;
            let new = slot(id, u64::from(id) * 4, 2)?;
            // SAFETY: The list and the slots are private to this test, and the slots outlive the
            // list.
            unsafe { list.replace(None, Some(new.slot())) };
            slots.push(new, GFP_KERNEL)?;
        }
        for id in 0..300u16 {
            let base = u64::from(id) * 4;
            let found = list
                .find(SlotId { as_id: 0, id })
                .map(|slot| slot.mapping());
            assert_eq!(found.map(|found| found.gfns), Some(range(base, base + 2)));
            let at = |start, end| list.first_in(range(start, end)).map(|slot| slot.id().id);
            assert_eq!(at(base + 1, base + 2), Some(id));
            assert_eq!(at(base + 2, base + 4), None);
            assert_eq!(at(base, base), None);
        }
        assert_eq!(
            list.first_in(range(3, 2000)).map(|slot| slot.id().id),
            Some(1)
        );
        Ok(())
    }

    #[test]
    fn list_replaces_in_place_and_elsewhere() -> Result {
        let mut raw: MaybeUninit<bindings::kvm_memslots> = MaybeUninit::zeroed();
        // SAFETY: An all-zero list is empty, and this one is private to the test.
        let list = unsafe { List::from_raw(raw.as_mut_ptr()) };
        let (a, b) = (slot(1, 10, 2)?, slot(2, 20, 2)?);
        let (here, elsewhere) = (slot(1, 10, 2)?, slot(2, 5, 2)?);
        let id = |id| SlotId { as_id: 0, id };
        // SAFETY: The list and the slots are private to this test, and the slots outlive the list.
        unsafe {
            list.replace(None, Some(a.slot()));
            list.replace(None, Some(b.slot()));
            list.replace(Some(a.slot()), Some(here.slot()));
            list.replace(Some(b.slot()), Some(elsewhere.slot()));
        }
        assert!(list.find(id(1)) == Some(here.slot()));
        assert!(list.find(id(2)) == Some(elsewhere.slot()));
        assert!(list.first_in(range(20, 22)).is_none());
        assert!(list.first_in(range(0, 100)) == Some(elsewhere.slot()));
        // SAFETY: The list and the slots are private to this test.
        unsafe {
            list.replace(Some(here.slot()), None);
            list.replace(Some(elsewhere.slot()), None);
        }
        assert!(list.find(id(1)).is_none());
        assert!(list.first_in(range(0, 100)).is_none());
        Ok(())
    }
}
