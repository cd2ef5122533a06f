// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that has an address space of its own, and that address space: its memslots, and the ids that
//! they have. `kvm->slots_lock` protects both.

use super::segments::{
    Change,
    Extent,
    Extents, //
};

use crate::{
    memslots::{
        ioctl::{
            run_list,
            ScratchMemory, //
        },
        locks::SlotsLocked,
        types::{
            Entry,
            SlotId, //
        }, //
    },
    types::GfnRange,
    vm::Vm, //
};

use core::ptr::NonNull;

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    bindings,
    prelude::*, //
};

/// A vCPU that has an address space of its own.
///
/// # Invariants
///
/// Address space `as_id` of `vm` is that of the vCPU.
pub(super) struct GmapVcpu<'vm> {
    vm: Vm<'vm>,
    as_id: u16,
}

impl<'vm> GmapVcpu<'vm> {
    /// Returns [`None`] if the vCPU has no address space of its own.
    ///
    /// # Safety
    ///
    /// `vcpu` points to a vCPU that is not freed during the lifetime of the result.
    pub(super) unsafe fn new(vcpu: NonNull<bindings::kvm_vcpu>) -> Option<Self> {
        // SAFETY: The caller guarantees that the vCPU is allocated. Neither field changes after the
        // vCPU has been created.
        let (kvm, as_id) = unsafe {
            (
                NonNull::new((*vcpu.as_ptr()).kvm)?,
                bindings::kvm_arch_vcpu_gmap(vcpu.as_ptr()),
            )
        };
        let as_id = u16::try_from(as_id).ok().filter(|&as_id| as_id != 0)?;
        // SAFETY: The caller guarantees that the vCPU is not freed during `'vm`, and a VM is freed
        // after its vCPUs.
        let vm = unsafe { Vm::from_raw(kvm) };
        // INVARIANT: kvm_arch_vcpu_gmap() has returned the vCPU's address space.
        Some(Self { vm, as_id })
    }
}

/// An address space that nobody else changes.
///
/// # Invariants
///
/// The VM of `slots` has address space `as_id`, which is that of a vCPU.
pub(super) struct Space<'vm> {
    slots: SlotsLocked<'vm>,
    as_id: u16,
}

impl<'vm> Space<'vm> {
    /// Takes `slots_lock` of the VM of `vcpu`.
    pub(super) fn lock(vcpu: &GmapVcpu<'vm>) -> Self {
        // INVARIANT: The VM is that of the vCPU, and has its address space.
        Self {
            slots: SlotsLocked::lock(vcpu.vm),
            as_id: vcpu.as_id,
        }
    }

    /// Makes `change`, or fails and changes nothing.
    pub(super) fn apply(&mut self, change: &Change) -> Result {
        if !self.slots.allows(change.gfns(), change.to()) {
            return Err(EINVAL);
        }
        let mut entries = KVVec::<Entry>::new();
        change.entries(self, self.as_id, |entry| {
            entries.push(entry, GFP_KERNEL_ACCOUNT)
        })?;
        if entries.is_empty() {
            return Ok(());
        }
        let mut memory = ScratchMemory::new(entries.len())?;
        run_list(&mut self.slots, &entries, &mut memory)?;
        // The ids follow what has been published. Deletions come first, so that what is created with
        // the id of a deleted slot keeps it.
        for entry in &entries {
            self.set_used(entry.slot_id(), entry.memory_size != 0);
        }
        Ok(())
    }

    /// Records whether a slot has this id.
    fn set_used(&mut self, slot: SlotId, used: bool) {
        let (as_id, id) = (self.as_id.into(), slot.id.into());
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self.slots` proves that
        // slots_lock is held. By the type invariant the address space exists. The id is that of a
        // user slot.
        unsafe { bindings::kvm_gmap_set_id(self.slots.as_ptr(), as_id, id, used) };
    }
}

impl Extents for Space<'_> {
    fn first_in(&self, gfns: GfnRange) -> Option<Extent> {
        let (id, mapping) = self.slots.first_slot_in(self.as_id, gfns)?;
        Some(Extent { id, mapping })
    }

    fn free_id(&self, from: u16) -> Option<u16> {
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `self.slots` proves that
        // slots_lock is held. By the type invariant the address space exists.
        let id = unsafe {
            bindings::kvm_gmap_free_id(self.slots.as_ptr(), self.as_id.into(), from.into())
        };
        u16::try_from(id).ok()
    }
}
