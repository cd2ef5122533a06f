// SPDX-License-Identifier: GPL-2.0-only

//! The page faults that map memory, on behalf of a vCPU.
//!
//! Memslots are looked up in the vCPU's read section of `kvm->srcu`. Filling private memory also
//! needs `kvm->slots_lock`. It is taken before the section begins: a memslot update that holds it
//! waits for readers.

use super::cursor::{
    Attempt,
    Populate,
    Section,
    SECTION_STEPS, //
};

use crate::{
    memslots::locks::SlotsLocked,
    types::{
        Gfn,
        GfnRange,
        Hva, //
    },
    vcpu::{
        LoadedVcpu,
        SrcuSection, //
    }, //
};

use kernel::{
    bindings,
    error::to_result,
    ffi::c_long,
    prelude::*, //
};

// A section asks kvm_arch_vcpu_map_gfns() for no more pages than it maps in one call.
const _: () = assert!(SECTION_STEPS == bindings::KVM_MAP_PAGES_MAX as u64);

/// The kind of page fault that `KVM_MAP_MEMORY` makes (`KVM_MEMORY_MAPPING_FLAG_*`).
#[derive(Clone, Copy)]
pub(super) struct FaultFlags(u64);

impl FaultFlags {
    /// A read by the guest's kernel.
    pub(super) const READ: Self = Self(0);

    const WRITE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_WRITE as u64;
    const PRIVATE: u64 = bindings::KVM_MEMORY_MAPPING_FLAG_PRIVATE as u64;
    const ALL: u64 = Self::WRITE
        | bindings::KVM_MEMORY_MAPPING_FLAG_EXEC as u64
        | bindings::KVM_MEMORY_MAPPING_FLAG_USER as u64
        | Self::PRIVATE;

    /// Checks flags from userspace. Returns [`None`] if any of them is unknown.
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
    flags: FaultFlags,
    /// Whether memory also gets contents.
    fill: bool,
}

impl<'v, 'a> Populator<'v, 'a> {
    pub(super) fn new(vcpu: &'v mut LoadedVcpu<'a>, flags: FaultFlags, fill: bool) -> Self {
        Self { vcpu, flags, fill }
    }

    /// Returns the highest frame that the vCPU can address.
    pub(super) fn max_gfn(&self) -> Gfn {
        // SAFETY: By the invariant of `LoadedVcpu` the vCPU is allocated and loaded.
        Gfn(unsafe { bindings::kvm_arch_vcpu_max_gfn(self.vcpu.as_ptr()) })
    }

    /// Returns whether a memslot maps the frame.
    pub(super) fn is_mapped(&mut self, gfn: Gfn) -> bool {
        let srcu = self.vcpu.read_memslots();
        // SAFETY: `srcu` proves that the vCPU is loaded and may look up memslots.
        !unsafe { bindings::kvm_vcpu_gfn_to_memslot(srcu.as_ptr(), gfn.0) }.is_null()
    }

    /// Fails if memory cannot be populated like this on the vCPU: with `EINVAL` if the VM has no
    /// private memory and the flags ask for it, with `EOPNOTSUPP` if KVM does not implement it.
    pub(super) fn check(&self) -> Result {
        // SAFETY: By the invariant of `LoadedVcpu` the vCPU is allocated and loaded.
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

    fn begin_section(&mut self, gfns: GfnRange, source: Option<Hva>) -> Result<FaultSection<'_>> {
        let npages = gfns.npages() as usize;
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        // SAFETY: The task may sleep: it has a vCPU loaded, which does not forbid that.
        unsafe { bindings::kvm_memory_cond_resched() };
        let mut source_error = None;
        if let Some(source) = source {
            // SAFETY: The function accepts any user address. It may sleep, as a task may that has a
            // vCPU loaded.
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
            // SAFETY: `section.srcu` proves that the vCPU is loaded and may look up memslots.
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

/// A read section in which the vCPU's faults are made.
///
/// Fields are dropped in the order of declaration: the read section ends before `slots_lock` is
/// dropped.
pub(super) struct FaultSection<'s> {
    srcu: SrcuSection<'s>,
    flags: FaultFlags,
    /// Held while private memory is filled.
    slots: Option<SlotsLocked<'s>>,
    /// Why the first page of the source could not be faulted in, if it could not.
    source_error: Option<Error>,
}

impl FaultSection<'_> {
    /// Fails with `ENOSPC` if the vCPU's dirty ring is full: each page that KVM logs takes an entry.
    fn ensure_room_in_dirty_ring(&self) -> Result {
        // SAFETY: `self.srcu` proves that the vCPU is allocated and loaded.
        if unsafe { bindings::kvm_memory_dirty_ring_is_full(self.srcu.as_ptr()) } {
            return Err(ENOSPC);
        }
        Ok(())
    }
}

/// Converts what C returns for an attempt: the number of pages done, 0 if the caller must retry,
/// `-EAGAIN` if the memslot is INVALID, or another negative errno.
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
            // SAFETY: `self.srcu` proves that the vCPU is loaded and may look up memslots,
            // `self.slots` that slots_lock is held. The function accepts any user address.
            unsafe { bindings::kvm_memory_fill_private(vcpu, gfn.0, source.0) }
        } else {
            // SAFETY: `self.srcu` proves that the vCPU is loaded and may look up memslots. The
            // function accepts any user address.
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
        // SAFETY: `self.srcu` proves that the vCPU is loaded and may look up memslots.
        attempt(unsafe {
            bindings::kvm_arch_vcpu_map_gfns(vcpu, gfn.0, npages as usize, self.flags.0)
        })
    }
}
