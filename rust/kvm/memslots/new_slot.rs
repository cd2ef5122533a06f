// SPDX-License-Identifier: GPL-2.0-only

//! A slot that a batch brings, with what hangs on it, until readers see it.

use super::check::Relog;
use super::locked::ArchLocked;
use super::locked::SlotsLocked;
use super::slot::Slot;
use super::slot::SlotBox;
use super::types::Change;
use super::types::Mapping;
use super::types::SlotFlags;
use super::types::SlotId;
use crate::vm::Vm;
use core::mem::ManuallyDrop;
use core::ptr::null;
use core::ptr::null_mut;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// The guest_memfd that a new slot is bound to.
#[derive(Clone, Copy)]
pub(crate) struct GuestMemfd {
    pub(crate) fd: u32,
    /// In bytes.
    pub(crate) offset: u64,
}

/// A slot that no list holds yet. Dropping it frees it, and of what hangs on it all that it does
/// not share with the slot that it replaces.
pub(super) struct NewSlot<'vm> {
    vm: Vm<'vm>,
    slot: SlotBox,
    owns_bitmap: bool,
    owns_arch: bool,
    memfd: Option<BoundFile>,
}

/// A reference to the file behind a guest_memfd.
///
/// # Invariants
///
/// Owns a reference to `file`.
struct BoundFile {
    file: NonNull<bindings::file>,
    bound: bool,
}

impl Drop for BoundFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to drop.
        unsafe { bindings::fput(self.file.as_ptr()) };
    }
}

impl<'vm> NewSlot<'vm> {
    /// Allocates slot `id`, with its dirty bitmap. It takes over the bitmap of `old` if logging
    /// goes on.
    pub(super) fn new(
        slots: &SlotsLocked<'vm>,
        id: SlotId,
        mapping: Mapping,
        old: Option<Slot<'_>>,
        relog: Relog,
    ) -> Result<Self> {
        let mut this = Self {
            vm: slots.vm(),
            slot: SlotBox::new(id, mapping)?,
            owns_bitmap: false,
            owns_arch: false,
            memfd: None,
        };
        if mapping.flags.contains(SlotFlags::LOG_DIRTY) {
            let bitmap = old.map_or(null_mut(), Slot::dirty_bitmap);
            let new = this.slot.as_mut_ptr();
            if !bitmap.is_null() && relog == Relog::No {
                // SAFETY: The slot is allocated, and no reader sees it.
                unsafe { (*new).dirty_bitmap = bitmap.cast() };
            } else {
                // SAFETY: The VM lives, the slot is allocated, and no reader sees it.
                if !unsafe { bindings::kvm_memory_alloc_dirty_bitmap(this.vm.as_ptr(), new) } {
                    return Err(ENOMEM);
                }
                this.owns_bitmap = true;
            }
        }
        Ok(this)
    }

    pub(super) fn slot(&self) -> Slot<'_> {
        self.slot.slot()
    }

    /// Has the architecture prepare its part.
    pub(super) fn prepare_arch(
        &mut self,
        _arch: &ArchLocked<'_, 'vm>,
        old: Option<Slot<'_>>,
        change: Change,
    ) -> Result {
        let old = old.map_or(null(), |old| old.as_ptr().cast_const());
        let new = self.slot.as_mut_ptr();
        // SAFETY: The VM lives, `_arch` proves that its locks are held, both slots are allocated,
        // and no reader sees the new one.
        to_result(unsafe {
            bindings::kvm_arch_prepare_memory_region(
                self.vm.as_ptr(),
                old,
                new,
                change.as_kvm_mr_change(),
            )
        })?;
        // A slot that only changes flags shares the data of the old one.
        self.owns_arch = change != Change::FlagsOnly;
        Ok(())
    }

    /// Has the architecture add what slots in use have got since it prepared its part.
    pub(super) fn refresh_arch(&mut self, _arch: &ArchLocked<'_, 'vm>) -> Result {
        let new = self.slot.as_mut_ptr();
        // SAFETY: The VM lives, `_arch` proves that its locks are held, the slot is allocated, and
        // no reader sees it.
        to_result(unsafe { bindings::kvm_arch_refresh_memory_region(self.vm.as_ptr(), new) })
    }

    /// Takes a reference to the guest_memfd for the slot.
    pub(super) fn open_memfd(&mut self, memfd: GuestMemfd) -> Result {
        let slot = self.slot.as_mut_ptr();
        // SAFETY: The VM lives, the slot is allocated, and no reader sees it.
        let file = unsafe {
            to_result(bindings::kvm_memory_gmem_prepare(
                self.vm.as_ptr(),
                slot,
                memfd.fd,
                memfd.offset,
            ))?;
            bindings::kvm_memory_gmem_file(slot)
        };
        // INVARIANT: kvm_memory_gmem_prepare() has taken a reference to the file, which it leaves
        // to us.
        self.memfd = Some(BoundFile {
            file: NonNull::new(file).ok_or(EIO)?,
            bound: false,
        });
        Ok(())
    }

    /// Binds the guest_memfd, if there is one, to the slot.
    pub(super) fn bind_memfd(&mut self) -> Result {
        let slot = self.slot.as_mut_ptr();
        if let Some(memfd) = &mut self.memfd {
            // SAFETY: The VM lives, the slot is allocated, and `memfd` keeps its file open.
            to_result(unsafe { bindings::kvm_memory_gmem_bind(self.vm.as_ptr(), slot) })?;
            memfd.bound = true;
        }
        Ok(())
    }

    /// Leaves the slot, and what hangs on it, to the lists that hold it.
    pub(super) fn leak(self) {
        let mut this = ManuallyDrop::new(self);
        // A bound file does not need the reference.
        drop(this.memfd.take());
    }
}

impl Drop for NewSlot<'_> {
    fn drop(&mut self) {
        let slot = self.slot.as_mut_ptr();
        // The reverse of the order in which it was made.
        if self.memfd.as_ref().is_some_and(|memfd| memfd.bound) {
            // SAFETY: The slot is allocated and bound, and no list holds it.
            unsafe { bindings::kvm_memory_gmem_unbind(slot) };
        }
        if self.owns_arch {
            // SAFETY: The VM lives, the slot is allocated, no list holds it, and the data is its
            // own.
            unsafe { bindings::kvm_arch_free_memslot(self.vm.as_ptr(), slot) };
        }
        if self.owns_bitmap {
            // SAFETY: The slot is allocated, no list holds it, and the bitmap is its own.
            unsafe { bindings::kvfree((*slot).dirty_bitmap.cast()) };
        }
    }
}
