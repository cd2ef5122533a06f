// SPDX-License-Identifier: GPL-2.0-only

//! The memslot lists of a VM, and the locks that make them safe to use.
//!
//! Each address space has two lists (`struct kvm_memslots`). Readers go through the active one under
//! `kvm->srcu`; updates are made to the inactive one, which [`ArchLocked::swap`] then makes the active
//! one. Each slot has two sets of nodes, so that it can be in both lists at once.
//!
//! # Who may do what
//!
//! * [`SlotsLocked`] stands for `kvm->slots_lock`. Whoever has it may look at both lists of every
//!   address space; nobody else changes them.
//! * [`ArchLocked`] stands for `kvm->slots_arch_lock` on top. It alone can change the list that is to
//!   be swapped in, and is used up by the swap, which drops the lock.
//! * The memory of a slot that a batch brings, or takes out, belongs to a [`SlotBox`].
//!
//! # Alternatives
//!
//! Borrowed references to slots (`&kvm_memory_slot`) are not made anywhere: vCPUs write to slots
//! through the same memory all the time (rmaps, huge page counters). A slot in a list is named by
//! [`Slot`], a pointer with accessors for what does not change while it is in a list.

use crate::check::{self, Limits};
use crate::types::{Change, Gfn, GfnRange, Hva, Mapping, SlotFlags, SlotId, PAGE_SHIFT};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::{addr_of_mut, null_mut, NonNull};
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::alloc::AllocError;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;

/// `KVM_MEMSLOT_INVALID`: page faults on the slot retry until it is gone.
const INVALID: u32 = bindings::KVM_MEMSLOT_INVALID;

// What the pure files spell out for themselves is what C says.
const _: () = {
    assert!(SlotFlags::LOG_DIRTY.0 == bindings::KVM_MEM_LOG_DIRTY_PAGES);
    assert!(SlotFlags::READONLY.0 == bindings::KVM_MEM_READONLY);
    assert!(SlotFlags::GUEST_MEMFD.0 == bindings::KVM_MEM_GUEST_MEMFD);
    assert!(PAGE_SHIFT as usize == kernel::page::PAGE_SHIFT);
};

/// A memslot that is in a list, or was taken out of one by the present batch.
///
/// # Invariants
///
/// Points to an initialised slot that stays allocated as long as `kvm->slots_lock` is held and the
/// batch has not turned it back into a [`SlotBox`]. Its base, size, address, flags and ids do not change
/// in that time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(NonNull<bindings::kvm_memory_slot>);

impl Slot {
    pub(crate) fn as_ptr(self) -> *mut bindings::kvm_memory_slot {
        self.0.as_ptr()
    }

    pub(crate) fn mapping(self) -> Mapping {
        let slot = self.as_ptr();
        // SAFETY: By the type invariant the slot is allocated and these fields do not change.
        let (base, npages, hva, flags) = unsafe {
            (
                (*slot).base_gfn,
                (*slot).npages,
                (*slot).userspace_addr,
                (*slot).flags,
            )
        };
        Mapping {
            gfns: GfnRange {
                start: Gfn(base),
                // No overflow: slots are checked before they are made.
                end: Gfn(base.wrapping_add(npages as u64)),
            },
            hva: Hva(hva as u64),
            flags: SlotFlags(flags),
        }
    }

    pub(crate) fn id(self) -> SlotId {
        let slot = self.as_ptr();
        // SAFETY: As in `mapping`.
        let (as_id, id) = unsafe { ((*slot).as_id, (*slot).id) };
        SlotId {
            as_id,
            id: id as u16,
        }
    }

    pub(crate) fn is_invalid(self) -> bool {
        self.mapping().flags.intersects(SlotFlags(INVALID))
    }

    pub(crate) fn logs_dirty(self) -> bool {
        self.mapping().flags.contains(SlotFlags::LOG_DIRTY)
    }

    /// The dirty bitmap, null if there is none.
    pub(crate) fn dirty_bitmap(self) -> *mut usize {
        // SAFETY: By the type invariant the slot is allocated. Its bitmap pointer is written only
        // under slots_lock.
        unsafe { (*self.as_ptr()).dirty_bitmap.cast() }
    }

    /// Gives this slot the architecture's data of `from`, which stands for the same memory.
    pub(crate) fn copy_arch(self, _arch: &ArchLocked<'_, '_>, from: Slot) {
        // SAFETY: Both slots are allocated by the type invariant. The architecture's data of a slot
        // changes under slots_arch_lock only, of which `_arch` is proof; what is reached through it
        // (counters, rmaps) is shared and not touched here.
        unsafe { (*self.as_ptr()).arch = (*from.as_ptr()).arch };
    }
}

/// Owns the memory of a slot, but not what hangs on it (bitmap, arch data, guest_memfd).
///
/// Whoever drops it sees to it that no list holds the slot and no reader sees it any more.
///
/// # Invariants
///
/// Points to an initialised slot, which [`Self::new`] allocated and nothing else frees. All accesses, those of C and
/// of vCPUs included, go through pointers derived from this one: no reference to the slot is ever made.
pub(crate) struct SlotBox(NonNull<bindings::kvm_memory_slot>);

impl SlotBox {
    /// A new slot that maps `mapping`, without bitmap and arch data.
    pub(crate) fn new(id: SlotId, mapping: Mapping) -> Result<Self, AllocError> {
        let slot = KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        let slot = NonNull::new(KBox::into_raw(slot)).ok_or(AllocError)?.cast();
        let ptr: *mut bindings::kvm_memory_slot = slot.as_ptr();
        // SAFETY: `ptr` is valid for writes. All-zero memory is a valid `kvm_memory_slot`.
        unsafe {
            (*ptr).as_id = id.as_id;
            (*ptr).id = id.id as i16;
            (*ptr).base_gfn = mapping.gfns.start.0;
            (*ptr).npages = mapping.npages() as usize;
            (*ptr).flags = mapping.flags.0;
            (*ptr).userspace_addr = mapping.hva.0 as usize;
        }
        // INVARIANT: Allocated and initialised just now.
        Ok(Self(slot))
    }

    /// A copy of `slot` that makes page faults retry. It shares bitmap and arch data with `slot`.
    pub(crate) fn invalid_copy(slot: Slot, arch: &ArchLocked<'_, '_>) -> Result<Self, AllocError> {
        let mut mapping = slot.mapping();
        mapping.flags = mapping.flags.union(SlotFlags(INVALID));
        let copy = Self::new(slot.id(), mapping)?;
        // SAFETY: The slots are allocated, and nobody else sees the copy yet.
        unsafe { (*copy.slot().as_ptr()).dirty_bitmap = slot.dirty_bitmap().cast() };
        copy.slot().copy_arch(arch, slot);
        Ok(copy)
    }

    /// Takes back a slot that was in a list.
    ///
    /// # Safety
    ///
    /// The slot is in no list, all readers that could have seen it are gone, and it is not used after
    /// this.
    pub(crate) unsafe fn from_slot(slot: Slot) -> Self {
        // INVARIANT: Slots are only ever made by `new`, and handed out by `into_slot`; the caller gives
        // up the last pointer to it.
        Self(slot.0)
    }

    /// Names the slot while it stays owned by `self`.
    pub(crate) fn slot(&self) -> Slot {
        // INVARIANT: By the type invariant the slot is initialised, and stays allocated while `self` exists.
        Slot(self.0)
    }

    /// Gives the slot to a list.
    pub(crate) fn into_slot(self) -> Slot {
        let slot = self.slot();
        core::mem::forget(self);
        slot
    }
}

impl Drop for SlotBox {
    fn drop(&mut self) {
        let slot = self.0.as_ptr().cast::<MaybeUninit<bindings::kvm_memory_slot>>();
        // SAFETY: By the type invariant `new` made this pointer of a box of the same type, and nothing else frees it.
        drop(unsafe { KBox::from_raw(slot) });
    }
}

/// The slots of the active lists by address space and id.
struct Index(KVVec<Option<Slot>>);

/// A VM whose `slots_lock` is held.
///
/// # Invariants
///
/// `kvm` is a live VM, and the current task holds its `slots_lock` for as long as this exists.
pub(crate) struct SlotsLocked<'a> {
    kvm: NonNull<bindings::kvm>,
    unlock: bool,
    limits: bindings::kvm_memory_limits,
    index: Option<Index>,
    _vm: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl<'vm> SlotsLocked<'vm> {
    /// Takes `slots_lock`.
    ///
    /// # Safety
    ///
    /// `kvm` points to a VM that lives for the lifetime of the result.
    pub(crate) unsafe fn lock(kvm: NonNull<bindings::kvm>) -> Self {
        // SAFETY: The VM is alive by the caller's promise, and the lock is held from here on.
        let mut this = unsafe {
            bindings::mutex_lock(addr_of_mut!((*kvm.as_ptr()).slots_lock));
            Self::assume_locked(kvm)
        };
        this.unlock = true;
        this
    }

    /// Takes `slots_lock`, and so waits for the update that is under way. Fails if a signal comes first.
    ///
    /// # Safety
    ///
    /// As for [`Self::lock`]. The current task is in no read section of the VM's SRCU.
    pub(crate) unsafe fn lock_interruptible(kvm: NonNull<bindings::kvm>) -> Result<Self> {
        // SAFETY: The VM is alive by the caller's promise, and the lock is held from here on.
        let mut this = unsafe {
            to_result(bindings::kvm_memory_lock_slots_interruptible(kvm.as_ptr()))?;
            Self::assume_locked(kvm)
        };
        this.unlock = true;
        Ok(this)
    }

    /// Stands for a lock that the caller took.
    ///
    /// # Safety
    ///
    /// `kvm` points to a VM that lives, and whose `slots_lock` the current task holds, for the lifetime
    /// of the result.
    pub(crate) unsafe fn assume_locked(kvm: NonNull<bindings::kvm>) -> Self {
        let mut limits = bindings::kvm_memory_limits::default();
        // SAFETY: The VM is alive by the caller's promise.
        unsafe { bindings::kvm_memory_get_limits(kvm.as_ptr(), &mut limits) };
        // INVARIANT: By the caller's promise.
        Self {
            kvm,
            unlock: false,
            limits,
            index: None,
            _vm: PhantomData,
            _task: NotThreadSafe,
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm {
        self.kvm.as_ptr()
    }

    /// The list of `as_id` that readers see.
    pub(crate) fn active(&self, as_id: u16) -> List {
        // SAFETY: The VM is alive, and its list pointers change under slots_lock only.
        List(unsafe { bindings::kvm_memory_active(self.as_ptr(), as_id.into()) })
    }

    /// The list of `as_id` that readers do not see.
    pub(crate) fn inactive(&self, as_id: u16) -> List {
        // SAFETY: As in `active`. node_idx is 0 or 1 and never changes.
        unsafe {
            let index = (*self.active(as_id).0).node_idx as usize ^ 1;
            List(addr_of_mut!(
                (*self.as_ptr()).__memslots[usize::from(as_id)][index]
            ))
        }
    }

    /// The slot `id` that readers see.
    ///
    /// Not to be used between publishing slots and the end of a batch.
    pub(crate) fn find(&self, id: SlotId) -> Option<Slot> {
        if id.as_id >= self.limits.address_spaces {
            return None;
        }
        match &self.index {
            None => self.active(id.as_id).find(id),
            Some(Index(slots)) => *slots.get(self.index_of(id))?,
        }
    }

    /// Where slot `id` stands in an [`Index`].
    fn index_of(&self, id: SlotId) -> usize {
        usize::from(id.as_id) * usize::from(self.limits.slots) + usize::from(id.id)
    }

    /// Makes [`Self::find`] take constant time, for a batch that looks up many slots: ids are hashed to
    /// so few buckets that a VM with thousands of slots has long chains.
    pub(crate) fn index_ids(&mut self) -> Result<(), AllocError> {
        let len = usize::from(self.limits.address_spaces) * usize::from(self.limits.slots);
        let mut index = KVVec::from_elem(None, len, GFP_KERNEL_ACCOUNT)?;
        for as_id in 0..self.limits.address_spaces {
            let mut rest = GfnRange {
                start: Gfn(0),
                end: Gfn(u64::MAX),
            };
            while let Some(slot) = self.active(as_id).first_in(rest) {
                if let Some(entry) = index.get_mut(self.index_of(slot.id())) {
                    *entry = Some(slot);
                }
                rest.start = slot.mapping().gfns.end;
            }
        }
        self.index = Some(Index(index));
        Ok(())
    }

    /// Takes `slots_arch_lock`.
    pub(crate) fn lock_arch(&self) -> ArchLocked<'_, 'vm> {
        // SAFETY: The VM is alive by the type invariant.
        unsafe { bindings::mutex_lock(addr_of_mut!((*self.as_ptr()).slots_arch_lock)) };
        ArchLocked { slots: self }
    }

    /// Puts `new` in the place of `old` in the inactive list of their address space; with one of them
    /// [`None`], adds or removes.
    ///
    /// # Safety
    ///
    /// `old` is in the list, `new` is not and overlaps none that stays. If the list is to be swapped in
    /// next, the caller has [`ArchLocked`].
    pub(crate) unsafe fn replace_in_inactive(&self, old: Option<Slot>, new: Option<Slot>) {
        let Some(slot) = old.or(new) else { return };
        // SAFETY: By the caller's promise; the list is inactive, and has been for a grace period.
        unsafe { self.inactive(slot.id().as_id).replace(old, new) };
    }

    /// Adds to the number of pages in all slots, modulo 2⁶⁴.
    pub(crate) fn add_pages(&self, npages: u64) {
        // SAFETY: The VM is alive, and the field is written under slots_lock only.
        unsafe {
            let nr_pages = addr_of_mut!((*self.as_ptr()).nr_memslot_pages);
            *nr_pages = (*nr_pages).wrapping_add(npages as usize);
        }
    }

    /// Adds to the number of slots that log dirty pages.
    pub(crate) fn add_logging(&self, slots: i32) {
        if slots == 0 {
            return;
        }
        // SAFETY: The VM is alive. vCPUs read the counter at any time, but it is written under slots_lock
        // only.
        unsafe {
            let counter = addr_of_mut!((*self.as_ptr()).nr_memslots_dirty_logging.counter);
            counter.write_volatile(counter.read_volatile() + slots);
        }
    }

    /// Counts a list of `entries` entries in the statistics of the VM.
    pub(crate) fn count_list(&self, entries: u64) {
        // SAFETY: The VM is alive. vCPUs do not count these; a user who clears them through debugfs may lose
        // a count to this.
        unsafe {
            (*self.as_ptr()).stat.memslot_list_calls += 1;
            (*self.as_ptr()).stat.memslot_list_entries += entries;
        }
    }

    /// The number of swaps of the VM so far.
    pub(crate) fn swaps(&self) -> u64 {
        // SAFETY: As in `count_list`.
        unsafe { (*self.as_ptr()).stat.memslot_swaps }
    }
}

impl Drop for SlotsLocked<'_> {
    fn drop(&mut self) {
        if self.unlock {
            // SAFETY: By the type invariant the current task holds the lock of a live VM.
            unsafe { bindings::mutex_unlock(addr_of_mut!((*self.as_ptr()).slots_lock)) };
        }
    }
}

impl check::View for SlotsLocked<'_> {
    fn limits(&self) -> Limits {
        let limits = &self.limits;
        Limits {
            address_spaces: limits.address_spaces,
            slots: limits.slots,
            user_slots: limits.user_slots,
            max_user_pages: limits.max_user_pages,
            flags: SlotFlags(limits.flags),
        }
    }

    fn nr_pages(&self) -> u64 {
        // SAFETY: The VM is alive, and the field written under slots_lock only.
        unsafe { (*self.as_ptr()).nr_memslot_pages as u64 }
    }

    fn slot(&self, id: SlotId) -> Option<Mapping> {
        Some(self.find(id)?.mapping())
    }

    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)> {
        let slot = self.active(as_id).first_in(gfns)?;
        Some((slot.id(), slot.mapping().gfns))
    }

    fn is_user_range(&self, hva: Hva, size: u64) -> bool {
        // SAFETY: Looks at nothing but the current task.
        unsafe { bindings::kvm_memory_is_user_range(hva.0, size) }
    }

    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        let npages = gfns.end.0 - gfns.start.0;
        // SAFETY: The VM is alive and its slots_lock held.
        to_result(unsafe {
            bindings::kvm_arch_check_memory_region(
                self.as_ptr(),
                gfns.start.0,
                npages as usize,
                match change {
                    Change::Move => bindings::kvm_mr_change_KVM_MR_MOVE,
                    _ => bindings::kvm_mr_change_KVM_MR_CREATE,
                },
            )
        })
        .is_ok()
    }
}

/// A VM whose `slots_lock` and `slots_arch_lock` are held.
///
/// # Invariants
///
/// The current task holds `slots_arch_lock` of the VM of `slots` for as long as this exists.
pub(crate) struct ArchLocked<'a, 'vm> {
    pub(crate) slots: &'a SlotsLocked<'vm>,
}

impl<'a, 'vm> ArchLocked<'a, 'vm> {
    /// Puts `new` in the place of `old` in the list that is to be swapped in.
    ///
    /// # Safety
    ///
    /// As for [`SlotsLocked::replace_in_inactive`].
    pub(crate) unsafe fn replace(&self, old: Option<Slot>, new: Option<Slot>) {
        // SAFETY: By the caller's promise.
        unsafe { self.slots.replace_in_inactive(old, new) };
    }

    /// Makes the inactive lists of the address spaces in `as_mask` the active ones, and waits until no
    /// reader sees the lists that were. Drops `slots_arch_lock` before it waits.
    pub(crate) fn swap(self, as_mask: u32) -> &'a SlotsLocked<'vm> {
        let slots = self.slots;
        let kvm = slots.as_ptr();
        let in_progress = 1 << 63;
        let spaces = || (0..u32::BITS as u16).filter(move |as_id| as_mask & (1 << as_id) != 0);

        for as_id in spaces() {
            let (active, inactive) = (slots.active(as_id), slots.inactive(as_id));
            // SAFETY: Both lists belong to the VM, and generations change under slots_lock only. Until
            // the grace period is over nobody may cache a translation, which the flag says.
            unsafe { (*inactive.0).generation = (*active.0).generation | in_progress };
        }
        // SAFETY: The VM is alive, its locks are held, and the inactive lists are complete.
        unsafe { bindings::kvm_memory_publish(kvm, as_mask as usize) };
        drop(self);
        // SAFETY: The VM is alive; no lock is held that is taken inside an SRCU read section.
        unsafe { bindings::synchronize_srcu_expedited(addr_of_mut!((*kvm).srcu)) };

        let address_spaces = u64::from(slots.limits.address_spaces);
        for as_id in spaces() {
            let list = slots.active(as_id).0;
            // SAFETY: As above. Generations of different address spaces must differ: space i of n uses
            // i, i + n, i + 2n and so on.
            unsafe {
                let generation = ((*list).generation & !in_progress).wrapping_add(address_spaces);
                bindings::kvm_arch_memslots_updated(kvm, generation);
                (*list).generation = generation;
                (*kvm).stat.memslot_swaps += 1;
                kvm_memslot_swap(as_id.into(), generation);
            }
        }
        slots
    }
}

impl Drop for ArchLocked<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the lock of a live VM.
        unsafe { bindings::mutex_unlock(addr_of_mut!((*self.slots.as_ptr()).slots_arch_lock)) };
    }
}

/// One of the two lists of an address space. Made from [`SlotsLocked`] only, and looked at as long as
/// that exists.
#[derive(Clone, Copy)]
pub(crate) struct List(*mut bindings::kvm_memslots);

impl List {
    /// Slot `id`, which belongs to the address space of this list.
    pub(crate) fn find(self, id: SlotId) -> Option<Slot> {
        // SAFETY: The list is valid and does not change, as slots_lock is held.
        let slot = unsafe { bindings::kvm_memory_find_id(self.0, id.id.into()) };
        // INVARIANT: Slots in a list stay allocated under slots_lock.
        NonNull::new(slot).map(Slot)
    }

    /// The lowest slot that shares a frame with `gfns`.
    pub(crate) fn first_in(self, gfns: GfnRange) -> Option<Slot> {
        if gfns.start >= gfns.end {
            return None;
        }
        // SAFETY: As in `find`.
        let slot = unsafe { bindings::kvm_memory_find_gfn(self.0, gfns.start.0, gfns.end.0) };
        // INVARIANT: As in `find`.
        NonNull::new(slot).map(Slot)
    }

    /// Puts `new` in the place of `old`; with one of them [`None`], adds or removes.
    ///
    /// # Safety
    ///
    /// No reader sees the list, and slots_lock is held. `old` is in the list, `new` is not and overlaps
    /// none that stays. Both belong to its address space.
    unsafe fn replace(self, old: Option<Slot>, new: Option<Slot>) {
        let list = self.0;
        // SAFETY: The list is valid and private to the caller. node_idx is 0 or 1.
        unsafe {
            let i = (*list).node_idx as usize;
            let gfn_tree = addr_of_mut!((*list).gfn_tree);

            if let Some(old) = old {
                bindings::kvm_memory_hash_del(list, old.as_ptr());
                self.forget(old);
            }
            if let Some(new) = new {
                let bytes = new.mapping().npages() << PAGE_SHIFT;
                let node = addr_of_mut!((*new.as_ptr()).hva_node[i]);
                (*node).start = new.mapping().hva.0 as usize;
                (*node).last = ((*node).start as u64).wrapping_add(bytes).wrapping_sub(1) as usize;
                bindings::kvm_memory_hash_add(list, new.as_ptr());
            }
            self.replace_hva_node(old, new);

            match (old, new) {
                (Some(old), Some(new)) if old.mapping().gfns.start == new.mapping().gfns.start => {
                    bindings::rb_replace_node(
                        addr_of_mut!((*old.as_ptr()).gfn_node[i]),
                        addr_of_mut!((*new.as_ptr()).gfn_node[i]),
                        gfn_tree,
                    );
                }
                _ => {
                    if let Some(old) = old {
                        bindings::rb_erase(addr_of_mut!((*old.as_ptr()).gfn_node[i]), gfn_tree);
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
    /// As for [`Self::replace`].
    unsafe fn replace_hva_node(self, old: Option<Slot>, new: Option<Slot>) {
        // SAFETY: The list is valid and private to the caller. Nodes of `old` are in its trees, those of
        // `new` are not.
        unsafe {
            let i = (*self.0).node_idx as usize;
            let tree = addr_of_mut!((*self.0).hva_tree);
            let node = |slot: Slot| addr_of_mut!((*slot.as_ptr()).hva_node[i]);
            let (old, new) = (old.map(node), new.map(node));
            match (old, new) {
                // The same range has the same place, and makes the same of the nodes above it.
                (Some(old), Some(new))
                    if (*old).start == (*new).start && (*old).last == (*new).last =>
                {
                    (*new).__subtree_last = (*old).__subtree_last;
                    let (old, new) = (addr_of_mut!((*old).rb), addr_of_mut!((*new).rb));
                    if (*tree).rb_leftmost == old {
                        (*tree).rb_leftmost = new;
                    }
                    bindings::rb_replace_node(old, new, addr_of_mut!((*tree).rb_root));
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
    /// As for [`Self::replace`].
    unsafe fn forget(self, slot: Slot) {
        // SAFETY: The list is valid and private to the caller.
        unsafe {
            let last_used = addr_of_mut!((*self.0).last_used_slot.counter);
            if last_used.read() == slot.as_ptr() as i64 {
                last_used.write(0);
            }
        }
    }

    /// Adds `new` to the tree of gfns.
    ///
    /// # Safety
    ///
    /// As for [`Self::replace`].
    unsafe fn insert_by_gfn(self, new: Slot) {
        let list = self.0;
        let gfn = new.mapping().gfns.start;
        // SAFETY: The list is valid and private to the caller. All nodes in the tree are the
        // `gfn_node[i]` of slots in the list.
        unsafe {
            let i = (*list).node_idx as usize;
            let tree = addr_of_mut!((*list).gfn_tree);
            let mut link = addr_of_mut!((*tree).rb_node);
            let mut parent = null_mut();
            while !(*link).is_null() {
                parent = *link;
                let base =
                    parent.byte_sub(core::mem::offset_of!(bindings::kvm_memory_slot, gfn_node));
                let base = base.sub(i).cast::<bindings::kvm_memory_slot>();
                link = if gfn.0 < (*base).base_gfn {
                    addr_of_mut!((*parent).rb_left)
                } else {
                    addr_of_mut!((*parent).rb_right)
                };
            }
            let node = addr_of_mut!((*new.as_ptr()).gfn_node[i]);
            bindings::rb_link_node(node, parent, link);
            bindings::rb_insert_color(node, tree);
        }
    }
}

kernel::tracepoint::declare_trace! {
    /// A list was made the active one.
    unsafe fn kvm_memslot_swap(as_id: u32, generation: u64);
    /// A batch is done, or has failed.
    pub(crate) unsafe fn kvm_memslot_batch(entries: u32, changes: u32, swaps: u32, error: i32);
}

#[kernel::macros::kunit_tests(kvm_memory_slots)]
mod tests {
    use super::*;

    fn slot(id: u16, gfn: u64, npages: u64) -> Result<SlotBox, AllocError> {
        let id = SlotId { as_id: 0, id };
        let gfns = GfnRange {
            start: Gfn(gfn),
            end: Gfn(gfn + npages),
        };
        let mapping = Mapping {
            gfns,
            hva: Hva(gfn << PAGE_SHIFT),
            flags: SlotFlags(0),
        };
        SlotBox::new(id, mapping)
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
        let list = List(raw.as_mut_ptr());
        let mut slots = KVec::new();
        // 300 slots of 2 pages every 4 frames, put in out of order.
        for i in 0..300u16 {
            let id = i * 77 % 300;
            let new = slot(id, u64::from(id) * 4, 2)?;
            // SAFETY: The list and the slots are private to this test.
            unsafe { list.replace(None, Some(new.slot())) };
            slots.push(new, GFP_KERNEL_ACCOUNT)?;
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
        let list = List(raw.as_mut_ptr());
        let (a, b) = (slot(1, 10, 2)?, slot(2, 20, 2)?);
        let (here, elsewhere) = (slot(1, 10, 2)?, slot(2, 5, 2)?);
        let id = |id| SlotId { as_id: 0, id };
        // SAFETY: The list and the slots are private to this test.
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
        // SAFETY: As above.
        unsafe {
            list.replace(Some(here.slot()), None);
            list.replace(Some(elsewhere.slot()), None);
        }
        assert!(list.find(id(1)).is_none());
        assert!(list.first_in(range(0, 100)).is_none());
        Ok(())
    }
}
