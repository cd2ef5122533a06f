// SPDX-License-Identifier: GPL-2.0-only

//! The page faults that populate memory, on behalf of a vCPU.
//!
//! Memslots are read in a read section of the vCPU's. Filling private memory needs
//! `kvm->slots_lock` as well, which is taken before the section, as an update that holds it waits
//! for readers.

use super::cursor::Attempt;
use super::cursor::Populate;
use super::cursor::Section;
use super::cursor::SECTION_STEPS;
use crate::memslots::locked::SlotsLocked;
use crate::types::Gfn;
use crate::types::GfnRange;
use crate::types::Hva;
use crate::vcpu::LoadedVcpu;
use crate::vcpu::SrcuSection;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::c_long;
use kernel::prelude::*;

// A section asks C for no more pages than C maps at a time.
const _: () = assert!(SECTION_STEPS == bindings::KVM_MAP_PAGES_MAX as u64);

/// The fault that a mapping stands for (`KVM_MEMORY_MAPPING_FLAG_*`).
#[derive(Clone, Copy)]
pub(super) struct MappingFlags(u64);

impl MappingFlags {
    const WRITE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_WRITE as u64;
    const PRIVATE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_PRIVATE as u64;
    const ALL: u64 = Self::WRITE
        | bindings::KVM_MEMORY_MAPPING_FLAG_EXEC as u64
        | bindings::KVM_MEMORY_MAPPING_FLAG_USER as u64
        | Self::PRIVATE;

    /// [`None`] if there are unknown flags.
    pub(super) fn from_uapi(flags: u64) -> Option<Self> {
        (flags & !Self::ALL == 0).then_some(Self(flags))
    }

    fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    fn is_private(self) -> bool {
        self.0 & Self::PRIVATE != 0
    }
}

/// Populates memory on behalf of a vCPU.
pub(super) struct Populator<'v, 'a> {
    vcpu: &'v mut LoadedVcpu<'a>,
    flags: MappingFlags,
    /// Whether contents come with it.
    fill: bool,
}

impl<'v, 'a> Populator<'v, 'a> {
    pub(super) fn new(vcpu: &'v mut LoadedVcpu<'a>, flags: MappingFlags, fill: bool) -> Self {
        Self { vcpu, flags, fill }
    }

    /// The highest frame that the vCPU can address.
    pub(super) fn max_gfn(&self) -> Gfn {
        // SAFETY: The vCPU lives and is loaded.
        Gfn(unsafe { bindings::kvm_arch_vcpu_max_gfn(self.vcpu.as_ptr()) })
    }

    /// Whether the vCPU can do so.
    pub(super) fn check(&self) -> Result {
        // SAFETY: The vCPU lives and is loaded.
        to_result(unsafe {
            bindings::kvm_arch_vcpu_may_map(self.vcpu.as_ptr(), self.flags.0, self.fill)
        })
    }
}

impl Populate for Populator<'_, '_> {
    type Error = Error;
    type Section<'s>
        = FaultSection<'s>
    where
        Self: 's;

    fn section(&mut self, gfns: GfnRange, source: Option<Hva>) -> Result<FaultSection<'_>> {
        let npages = (gfns.end.0 - gfns.start.0) as usize;
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        // SAFETY: A vCPU that is loaded may sleep.
        unsafe { bindings::kvm_memory_cond_resched() };
        let mut source_error = None;
        if let Some(source) = source {
            // SAFETY: The function does not trust the source, and may sleep.
            match to_result(unsafe { bindings::kvm_memory_fault_in_source(source.0, npages) }) {
                Err(error) if error == EINTR => return Err(EINTR),
                result => source_error = result.err(),
            }
        }
        let slots = if self.fill && self.flags.is_private() {
            Some(SlotsLocked::lock_interruptible(self.vcpu.vm()?)?)
        } else {
            None
        };
        let section = FaultSection {
            srcu: self.vcpu.read_memslots(),
            flags: self.flags,
            slots,
            source_error,
        };
        if !self.flags.is_private() {
            let write = self.fill || self.flags.is_write();
            // SAFETY: The vCPU lives, and may read memslots.
            unsafe {
                bindings::kvm_memory_fault_in(section.srcu.as_ptr(), gfns.start.0, npages, write)
            };
        }
        Ok(section)
    }

    fn wait_for_update(&mut self) -> Result {
        SlotsLocked::lock_interruptible(self.vcpu.vm()?).map(drop)
    }
}

/// A read section in which faults are made.
///
/// Fields are dropped in this order: the read section ends before `slots_lock` is dropped.
pub(super) struct FaultSection<'s> {
    srcu: SrcuSection<'s>,
    flags: MappingFlags,
    /// For private memory that is filled.
    slots: Option<SlotsLocked<'s>>,
    /// Why the first page of the source is not present, if it is not.
    source_error: Option<Error>,
}

impl FaultSection<'_> {
    /// Each page that is logged takes an entry of the vCPU's dirty ring.
    fn ensure_room_in_dirty_ring(&self) -> Result {
        // SAFETY: The vCPU lives and is loaded.
        if unsafe { bindings::kvm_memory_dirty_ring_is_full(self.srcu.as_ptr()) } {
            return Err(ENOSPC);
        }
        Ok(())
    }
}

/// What C says of an attempt: the number of pages done, 0 to try again, `-EAGAIN` for an INVALID
/// memslot.
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

impl Section for FaultSection<'_> {
    type Error = Error;

    fn fill(&mut self, gfn: Gfn, source: Hva, npages: u64) -> Result<Attempt> {
        self.ensure_room_in_dirty_ring()?;
        let vcpu = self.srcu.as_ptr();
        let filled = if self.slots.is_some() {
            // SAFETY: The vCPU lives, is loaded and may read memslots; slots_lock is held. The
            // function does not trust the source.
            unsafe { bindings::kvm_memory_fill_private(vcpu, gfn.0, source.0) }
        } else {
            // SAFETY: The vCPU lives, is loaded and may read memslots. The function does not trust
            // the source.
            unsafe { bindings::kvm_memory_fill(vcpu, gfn.0, source.0, npages as usize) }
        };
        match (attempt(filled)?, self.source_error.take()) {
            (Attempt::Retry, Some(error)) => Err(error),
            (attempt, _) => Ok(attempt),
        }
    }

    fn map(&mut self, gfn: Gfn, npages: u64) -> Result<Attempt> {
        self.ensure_room_in_dirty_ring()?;
        let vcpu = self.srcu.as_ptr();
        // SAFETY: The vCPU lives, is loaded and may read memslots.
        attempt(unsafe {
            bindings::kvm_arch_vcpu_map_gfns(vcpu, gfn.0, npages as usize, self.flags.0)
        })
    }
}
