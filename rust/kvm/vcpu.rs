// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that is loaded, and the faults that are made in its name.
//!
//! Memslots are read under `kvm->srcu`, as by a vCPU that runs. Filling private memory needs
//! `kvm->slots_lock` as well, which is taken before.

use crate::populate::{Attempt, Populate, Section};
use crate::slots::SlotsLocked;
use crate::types::{Gfn, GfnRange, Hva};
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;

/// The fault that stands behind a mapping (`KVM_MEMORY_MAPPING_FLAG_*`).
#[derive(Clone, Copy)]
pub(crate) struct MappingFlags(u64);

impl MappingFlags {
    const WRITE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_WRITE as u64;
    const PRIVATE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_PRIVATE as u64;
    const ALL: u64 = (1 << 4) - 1;

    /// [`None`] if there are flags that are not known.
    pub(crate) fn from_uapi(flags: u64) -> Option<Self> {
        (flags & !Self::ALL == 0).then_some(Self(flags))
    }

    fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    fn is_private(self) -> bool {
        self.0 & Self::PRIVATE != 0
    }
}

/// A vCPU that the current task has loaded.
///
/// # Invariants
///
/// `vcpu` is a live vCPU; the current task holds its mutex, and has loaded it, for as long as this exists.
pub(crate) struct LoadedVcpu<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    _vcpu: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl LoadedVcpu<'_> {
    /// Loads a vCPU.
    ///
    /// # Safety
    ///
    /// `vcpu` points to a vCPU that lives, is not loaded, and whose mutex the current task holds, for the
    /// lifetime of the result.
    pub(crate) unsafe fn load(vcpu: NonNull<bindings::kvm_vcpu>) -> Self {
        // SAFETY: By the caller's promise.
        unsafe { bindings::vcpu_load(vcpu.as_ptr()) };
        // INVARIANT: By the caller's promise, and by the line above.
        Self {
            vcpu,
            _vcpu: PhantomData,
            _task: NotThreadSafe,
        }
    }

    fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }

    fn kvm(&self) -> Result<NonNull<bindings::kvm>> {
        // SAFETY: By the type invariant the vCPU is alive. Its VM never changes.
        NonNull::new(unsafe { (*self.as_ptr()).kvm }).ok_or(EIO)
    }

    /// The highest frame that the vCPU can address.
    pub(crate) fn max_gfn(&self) -> Gfn {
        // SAFETY: By the type invariant.
        Gfn(unsafe { bindings::kvm_arch_vcpu_max_gfn(self.as_ptr()) })
    }

    /// The vCPU to populate memory in the name of, if it can do so; `fill` is whether with contents.
    pub(crate) fn populate(&mut self, flags: MappingFlags, fill: bool) -> Result<Populator<'_>> {
        // SAFETY: By the type invariant.
        to_result(unsafe { bindings::kvm_arch_vcpu_may_map(self.as_ptr(), flags.0, fill) })?;
        Ok(Populator {
            vcpu: self,
            flags,
            fill,
        })
    }
}

impl Drop for LoadedVcpu<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the vCPU is loaded.
        unsafe { bindings::vcpu_put(self.as_ptr()) };
    }
}

/// A vCPU in whose name memory is populated.
pub(crate) struct Populator<'a> {
    vcpu: &'a LoadedVcpu<'a>,
    flags: MappingFlags,
    fill: bool,
}

impl Populate for Populator<'_> {
    type Error = Error;
    type Section<'s>
        = SrcuSection<'s>
    where
        Self: 's;

    fn section(&mut self, gfns: GfnRange, source: Option<Hva>) -> Result<SrcuSection<'_>> {
        let npages = (gfns.end.0 - gfns.start.0) as usize;
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        // SAFETY: No lock is held that forbids to sleep.
        unsafe { bindings::kvm_memory_cond_resched() };
        let mut source_error = None;
        if let Some(source) = source {
            // SAFETY: The source is not trusted, and no lock is held.
            match to_result(unsafe { bindings::kvm_memory_fault_in_source(source.0, npages) }) {
                Err(error) if error == EINTR => return Err(EINTR),
                result => source_error = result.err(),
            }
        }
        let slots = if self.fill && self.flags.is_private() {
            // SAFETY: The VM of a live vCPU is alive, and the current task in no read section.
            Some(unsafe { SlotsLocked::lock_interruptible(self.vcpu.kvm()?)? })
        } else {
            None
        };
        let vcpu = self.vcpu.as_ptr();
        // SAFETY: The vCPU is alive, and in no read section.
        unsafe { bindings::kvm_memory_srcu_lock(vcpu) };
        // INVARIANT: By the line above.
        let section = SrcuSection {
            vcpu: self.vcpu,
            flags: self.flags,
            slots,
            source_error,
        };
        if !self.flags.is_private() {
            let write = self.fill || self.flags.is_write();
            // SAFETY: The vCPU is alive, and memslots may be read.
            unsafe { bindings::kvm_memory_fault_in(vcpu, gfns.start.0, npages, write) };
        }
        Ok(section)
    }

    fn wait_for_update(&mut self) -> Result {
        // SAFETY: The VM of a live vCPU is alive, and the current task in no read section.
        unsafe { SlotsLocked::lock_interruptible(self.vcpu.kvm()?) }.map(drop)
    }
}

/// A read section of `kvm->srcu`.
///
/// # Invariants
///
/// The current task is in a read section of the vCPU's, and holds `slots_lock` from before that if there
/// are `slots`.
pub(crate) struct SrcuSection<'a> {
    vcpu: &'a LoadedVcpu<'a>,
    flags: MappingFlags,
    slots: Option<SlotsLocked<'a>>,
    /// Why the first page of the source is not present, if it is not.
    source_error: Option<Error>,
}

impl SrcuSection<'_> {
    /// Each page that is logged takes an entry of the vCPU's dirty ring.
    fn ensure_room_in_dirty_ring(&self) -> Result {
        // SAFETY: The vCPU is alive.
        if unsafe { bindings::kvm_memory_dirty_ring_is_full(self.vcpu.as_ptr()) } {
            return Err(ENOSPC);
        }
        Ok(())
    }
}

/// What C says of an attempt: the number of pages done, 0 to try again, `-EAGAIN` for an INVALID memslot.
fn attempt(result: c_long) -> Result<Attempt> {
    match u64::try_from(result) {
        Ok(0) => Ok(Attempt::Retry),
        Ok(npages) => Ok(Attempt::Done(npages)),
        Err(_) => match Error::from_errno(result as i32) {
            error if error == EAGAIN => Ok(Attempt::Updating),
            error => Err(error),
        },
    }
}

impl Section for SrcuSection<'_> {
    type Error = Error;

    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt> {
        self.ensure_room_in_dirty_ring()?;
        let vcpu = self.vcpu.as_ptr();
        // SAFETY: The vCPU is alive and loaded, and memslots may be read. slots_lock is held for private
        // memory. The source is not trusted.
        let filled = unsafe {
            if self.slots.is_some() {
                bindings::kvm_memory_fill_private(vcpu, gfn.0, source.0)
            } else {
                bindings::kvm_memory_fill(vcpu, gfn.0, source.0, npages as usize)
            }
        };
        match (attempt(filled)?, self.source_error.take()) {
            (Attempt::Retry, Some(error)) => Err(error),
            (attempt, _) => Ok(attempt),
        }
    }

    fn map(&mut self, gfn: Gfn, npages: u64) -> Result<Attempt> {
        self.ensure_room_in_dirty_ring()?;
        let vcpu = self.vcpu.as_ptr();
        // SAFETY: The vCPU is alive and loaded, and memslots may be read.
        attempt(unsafe {
            bindings::kvm_arch_vcpu_map_gfns(vcpu, gfn.0, npages as usize, self.flags.0)
        })
    }
}

impl Drop for SrcuSection<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. `slots_lock` goes after this, with the field.
        unsafe { bindings::kvm_memory_srcu_unlock(self.vcpu.as_ptr()) };
    }
}
