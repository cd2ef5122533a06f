// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The ioctls on the address space of a vCPU.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::raw::c_ulong;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{kvm_enable_cap, KVMIO, KVM_CAP_S390_UCONTROL};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iow_nr;

use super::error::GmapError;
use super::fault::VcpuFdGmapExt;
use super::memory::{whole_segments, Part};
use super::record::Record;
use super::SEGMENT_SIZE;
use crate::bindings::kvm_s390_ucas_mapping;
use crate::reason::{in_64_bits, Field, Reason};

// linux/kvm.h has the numbers, for which kvm-bindings has no struct on x86.
ioctl_iow_nr!(KVM_S390_UCAS_MAP, KVMIO, 0x50, kvm_s390_ucas_mapping);
ioctl_iow_nr!(KVM_S390_UCAS_UNMAP, KVMIO, 0x51, kvm_s390_ucas_mapping);
ioctl_iow_nr!(KVM_S390_VCPU_FAULT, KVMIO, 0x52, c_ulong);
ioctl_iow_nr!(KVM_ENABLE_CAP, KVMIO, 0xa3, kvm_enable_cap);

/// Gives the vCPUs of a VM address spaces of their own.
pub(crate) fn enable(vm: &VmFd) -> Result<(), GmapError> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_S390_UCONTROL,
        ..Default::default()
    };
    // SAFETY: the kernel reads one struct of this type.
    check(unsafe { ioctl_with_ref(vm, KVM_ENABLE_CAP(), &cap) })
}

fn check(ret: i32) -> Result<(), GmapError> {
    if ret < 0 {
        return Err(errno::Error::last().into());
    }
    Ok(())
}

/// The address space of a vCPU, in a VM whose vCPUs have address spaces of their
/// own ([`enable_vcpu_address_spaces`]): memory of this process, mapped in segments
/// of [`SEGMENT_SIZE`].
///
/// The guest has no other memory. An access to a segment that is not mapped leaves
/// [`run`](VcpuFd::run) with
/// [`VcpuExit::S390Ucontrol`](kvm_ioctls::VcpuExit::S390Ucontrol), and is made again
/// when the vCPU runs next.
///
/// Any thread may map and unmap, also while the vCPU runs: the vCPU sees the old
/// mapping or the new one. Changes of one address space do not disturb the vCPUs of
/// others.
///
/// The value keeps all memory alive that it has mapped, so that a guest cannot get at
/// memory that this process uses for something else. When it is dropped, nothing is
/// mapped any more.
///
/// Source: `struct kvm_s390_ucas_mapping` in `linux/kvm_memory.h`.
///
/// [`enable_vcpu_address_spaces`]: crate::VmFdMemoryExt::enable_vcpu_address_spaces
///
/// # Example
///
/// ```no_run
/// use std::sync::Arc;
///
/// use kvm_ioctls::{Kvm, VcpuExit};
/// use kvm_memory_uapi::{GmapError, Memory, Part, VcpuAddressSpace, VmFdMemoryExt, SEGMENT_SIZE};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let vm = Kvm::new()?.create_vm()?;
/// vm.enable_vcpu_address_spaces()?;
/// let mut vcpu = vm.create_vcpu(0)?;
/// let space = VcpuAddressSpace::new(&vcpu)?;
/// assert_eq!(space.make_present(0), Err(GmapError::NotMapped));
///
/// let memory = Arc::new(Memory::new(64)?);
/// loop {
///     match vcpu.run()? {
///         VcpuExit::S390Ucontrol => {
///             // The guest has each segment when it first needs it.
///             space.answer(&mut vcpu, |gpa| {
///                 Part::new(memory.clone(), gpa % memory.size(), SEGMENT_SIZE).ok()
///             })?;
///         }
///         VcpuExit::Hlt => break,
///         exit => panic!("{exit:?}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct VcpuAddressSpace {
    vcpu: OwnedFd,
    /// What the kernel may have mapped. Held over each ioctl, so that the order of
    /// changes is the same for both.
    record: Mutex<Record>,
}

impl VcpuAddressSpace {
    /// The address space of this vCPU. A second value for the same vCPU is the same
    /// address space with a record of its own.
    ///
    /// # Errors
    ///
    /// [`GmapError::Invalid`] if the vCPU has no address space of its own, and
    /// [`GmapError::Other`] if there are no descriptors left.
    pub fn new(vcpu: &VcpuFd) -> Result<Self, GmapError> {
        // SAFETY: the new descriptor is checked, and nothing else owns it.
        let vcpu = unsafe {
            let fd = libc::fcntl(vcpu.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
            check(fd)?;
            OwnedFd::from_raw_fd(fd)
        };
        let space = VcpuAddressSpace {
            vcpu,
            record: Mutex::default(),
        };
        // It succeeds where nothing is mapped, but not on other vCPUs.
        space.change(KVM_S390_UCAS_UNMAP(), 0, 0, SEGMENT_SIZE)?;
        Ok(space)
    }

    /// Maps `part` at a guest physical address, in place of what is mapped there.
    ///
    /// When this returns, the vCPU does not reach the memory any more that was mapped
    /// there before. Segments that were mapped to the same memory are not disturbed.
    ///
    /// # Errors
    ///
    /// See [`GmapError`]: [`Argument`](GmapError::Argument),
    /// [`Invalid`](GmapError::Invalid),
    /// [`TooManyExtents`](GmapError::TooManyExtents),
    /// [`OutOfMemory`](GmapError::OutOfMemory) and [`DeadVm`](GmapError::DeadVm).
    pub fn map(&self, guest_phys_addr: u64, part: Part) -> Result<(), GmapError> {
        whole_segments(Field::GuestPhysAddr, guest_phys_addr)?;
        in_64_bits(Field::GuestPhysAddr, guest_phys_addr, part.size())?;
        let mut record = self.record();
        self.change(
            KVM_S390_UCAS_MAP(),
            part.userspace_addr(),
            guest_phys_addr,
            part.size(),
        )?;
        let gone = record.map(guest_phys_addr, part);
        drop(record);
        // The kernel does not use it any more.
        drop(gone);
        Ok(())
    }

    /// Unmaps `size` bytes from a guest physical address on, whether something is
    /// mapped there or not.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map). Unmapping the middle of an extent makes two of it.
    pub fn unmap(&self, guest_phys_addr: u64, size: u64) -> Result<(), GmapError> {
        if size == 0 {
            return Err(Reason::Empty.into());
        }
        whole_segments(Field::GuestPhysAddr, guest_phys_addr)?;
        whole_segments(Field::MemorySize, size)?;
        in_64_bits(Field::GuestPhysAddr, guest_phys_addr, size)?;
        let mut record = self.record();
        self.change(KVM_S390_UCAS_UNMAP(), 0, guest_phys_addr, size)?;
        let gone = record.unmap(guest_phys_addr..guest_phys_addr + size);
        drop(record);
        drop(gone);
        Ok(())
    }

    /// What this value has mapped at a guest physical address: from its segment to
    /// the end of the extent.
    pub fn mapped_at(&self, guest_phys_addr: u64) -> Option<Part> {
        self.record().at(guest_phys_addr & !(SEGMENT_SIZE - 1))
    }

    /// Makes the page of a guest physical address present for reading
    /// (`KVM_S390_VCPU_FAULT`). Waits while the vCPU runs.
    ///
    /// # Errors
    ///
    /// [`GmapError::NotMapped`] where nothing is mapped, and
    /// [`GmapError::BadAddress`] if the memory cannot be read.
    pub fn make_present(&self, guest_phys_addr: u64) -> Result<(), GmapError> {
        // SAFETY: the argument is a number. The kernel writes to the `kvm_run` of the
        // vCPU, which is not Rust's, and to no memory of the guest.
        check(unsafe { ioctl_with_val(&self.vcpu, KVM_S390_VCPU_FAULT(), guest_phys_addr) })
    }

    /// Maps the segment that the vCPU has missed: `pager` gets its guest physical
    /// address and says what to map there. Returns the address; `None` if the vCPU
    /// did not leave its last run because of a missing segment, or if the pager has
    /// nothing for it.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map).
    pub fn answer(
        &self,
        vcpu: &mut VcpuFd,
        pager: impl FnOnce(u64) -> Option<Part>,
    ) -> Result<Option<u64>, GmapError> {
        let Some(page) = vcpu.missing_page() else {
            return Ok(None);
        };
        let segment = page & !(SEGMENT_SIZE - 1);
        match pager(segment) {
            Some(part) => self.map(segment, part).map(|()| Some(segment)),
            None => Ok(None),
        }
    }

    fn change(&self, nr: c_ulong, user: u64, gpa: u64, length: u64) -> Result<(), GmapError> {
        let mapping = kvm_s390_ucas_mapping {
            user_addr: user,
            vcpu_addr: gpa,
            length,
        };
        // SAFETY: the kernel reads one struct of this type. The memory that it maps is
        // a `Part`: guests may use it until the record forgets it, which happens after
        // it was unmapped.
        check(unsafe { ioctl_with_ref(&self.vcpu, nr, &mapping) })
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing under the lock panics after an ioctl and before the record has it.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VcpuAddressSpace {
    fn drop(&mut self) {
        let mut record = self.record();
        let unmapped = record.span().map_or(Ok(()), |gpas| {
            self.change(KVM_S390_UCAS_UNMAP(), 0, gpas.start, gpas.end - gpas.start)
        });
        let parts = record.take();
        if unmapped.is_err() {
            // The guest may still use the memory, so that it must stay.
            let _ = ManuallyDrop::new(parts);
        }
    }
}
