// SPDX-License-Identifier: GPL-2.0-only

//! One of the two memslot lists of an address space (`struct kvm_memslots`).

use super::{
    slot::Slot,
    types::SlotId, //
};

use crate::types::{
    Gfn,
    GfnRange,
    PAGE_SHIFT, //
};

use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

use kernel::bindings;

/// A list that does not change during `'l`, except by [`Self::replace`]: it borrows from
/// `kvm->slots_lock`.
///
/// # Invariants
///
/// `list` points to one of the lists of a VM. During `'l` only [`Self::replace`] changes it, and its
/// slots are not freed.
#[derive(Clone, Copy)]
pub(super) struct List<'l> {
    list: *mut bindings::kvm_memslots,
    _borrow: PhantomData<&'l ()>,
}

impl<'l> List<'l> {
    /// # Safety
    ///
    /// `list` points to a list of a VM. During the lifetime of the result, it changes only through
    /// the result, and nobody frees slots in it.
    pub(super) unsafe fn from_raw(list: *mut bindings::kvm_memslots) -> Self {
        // INVARIANT: The caller guarantees that the list is valid, changes only through the result,
        // and that its slots are not freed.
        Self {
            list,
            _borrow: PhantomData,
        }
    }

    pub(super) fn as_ptr(self) -> *mut bindings::kvm_memslots {
        self.list
    }

    /// Returns slot `id` of this list's address space, or [`None`] if there is none.
    pub(super) fn find(self, id: SlotId) -> Option<Slot<'l>> {
        // SAFETY: By the type invariant the list is valid, and does not change during the call.
        let slot = unsafe { bindings::kvm_memory_find_id(self.list, id.id.into()) };
        // SAFETY: By the type invariant slots in the list are not freed during `'l`. The fields that
        // the invariant of `Slot` names are not written while a slot is in a list.
        NonNull::new(slot).map(|slot| unsafe { Slot::from_raw(slot) })
    }

    /// Returns the lowest slot that shares a frame with `gfns`, or [`None`] if there is none.
    pub(super) fn first_in(self, gfns: GfnRange) -> Option<Slot<'l>> {
        if gfns.start >= gfns.end {
            return None;
        }
        // SAFETY: By the type invariant the list is valid, and does not change during the call.
        let slot = unsafe { bindings::kvm_memory_find_gfn(self.list, gfns.start.0, gfns.end.0) };
        // SAFETY: By the type invariant slots in the list are not freed during `'l`. The fields that
        // the invariant of `Slot` names are not written while a slot is in a list.
        NonNull::new(slot).map(|slot| unsafe { Slot::from_raw(slot) })
    }

    /// Returns the slots, in the order of frames.
    pub(super) fn slots(self) -> impl Iterator<Item = Slot<'l>> {
        let mut rest = GfnRange {
            start: Gfn(0),
            end: Gfn(u64::MAX),
        };
        core::iter::from_fn(move || {
            let slot = self.first_in(rest)?;
            rest.start = slot.mapping().gfns.end;
            Some(slot)
        })
    }

    /// Replaces `old` with `new`. Adds `new` if `old` is [`None`], removes `old` if `new` is.
    ///
    /// # Safety
    ///
    /// No reader sees the list, and nobody else changes it. `old` is in the list. `new` is not, and
    /// overlaps no slot that stays. Both belong to the list's address space. `new` is not freed
    /// before it is replaced in turn.
    pub(super) unsafe fn replace(self, old: Option<Slot<'_>>, new: Option<Slot<'_>>) {
        let list = self.list;
        // SAFETY: By the type invariant the list is valid. The caller guarantees that nobody else
        // uses it, that the nodes of `old` are in its trees, and that those of `new` are not.
        // node_idx is 0 or 1, and never changes.
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

    /// Replaces the hva node of `old` with that of `new`, whose range is set already.
    ///
    /// # Safety
    ///
    /// The caller's duties are those of [`Self::replace`].
    unsafe fn replace_hva_node(self, old: Option<Slot<'_>>, new: Option<Slot<'_>>) {
        // SAFETY: By the type invariant the list is valid. The caller guarantees that nobody else
        // uses it, that the nodes of `old` are in its trees, and that those of `new` are not.
        unsafe {
            let i = (*self.list).node_idx as usize;
            let tree = &raw mut (*self.list).hva_tree;
            let node = |slot: Slot<'_>| &raw mut (*slot.as_ptr()).hva_node[i];
            let (old, new) = (old.map(node), new.map(node));
            match (old, new) {
                // With the same range, the node's place and the ranges of its ancestors stay valid.
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

    /// Clears the list's cache of the last look-up by gfn if it is `slot`, which leaves the list.
    ///
    /// # Safety
    ///
    /// The caller's duties are those of [`Self::replace`].
    unsafe fn forget(self, slot: Slot<'_>) {
        // SAFETY: By the type invariant the list is valid. The caller guarantees that nobody else
        // uses it, so that the cache need not be accessed atomically.
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
    /// The caller's duties are those of [`Self::replace`].
    unsafe fn insert_by_gfn(self, new: Slot<'_>) {
        let list = self.list;
        let gfn = new.mapping().gfns.start;
        // SAFETY: By the type invariant the list is valid, and its slots are not freed. The caller
        // guarantees that nobody else uses it. Each node in the tree is the `gfn_node[i]` of a slot
        // in the list.
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

    use crate::{
        memslots::{
            slot::SlotBox,
            types::{
                Mapping,
                SlotFlags, //
            }, //
        },
        types::Hva, //
    };

    use core::mem::MaybeUninit;

    use kernel::{
        alloc::{
            flags::GFP_KERNEL,
            AllocError, //
        },
        prelude::*, //
    };

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
        // SAFETY: An all-zero list is valid and empty. Only this test uses it, and the slots outlive
        // it.
        let list = unsafe { List::from_raw(raw.as_mut_ptr()) };
        let mut slots = KVec::new();
        // 300 slots of 2 pages, at every 4th frame, added out of order.
        for i in 0..300u16 {
            let id = i * 77 % 300;
            let new = slot(id, u64::from(id) * 4, 2)?;
            // SAFETY: Only this test uses the list and the slots, which do not overlap and outlive
            // the list. `new` is in no list.
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
        // SAFETY: An all-zero list is valid and empty. Only this test uses it, and the slots outlive
        // it.
        let list = unsafe { List::from_raw(raw.as_mut_ptr()) };
        let (a, b) = (slot(1, 10, 2)?, slot(2, 20, 2)?);
        let (here, elsewhere) = (slot(1, 10, 2)?, slot(2, 5, 2)?);
        let id = |id| SlotId { as_id: 0, id };
        // SAFETY: Only this test uses the list and the slots, which outlive the list. What a
        // call removes was added by an earlier one; what it adds overlaps nothing in the list.
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
        // SAFETY: Only this test uses the list, and both slots are in it.
        unsafe {
            list.replace(Some(here.slot()), None);
            list.replace(Some(elsewhere.slot()), None);
        }
        assert!(list.find(id(1)).is_none());
        assert!(list.first_in(range(0, 100)).is_none());
        Ok(())
    }
}
