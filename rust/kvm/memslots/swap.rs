// SPDX-License-Identifier: GPL-2.0-only

//! The two memslot lists of each address space, and the swap that publishes the inactive one.
//!
//! Readers use the active list under `kvm->srcu`. Updates change the inactive list, which
//! [`ArchLocked::swap`] then makes the active one. Each slot has two sets of nodes, so that it can
//! be in both lists at once.
//!
//! Lists and slots borrow from [`SlotsLocked`]. No slot can be used after its lock is dropped
//! (`tools/kvm/build/kernel.sh` compiles this as a function of this file):
//!
//! ```compile_fail
//! # use crate::memslots::types::Mapping;
//! # fn example(slots: SlotsLocked<'_>, id: SlotId) -> Option<Mapping> {
//! let slot = slots.find(id)?;
//! drop(slots); // error[E0505]: cannot move out of `slots` because it is borrowed
//! Some(slot.mapping())
//! # }
//! ```

use super::{
    list::List,
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    slot::Slot,
    types::{
        SlotId,
        Spaces, //
    }, //
};

use kernel::bindings;

/// The flag in a list's generation that forbids caching what was looked up in the list.
const UPDATE_IN_PROGRESS: u64 = 1 << bindings::KVM_MEMORY_GEN_UPDATE_BIT;

impl SlotsLocked<'_> {
    /// Returns the list of `as_id` that readers see.
    pub(super) fn active(&self, as_id: u16) -> List<'_> {
        // SAFETY: By the invariant of `Vm` the VM is initialised and not freed, and its list
        // pointers change under slots_lock only, which `self` proves to be held.
        let list = unsafe { bindings::kvm_memory_active(self.as_ptr(), as_id.into()) };
        // SAFETY: Only a batch changes lists and frees their slots, under slots_lock. It borrows
        // `SlotsLocked` mutably (`batch::run`), so that nobody else has a list meanwhile, and drops
        // what it has looked up before it changes anything (`batch::carry_out`).
        unsafe { List::from_raw(list) }
    }

    /// Returns the list of `as_id` that readers do not see.
    pub(super) fn inactive(&self, as_id: u16) -> List<'_> {
        // SAFETY: By the invariant of `Vm` the VM is initialised and not freed, and its list
        // pointers change under slots_lock only, which `self` proves to be held.
        let list = unsafe { bindings::kvm_memory_inactive(self.as_ptr(), as_id.into()) };
        // SAFETY: Only a batch changes lists and frees their slots, under slots_lock. Only
        // `Items::put_copies`, `Items::put_final` and `ArchLocked::swap` get inactive lists, and none
        // of them keeps one.
        unsafe { List::from_raw(list) }
    }

    /// Returns the slot `id` that readers see, or [`None`] if there is none.
    pub(super) fn find(&self, id: SlotId) -> Option<Slot<'_>> {
        if id.as_id >= self.limits().address_spaces {
            return None;
        }
        self.active(id.as_id).find(id)
    }

    /// Returns the number of swaps that the VM has made.
    pub(super) fn swaps(&self) -> u64 {
        // SAFETY: By the invariant of `Vm` the VM is not freed. Only `ArchLocked::swap` counts
        // here, under slots_lock. Clearing the statistic through debugfs may race with that, as for
        // all statistics of KVM.
        unsafe { (*self.as_ptr()).stat.generic.memslot_swaps }
    }
}

impl<'a, 'vm> ArchLocked<'a, 'vm> {
    /// Makes the inactive lists of `spaces` the active ones, and waits until no reader sees the lists
    /// that were active. Drops `slots_arch_lock` before it waits.
    pub(super) fn swap(self, spaces: Spaces) -> &'a SlotsLocked<'vm> {
        let slots = self.slots();
        let kvm = slots.as_ptr();

        for as_id in spaces.iter() {
            let (active, inactive) = (slots.active(as_id), slots.inactive(as_id));
            // SAFETY: Both lists are freed with the VM, which by the invariant of `Vm` is not freed.
            // Generations change under slots_lock only, which `slots` proves to be held. The flag
            // says that nobody may cache a look-up until the grace period is over.
            unsafe {
                (*inactive.as_ptr()).generation =
                    (*active.as_ptr()).generation | UPDATE_IN_PROGRESS;
            }
        }
        let (first, end) = spaces.bounds();
        // SAFETY: By the invariant of `Vm` the VM is not freed. `self` proves that slots_lock and
        // slots_arch_lock are held. A batch leaves the inactive lists complete.
        unsafe { bindings::kvm_memory_publish(kvm, first.into(), end.into()) };
        drop(self);
        // SAFETY: By the invariant of `Vm` the VM is not freed. The current task holds slots_lock,
        // which is never taken inside a read section of kvm->srcu, so that it does not wait for
        // itself.
        unsafe { bindings::kvm_memory_wait_for_readers(kvm) };

        let step = u64::from(slots.limits().generation_step);
        for as_id in spaces.iter() {
            let list = slots.active(as_id).as_ptr();
            // SAFETY: The list is freed with the VM, which by the invariant of `Vm` is not freed.
            // Generations and the statistic change under slots_lock only, which `slots` proves to
            // be held. Generations of address spaces that a vCPU can switch between must differ:
            // space i of n uses i, i + n, i + 2n and so on.
            unsafe {
                let generation = ((*list).generation & !UPDATE_IN_PROGRESS).wrapping_add(step);
                bindings::kvm_arch_memslots_updated(kvm, generation);
                (*list).generation = generation;
                (*kvm).stat.generic.memslot_swaps += 1;
                kvm_memslot_swap(as_id.into(), generation);
            }
        }
        slots
    }
}

kernel::tracepoint::declare_trace! {
    /// A list has become the active one.
    unsafe fn kvm_memslot_swap(as_id: u32, generation: u64);
}
