// SPDX-License-Identifier: GPL-2.0-only

//! The locks of a VM's memslots, as proof of what their holder may do.
//!
//! Each address space has two lists. Readers go through the active one under `kvm->srcu`; updates
//! are made to the inactive one, which [`ArchLocked::swap`] then makes the active one. Each slot
//! has two sets of nodes, so that it can be in both lists at once.
//!
//! * [`SlotsLocked`] stands for `kvm->slots_lock`. Its holder may look at both lists of every
//!   address space; nobody else changes them. Slots and lists borrow from it.
//! * [`ArchLocked`] stands for `kvm->slots_arch_lock` on top. It alone can change the list that
//!   will be swapped in, and is used up by the swap, which drops the lock.
//!
//! A slot cannot be used once its lock is dropped:
//!
//! ```compile_fail
//! # use crate::memslots::locked::SlotsLocked;
//! # fn example(slots: SlotsLocked<'_>, id: SlotId) -> Option<Mapping> {
//! let slot = slots.find(id)?;
//! drop(slots); // error[E0505]: cannot move out of `slots` because it is borrowed
//! Some(slot.mapping())
//! # }
//! ```

use super::check::Limits;
use super::check::View;
use super::list::List;
use super::slot::Slot;
use super::types::Change;
use super::types::Mapping;
use super::types::SlotFlags;
use super::types::SlotId;
use crate::types::Gfn;
use crate::types::GfnRange;
use crate::types::Hva;
use crate::vm::Vm;
use core::ptr::null_mut;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::alloc::AllocError;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::Atomic;
use kernel::sync::atomic::Relaxed;
use kernel::sync::lock::mutex::MutexBackend;
use kernel::sync::lock::Guard;
use kernel::sync::lock::Lock;
use kernel::types::NotThreadSafe;

/// Nobody may cache what a list with this flag in its generation says.
const UPDATE_IN_PROGRESS: u64 = 1 << bindings::KVM_MEMORY_GEN_UPDATE_BIT;

impl Change {
    pub(super) fn as_kvm_mr_change(self) -> bindings::kvm_mr_change {
        match self {
            Change::Create => bindings::kvm_mr_change_KVM_MR_CREATE,
            Change::Delete => bindings::kvm_mr_change_KVM_MR_DELETE,
            Change::Move => bindings::kvm_mr_change_KVM_MR_MOVE,
            // The architecture is not told of slots that stay as they are.
            Change::FlagsOnly | Change::Nothing => bindings::kvm_mr_change_KVM_MR_FLAGS_ONLY,
        }
    }
}

/// A VM whose `slots_lock` is held.
///
/// # Invariants
///
/// The current task holds `slots_lock` of `vm` for as long as this exists.
pub(crate) struct SlotsLocked<'vm> {
    vm: Vm<'vm>,
    limits: bindings::kvm_memory_limits,
    /// Drops the lock, unless C does that.
    _guard: Option<Guard<'vm, (), MutexBackend>>,
    _task: NotThreadSafe,
}

impl<'vm> SlotsLocked<'vm> {
    /// Takes `slots_lock`.
    pub(crate) fn lock(vm: Vm<'vm>) -> Self {
        // SAFETY: The lock is initialised and lives as long as the VM.
        let lock = unsafe { Lock::from_raw(&raw mut (*vm.as_ptr()).slots_lock) };
        let guard = lock.lock();
        // SAFETY: The lock was taken above, and is held as long as the guard exists.
        unsafe { Self::new(vm, Some(guard)) }
    }

    /// Takes `slots_lock`, and so waits for the update that is under way: not for a reader of the
    /// VM's SRCU, which the update waits for. Fails if a signal comes first.
    pub(crate) fn lock_interruptible(vm: Vm<'vm>) -> Result<Self> {
        // SAFETY: The VM lives.
        to_result(unsafe { bindings::kvm_memory_lock_slots_interruptible(vm.as_ptr()) })?;
        // SAFETY: The lock is initialised, lives as long as the VM, and is ours to drop, as it was
        // taken above.
        let guard = unsafe {
            let lock: &Lock<(), MutexBackend> = Lock::from_raw(&raw mut (*vm.as_ptr()).slots_lock);
            Guard::new(lock, ())
        };
        // SAFETY: The lock was taken above, and is held as long as the guard exists.
        Ok(unsafe { Self::new(vm, Some(guard)) })
    }

    /// Stands for a lock that the caller took.
    ///
    /// # Safety
    ///
    /// The current task holds `slots_lock` of `vm` for as long as the result exists.
    pub(crate) unsafe fn assume_locked(vm: Vm<'vm>) -> Self {
        // SAFETY: The caller guarantees that the lock is held.
        unsafe { Self::new(vm, None) }
    }

    /// # Safety
    ///
    /// The current task holds `slots_lock` of `vm` for as long as the result exists.
    unsafe fn new(vm: Vm<'vm>, guard: Option<Guard<'vm, (), MutexBackend>>) -> Self {
        let mut limits = bindings::kvm_memory_limits::default();
        // SAFETY: The VM lives, and its lock is held.
        unsafe { bindings::kvm_memory_get_limits(vm.as_ptr(), &mut limits) };
        // INVARIANT: The caller guarantees it.
        Self {
            vm,
            limits,
            _guard: guard,
            _task: NotThreadSafe,
        }
    }

    pub(super) fn vm(&self) -> Vm<'vm> {
        self.vm
    }

    fn as_ptr(&self) -> *mut bindings::kvm {
        self.vm.as_ptr()
    }

    pub(super) fn address_spaces(&self) -> u16 {
        self.limits.address_spaces
    }

    /// The list of `as_id` that readers see.
    pub(super) fn active(&self, as_id: u16) -> List<'_> {
        // SAFETY: The VM lives, and its list pointers change under slots_lock only.
        let list = unsafe { bindings::kvm_memory_active(self.as_ptr(), as_id.into()) };
        // SAFETY: Lists change, and slots in them are freed, under slots_lock only, by a batch. It
        // borrows `SlotsLocked` mutably (`batch::run`), so nobody outside of it has a list then; and
        // it drops what it looked up itself before it changes anything (`batch::carry_out`).
        unsafe { List::from_raw(list) }
    }

    /// The list of `as_id` that readers do not see.
    pub(super) fn inactive(&self, as_id: u16) -> List<'_> {
        let active = self.active(as_id).as_ptr();
        // SAFETY: The VM and its lists live. node_idx is 0 or 1, and never changes.
        let list = unsafe {
            let index = (*active).node_idx as usize ^ 1;
            &raw mut (*self.as_ptr()).__memslots[usize::from(as_id)][index]
        };
        // SAFETY: As in `active`: a batch changes the list and frees its slots, and nobody has a list
        // then but `changes.rs`, which keeps none from one step to the next.
        unsafe { List::from_raw(list) }
    }

    /// The slot `id` that readers see.
    pub(super) fn find(&self, id: SlotId) -> Option<Slot<'_>> {
        if id.as_id >= self.limits.address_spaces {
            return None;
        }
        self.active(id.as_id).find(id)
    }

    /// Takes `slots_arch_lock`.
    pub(super) fn lock_arch(&self) -> ArchLocked<'_, 'vm> {
        // SAFETY: The lock is initialised and lives as long as the VM.
        let lock = unsafe { Lock::from_raw(&raw mut (*self.as_ptr()).slots_arch_lock) };
        // INVARIANT: The guard holds the lock.
        ArchLocked {
            slots: self,
            _guard: lock.lock(),
        }
    }

    /// Removes all that the second-level page tables have of the slots `olds`, which readers see as
    /// INVALID: nothing new can be put there.
    pub(super) fn flush<'s>(&self, olds: impl Iterator<Item = Slot<'s>>) {
        let kvm = self.as_ptr();
        // SAFETY: The VM lives.
        let is_global = unsafe { bindings::kvm_arch_flush_shadow_is_global(kvm) };
        let mut flushed = false;
        for old in olds {
            let memfd = old.mapping().flags.contains(SlotFlags::GUEST_MEMFD);
            // A flush of everything is enough once, but for what hangs on a guest_memfd.
            if !flushed || memfd || !is_global {
                // SAFETY: The VM lives, slots_lock is held, and the slot is allocated.
                unsafe { bindings::kvm_arch_flush_shadow_memslot(kvm, old.as_ptr()) };
                flushed = true;
            }
        }
        // SAFETY: The VM lives.
        unsafe { bindings::kvm_arch_guest_memory_reclaimed(kvm) };
    }

    /// Counts the slots that log, for one change, and tells the architecture. `old` is in no list.
    pub(super) fn commit(&self, old: Option<Slot<'_>>, new: Option<Slot<'_>>, change: Change) {
        let logs = |slot: Option<Slot<'_>>| i32::from(slot.is_some_and(Slot::logs_dirty));
        self.add_logging(logs(new) - logs(old));

        let ptr = |slot: Option<Slot<'_>>| slot.map_or(null_mut(), Slot::as_ptr);
        // SAFETY: The VM lives, slots_lock is held, and the slots are allocated.
        unsafe {
            bindings::kvm_arch_commit_memory_region(
                self.as_ptr(),
                ptr(old),
                ptr(new),
                change.as_kvm_mr_change(),
            )
        };
    }

    /// Adds to the number of pages in all slots, modulo 2⁶⁴.
    pub(super) fn add_pages(&self, npages: u64) {
        // SAFETY: The VM lives, and the field is written under slots_lock only.
        unsafe {
            let nr_pages = &raw mut (*self.as_ptr()).nr_memslot_pages;
            *nr_pages = (*nr_pages).wrapping_add(npages as usize);
        }
    }

    /// Adds to the number of slots that log dirty pages.
    pub(super) fn add_logging(&self, slots: i32) {
        if slots == 0 {
            return;
        }
        // SAFETY: The VM lives. C accesses the counter as an atomic_t.
        let counter = unsafe {
            Atomic::from_ptr(&raw mut (*self.as_ptr()).nr_memslots_dirty_logging.counter)
        };
        counter.add(slots, Relaxed);
    }

    /// Counts a list of `entries` entries in the statistics of the VM.
    pub(super) fn count_list(&self, entries: u64) {
        // SAFETY: The VM lives. vCPUs do not count these; a user who clears them through debugfs
        // may lose a count to this.
        unsafe {
            (*self.as_ptr()).stat.memslot_list_calls += 1;
            (*self.as_ptr()).stat.memslot_list_entries += entries;
        }
    }

    /// Tells tracing of a batch that is done, or has failed.
    pub(super) fn trace_batch(&self, entries: usize, changes: usize, swaps: u64, result: Result) {
        let error = result.err().map_or(0, |error| error.to_errno());
        // SAFETY: The tracepoint takes plain values.
        unsafe { kvm_memslot_batch(entries as u32, changes as u32, swaps as u32, error) };
    }

    /// The number of swaps of the VM so far.
    pub(super) fn swaps(&self) -> u64 {
        // SAFETY: The VM lives. Swaps are counted under slots_lock only.
        unsafe { (*self.as_ptr()).stat.memslot_swaps }
    }
}

/// The slots of a VM, for a batch that looks up many: ids are hashed to so few buckets that a VM
/// with thousands of slots has long chains.
pub(super) struct Slots<'a, 'vm> {
    pub(super) locked: &'a SlotsLocked<'vm>,
    /// By address space and id, if there is one.
    index: KVVec<Option<Slot<'a>>>,
}

impl<'a, 'vm> Slots<'a, 'vm> {
    /// `indexed`: with look-ups by id in constant time, which takes one pass over all slots.
    pub(super) fn new(locked: &'a SlotsLocked<'vm>, indexed: bool) -> Result<Self, AllocError> {
        let mut this = Self {
            locked,
            index: KVVec::new(),
        };
        if !indexed {
            return Ok(this);
        }
        let len = usize::from(locked.limits.address_spaces) * usize::from(locked.limits.slots);
        this.index = KVVec::from_elem(None, len, GFP_KERNEL_ACCOUNT)?;
        for as_id in 0..locked.limits.address_spaces {
            let mut rest = GfnRange {
                start: Gfn(0),
                end: Gfn(u64::MAX),
            };
            while let Some(slot) = locked.active(as_id).first_in(rest) {
                let at = this.index_of(slot.id());
                if let Some(entry) = this.index.get_mut(at) {
                    *entry = Some(slot);
                }
                rest.start = slot.mapping().gfns.end;
            }
        }
        Ok(this)
    }

    fn index_of(&self, id: SlotId) -> usize {
        usize::from(id.as_id) * usize::from(self.locked.limits.slots) + usize::from(id.id)
    }

    /// The slot `id` that readers see.
    pub(super) fn find(&self, id: SlotId) -> Option<Slot<'a>> {
        if self.index.is_empty() {
            return self.locked.find(id);
        }
        if id.as_id >= self.locked.limits.address_spaces || id.id >= self.locked.limits.slots {
            return None;
        }
        *self.index.get(self.index_of(id))?
    }
}

impl View for Slots<'_, '_> {
    fn limits(&self) -> Limits {
        let limits = &self.locked.limits;
        Limits {
            address_spaces: limits.address_spaces,
            slots: limits.slots,
            user_slots: limits.user_slots,
            max_user_pages: limits.max_user_pages,
            flags: SlotFlags(limits.flags),
        }
    }

    fn nr_pages(&self) -> u64 {
        // SAFETY: The VM lives, and the field is written under slots_lock only.
        unsafe { (*self.locked.as_ptr()).nr_memslot_pages as u64 }
    }

    fn slot(&self, id: SlotId) -> Option<Mapping> {
        Some(self.find(id)?.mapping())
    }

    fn first_in(&self, as_id: u16, gfns: GfnRange) -> Option<(SlotId, GfnRange)> {
        let slot = self.locked.active(as_id).first_in(gfns)?;
        Some((slot.id(), slot.mapping().gfns))
    }

    fn is_user_range(&self, hva: Hva, size: u64) -> bool {
        // SAFETY: The function looks at nothing but the current task.
        unsafe { bindings::kvm_memory_is_user_range(hva.0, size) }
    }

    fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        self.locked.arch_allows(change, gfns)
    }
}

impl SlotsLocked<'_> {
    /// Whether the architecture lets `gfns` be the target of `change` (CREATE or MOVE).
    pub(super) fn arch_allows(&self, change: Change, gfns: GfnRange) -> bool {
        let npages = gfns.end.0 - gfns.start.0;
        // SAFETY: The VM lives, and its slots_lock is held.
        to_result(unsafe {
            bindings::kvm_arch_check_memory_region(
                self.as_ptr(),
                gfns.start.0,
                npages as usize,
                change.as_kvm_mr_change(),
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
pub(super) struct ArchLocked<'a, 'vm> {
    pub(super) slots: &'a SlotsLocked<'vm>,
    _guard: Guard<'a, (), MutexBackend>,
}

impl<'a, 'vm> ArchLocked<'a, 'vm> {
    /// Makes the inactive lists of the address spaces in `as_mask` the active ones, and waits until
    /// no reader sees the lists that were. Drops `slots_arch_lock` before it waits.
    pub(super) fn swap(self, as_mask: u32) -> &'a SlotsLocked<'vm> {
        let slots = self.slots;
        let kvm = slots.as_ptr();
        let spaces = || (0..u32::BITS as u16).filter(move |as_id| as_mask & (1 << as_id) != 0);

        for as_id in spaces() {
            let (active, inactive) = (slots.active(as_id), slots.inactive(as_id));
            // SAFETY: Both lists belong to the VM, and generations change under slots_lock only.
            // Until the grace period is over nobody may cache a translation, which the flag says.
            unsafe {
                (*inactive.as_ptr()).generation =
                    (*active.as_ptr()).generation | UPDATE_IN_PROGRESS;
            }
        }
        // SAFETY: The VM lives, its locks are held, and the inactive lists are complete.
        unsafe { bindings::kvm_memory_publish(kvm, as_mask as usize) };
        drop(self);
        // SAFETY: The VM lives. slots_lock, which is held, is never taken inside of a read section.
        unsafe { bindings::synchronize_srcu_expedited(&raw mut (*kvm).srcu) };

        let address_spaces = u64::from(slots.limits.address_spaces);
        for as_id in spaces() {
            let list = slots.active(as_id).as_ptr();
            // SAFETY: The list belongs to the VM, which lives; generations and the statistic change
            // under slots_lock only. Generations of different address spaces must differ: space i
            // of n uses i, i + n, i + 2n and so on.
            unsafe {
                let generation =
                    ((*list).generation & !UPDATE_IN_PROGRESS).wrapping_add(address_spaces);
                bindings::kvm_arch_memslots_updated(kvm, generation);
                (*list).generation = generation;
                (*kvm).stat.memslot_swaps += 1;
                kvm_memslot_swap(as_id.into(), generation);
            }
        }
        slots
    }
}

kernel::tracepoint::declare_trace! {
    /// A list was made the active one.
    unsafe fn kvm_memslot_swap(as_id: u32, generation: u64);
    /// A batch is done, or has failed.
    unsafe fn kvm_memslot_batch(entries: u32, changes: u32, swaps: u32, error: i32);
}
