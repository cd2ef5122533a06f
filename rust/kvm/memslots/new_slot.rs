// SPDX-License-Identifier: GPL-2.0-only

//! A slot that a batch adds, with its resources, until the batch ends.

use super::{
    check::Relog,
    locks::{
        ArchLocked,
        SlotsLocked, //
    },
    memfd::MemfdFile,
    slot::{
        Slot,
        SlotBox, //
    },
    types::{
        Change,
        Entry,
        Mapping,
        SlotFlags,
        SlotId, //
    }, //
};

use crate::{
    types::GfnRange,
    vm::Vm, //
};

use core::{
    mem::ManuallyDrop,
    ptr::{
        null,
        null_mut,
        NonNull, //
    }, //
};

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// A slot that a batch adds, and its resources: dirty bitmap, the architecture's data, binding to a
/// guest_memfd.
///
/// Dropping it frees the slot, and those resources that it does not share with the slot that it
/// replaces. [`Self::leak`] leaves all of them to the lists instead.
///
/// # Invariants
///
/// * No list contains the slot until `changes.rs` puts it in one. After that only [`Self::slot`] and
///   [`Self::leak`] are called.
/// * If `owns_bitmap`, no other slot has the same dirty bitmap; if `owns_arch`, no other slot has
///   the same data of the architecture.
pub(super) struct NewSlot<'vm> {
    vm: Vm<'vm>,
    slot: SlotBox,
    owns_bitmap: bool,
    owns_arch: bool,
    /// The guest_memfd that the slot is bound to, or will be.
    memfd: Option<MemfdFile>,
    is_bound: bool,
}

impl<'vm> NewSlot<'vm> {
    /// Allocates slot `id`. If it logs dirty pages, it takes over the bitmap of `old` where that
    /// has one and `relog` says that the log continues; otherwise a bitmap is allocated.
    pub(super) fn new(
        slots: &SlotsLocked<'vm>,
        id: SlotId,
        mapping: Mapping,
        old: Option<Slot<'_>>,
        relog: Relog,
    ) -> Result<Self> {
        // INVARIANT: The slot is new, in no list, and owns no resources yet.
        let mut this = Self {
            vm: slots.vm(),
            slot: SlotBox::new(id, mapping)?,
            owns_bitmap: false,
            owns_arch: false,
            memfd: None,
            is_bound: false,
        };
        if mapping.flags.contains(SlotFlags::LOG_DIRTY) {
            let bitmap = old.map_or(null_mut(), Slot::dirty_bitmap);
            let new = this.slot.as_mut_ptr();
            if !bitmap.is_null() && relog == Relog::No {
                // SAFETY: `this.slot` owns the slot, which by the type invariant no reader sees.
                unsafe { (*new).dirty_bitmap = bitmap.cast() };
            } else {
                // SAFETY: By the invariant of `Vm` the VM is not freed, and `slots` proves that
                // slots_lock is held. `this.slot` owns the slot, which by the type invariant no
                // reader sees.
                if !unsafe { bindings::kvm_memory_alloc_dirty_bitmap(this.vm.as_ptr(), new) } {
                    return Err(ENOMEM);
                }
                // INVARIANT: The bitmap was allocated for this slot. A VM with a dirty ring may
                // have none: the pointer then is null, which kvfree() accepts.
                this.owns_bitmap = true;
            }
        }
        Ok(this)
    }

    pub(super) fn slot(&self) -> Slot<'_> {
        self.slot.slot()
    }

    /// Clears the dirty bits of `gfns`, which the slot maps, before any reader sees it. Does nothing
    /// if the slot has no bitmap of its own.
    pub(super) fn clear_dirty(&mut self, gfns: GfnRange) {
        let slot = self.slot();
        let own = slot.mapping().gfns;
        if !self.owns_bitmap || slot.dirty_bitmap().is_null() || !own.contains(gfns) {
            return;
        }
        let (start, npages) = (gfns.start.0 - own.start.0, gfns.npages());
        // SAFETY: The bitmap has a bit for each page of the slot, at most i32::MAX of them, and the
        // slot contains `gfns`. By the type invariant no other slot has the bitmap, and no reader
        // sees this one.
        unsafe { bindings::__bitmap_clear(slot.dirty_bitmap(), start as u32, npages as i32) };
    }

    /// Calls the architecture to make its data for the slot: new data, or for FLAGS_ONLY the data
    /// of `old`.
    pub(super) fn prepare_arch(
        &mut self,
        _arch: &ArchLocked<'_, 'vm>,
        old: Option<Slot<'_>>,
        change: Change,
    ) -> Result {
        let old = old.map_or(null(), |old| old.as_ptr().cast_const());
        let new = self.slot.as_mut_ptr();
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `_arch` proves that slots_lock
        // and slots_arch_lock are held. By the invariant of `Slot` the old slot is allocated.
        // `self.slot` owns the new one, which by the type invariant no reader sees.
        to_result(unsafe {
            bindings::kvm_arch_prepare_memory_region(
                self.vm.as_ptr(),
                old,
                new,
                change.as_kvm_mr_change(),
            )
        })?;
        // INVARIANT: The hook has allocated data for the new slot, except that for FLAGS_ONLY it
        // copies the data of the old one.
        self.owns_arch = change != Change::FlagsOnly;
        Ok(())
    }

    /// Calls the architecture to add to the slot's data what it has added to slots in the lists since
    /// [`Self::prepare_arch`].
    pub(super) fn refresh_arch(&mut self, _arch: &ArchLocked<'_, 'vm>) -> Result {
        let new = self.slot.as_mut_ptr();
        // SAFETY: By the invariant of `Vm` the VM is not freed, and `_arch` proves that slots_lock
        // and slots_arch_lock are held. `self.slot` owns the slot, which by the type invariant no
        // reader sees.
        to_result(unsafe { bindings::kvm_arch_refresh_memory_region(self.vm.as_ptr(), new) })
    }

    /// Looks up the guest_memfd that `entry` names, which was `file` when the entry was checked, and
    /// keeps a reference to its file. Fails with `EBADF` if userspace has put another file there.
    pub(super) fn open_memfd(&mut self, entry: &Entry, file: &MemfdFile) -> Result {
        let slot = self.slot.as_mut_ptr();
        // SAFETY: By the invariant of `Vm` the VM is not freed. `self.slot` owns the slot, which by
        // the type invariant no reader sees.
        let found = unsafe {
            to_result(bindings::kvm_memory_gmem_prepare(
                self.vm.as_ptr(),
                slot,
                entry.guest_memfd,
                entry.guest_memfd_offset,
            ))?;
            bindings::kvm_memory_gmem_file(slot)
        };
        // SAFETY: kvm_memory_gmem_prepare() has taken a reference to the file for its caller.
        let found = unsafe { MemfdFile::from_raw(NonNull::new(found).ok_or(EIO)?) };
        if !found.is(file) {
            return Err(EBADF);
        }
        self.memfd = Some(found);
        Ok(())
    }

    /// Returns whether the slot has a guest_memfd that it is not bound to yet.
    pub(super) fn waits_for_memfd(&self) -> bool {
        self.memfd.is_some() && !self.is_bound
    }

    /// Binds the slot to its guest_memfd, if it waits for that.
    pub(super) fn bind_memfd(&mut self) -> Result {
        let slot = self.slot.as_mut_ptr();
        if self.waits_for_memfd() {
            // SAFETY: By the invariant of `Vm` the VM is not freed. `self.slot` owns the slot, and
            // `self.memfd` a reference to the file that open_memfd() has looked up for it.
            to_result(unsafe { bindings::kvm_memory_gmem_bind(self.vm.as_ptr(), slot) })?;
            self.is_bound = true;
        }
        Ok(())
    }

    /// Undoes [`Self::bind_memfd`]. The batch fails: the slot will not be bound again.
    pub(super) fn unbind_memfd(&mut self) {
        if self.is_bound {
            // SAFETY: bind_memfd() has bound the slot, which `self.slot` owns. By the type invariant
            // no list contains it.
            unsafe { bindings::kvm_memory_gmem_unbind(self.slot.as_mut_ptr()) };
            self.is_bound = false;
        }
    }

    /// Leaves the slot and its resources to the lists that contain it.
    pub(super) fn leak(self) {
        let mut this = ManuallyDrop::new(self);
        // The binding does not need the reference.
        drop(this.memfd.take());
    }
}

impl Drop for NewSlot<'_> {
    fn drop(&mut self) {
        // In the reverse order of preparation.
        self.unbind_memfd();
        let slot = self.slot.as_mut_ptr();
        if self.owns_arch {
            // SAFETY: By the invariant of `Vm` the VM is not freed, and `self.slot` owns the slot.
            // By the type invariant no list contains it, and no other slot has its data.
            unsafe { bindings::kvm_arch_free_memslot(self.vm.as_ptr(), slot) };
        }
        if self.owns_bitmap {
            // SAFETY: `self.slot` owns the slot. By the type invariant no list contains it, and no
            // other slot has its bitmap.
            unsafe { bindings::kvfree((*slot).dirty_bitmap.cast()) };
        }
    }
}
