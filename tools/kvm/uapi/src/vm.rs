// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What a [`VmFd`] can do with memory, over all families: the probes for their
//! capabilities, and the ioctls on a VM.

use std::os::raw::c_ulong;

use bitflags::bitflags;
use kvm_bindings::KVM_CAP_S390_UCONTROL;
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::bindings::{
    kvm_area_info, KVM_CAP_MAP_MEMORY, KVM_CAP_REGISTER_MEM_AREA, KVM_CAP_USER_MEMORY_REGION_LIST,
    KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS, KVM_MEMORY_REGION_LIST_DIRTY_BITMAP,
    KVM_MEMORY_REGION_LIST_GUEST_MEMFD, KVM_USERSPACE_REGISTER_MEM_AREA,
};
use crate::gmap::{self, GmapError};
use crate::memslots::{ioctl, Error, MemslotUpdate, RegionList};

bitflags! {
    /// What the entries of a list can have besides a region
    /// (`KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ListFields: u32 {
        /// [`RegionList::delete_and_fetch_log`].
        const DIRTY_BITMAP = KVM_MEMORY_REGION_LIST_DIRTY_BITMAP;
        /// [`RegionList::create_on_memfd`].
        const GUEST_MEMFD = KVM_MEMORY_REGION_LIST_GUEST_MEMFD;
    }
}

/// Lists of memslot updates on a [`VmFd`], and which of this crate's ioctls the
/// kernel has.
///
/// Source: `linux/kvm_memory.h`. `Documentation/virt/kvm/memory/memslots.rst`
/// says what a vCPU sees during an update.
pub trait VmFdMemoryExt {
    /// The largest number of entries that the kernel accepts in a list, 0 if
    /// the kernel does not have the ioctl (`KVM_CAP_USER_MEMORY_REGION_LIST`).
    ///
    /// If the kernel has the ioctl, one list can replace every slot of the VM.
    fn max_memory_region_list_entries(&self) -> usize;

    /// Whether the kernel has `KVM_SET_USER_MEMORY_REGION_LIST`.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{Error, RegionList, VmFdMemoryExt};
    ///
    /// # fn main() -> Result<(), kvm_ioctls::Error> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// // SAFETY: the list names no memory.
    /// let result = unsafe { vm.set_user_memory_regions(&RegionList::new()) };
    /// if vm.can_set_user_memory_regions() {
    ///     assert_eq!(result, Ok(()));
    /// } else {
    ///     assert_eq!(result, Err(Error::Unsupported));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn can_set_user_memory_regions(&self) -> bool {
        self.max_memory_region_list_entries() > 0
    }

    /// What the kernel accepts in an entry besides a region.
    fn memory_region_list_fields(&self) -> ListFields;

    /// Whether vCPUs can populate memory with
    /// [`VcpuFdMemoryExt`](crate::VcpuFdMemoryExt) (`KVM_CAP_MAP_MEMORY`).
    fn can_populate(&self) -> bool;

    /// How many vCPUs a VM may have if each has an address space of its own, 0 if
    /// this kernel or this VM cannot have that (`KVM_CAP_S390_UCONTROL`).
    fn max_vcpu_address_spaces(&self) -> usize;

    /// Gives each vCPU of the VM an address space of its own, which
    /// [`VcpuAddressSpace`](crate::VcpuAddressSpace) maps. The VM must not have a vCPU,
    /// a memslot or an irqchip yet, and cannot have memslots or an irqchip from then
    /// on.
    ///
    /// # Errors
    ///
    /// [`GmapError::Invalid`].
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{GmapError, VmFdMemoryExt};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// let result = vm.enable_vcpu_address_spaces();
    /// if vm.max_vcpu_address_spaces() > 0 {
    ///     assert_eq!(result, Ok(()));
    /// } else {
    ///     assert_eq!(result, Err(GmapError::Invalid));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn enable_vcpu_address_spaces(&self) -> Result<(), GmapError>;

    /// Whether the kernel has memory areas that guests share
    /// (`KVM_CAP_REGISTER_MEM_AREA`).
    fn can_serve_areas(&self) -> bool;

    /// Has vCPUs exit when the guest registers or unregisters an area of a type
    /// that the VMM serves, or ends that (`KVM_USERSPACE_REGISTER_MEM_AREA`).
    ///
    /// The exit is for [`VcpuFdAreaExt`](crate::VcpuFdAreaExt). It occurs only if
    /// [`offer_areas`](crate::offer_areas) has let the guest use areas.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if the kernel does not have areas.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::VmFdMemoryExt;
    ///
    /// # fn main() -> Result<(), kvm_ioctls::Error> {
    /// let vm = Kvm::new()?.create_vm()?;
    /// let served = vm.serve_areas(true);
    /// assert_eq!(served.is_ok(), vm.can_serve_areas());
    /// # Ok(())
    /// # }
    /// ```
    fn serve_areas(&self, enabled: bool) -> Result<(), errno::Error>;

    /// Applies all entries of `list`, in their order and in one step, or none
    /// of them (`KVM_SET_USER_MEMORY_REGION_LIST`).
    ///
    /// When this method returns, no vCPU can reach memory that only deleted or
    /// moved slots named. An empty list succeeds.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Safety
    ///
    /// The guest may write to the memory that the entries name for as long as
    /// their slots exist. The memory must be mapped, and nothing in this
    /// process may rely on its contents or hold a reference into it. The kernel
    /// writes to each bitmap that an entry names: it must be large enough, and
    /// nothing may use it during the call.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kvm_ioctls::Kvm;
    /// use kvm_memory_uapi::{Error, RegionList, Slot, VmFdMemoryExt};
    ///
    /// let vm = Kvm::new()?.create_vm()?;
    /// let mut list = RegionList::new();
    /// list.delete(Slot::new(7))?;
    /// // SAFETY: no entry names memory.
    /// let refused = unsafe { vm.set_user_memory_regions(&list) };
    /// assert_eq!(refused, Err(Error::Invalid), "there is no slot 7");
    /// # Ok(())
    /// # }
    /// ```
    unsafe fn set_user_memory_regions(&self, list: &RegionList) -> Result<(), Error>;

    /// Applies an update to the VM and, if the kernel accepts it, to the
    /// [`Memslots`](crate::Memslots) from which it was started.
    ///
    /// # Errors
    ///
    /// See [`Error`]. After an error the [`Memslots`](crate::Memslots) are
    /// unchanged.
    ///
    /// # Safety
    ///
    /// As for [`set_user_memory_regions`](Self::set_user_memory_regions).
    ///
    /// # Example
    ///
    /// ```no_run
    /// use kvm_ioctls::VmFd;
    /// use kvm_memory_uapi::{Error, Memslots, Slot, VmFdMemoryExt};
    ///
    /// fn delete(
    ///     vm: &VmFd,
    ///     memslots: &mut Memslots,
    ///     slot: Slot,
    /// ) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut update = memslots.update();
    ///     update.delete(slot)?;
    ///     // SAFETY: no entry names memory.
    ///     if let Err(e) = unsafe { vm.update_memslots(update) } {
    ///         assert_ne!(e, Error::Invalid, "something else has changed the VM's slots");
    ///         assert!(memslots.get(slot).is_some(), "the record is unchanged");
    ///         return Err(e.into());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    unsafe fn update_memslots(&self, update: MemslotUpdate<'_>) -> Result<(), Error> {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.set_user_memory_regions(update.list()) }?;
        update.commit();
        Ok(())
    }
}

impl VmFdMemoryExt for VmFd {
    fn max_memory_region_list_entries(&self) -> usize {
        let n = self.check_extension_raw(c_ulong::from(KVM_CAP_USER_MEMORY_REGION_LIST));
        // A negative number is an error of the ioctl.
        usize::try_from(n).unwrap_or(0)
    }

    fn memory_region_list_fields(&self) -> ListFields {
        let fields =
            self.check_extension_raw(c_ulong::from(KVM_CAP_USER_MEMORY_REGION_LIST_FIELDS));
        // A negative number is an error of the ioctl.
        ListFields::from_bits_truncate(u32::try_from(fields).unwrap_or(0))
    }

    fn can_populate(&self) -> bool {
        self.check_extension_raw(c_ulong::from(KVM_CAP_MAP_MEMORY)) > 0
    }

    fn max_vcpu_address_spaces(&self) -> usize {
        let n = self.check_extension_raw(c_ulong::from(KVM_CAP_S390_UCONTROL));
        usize::try_from(n).unwrap_or(0)
    }

    fn enable_vcpu_address_spaces(&self) -> Result<(), GmapError> {
        gmap::enable(self)
    }

    fn can_serve_areas(&self) -> bool {
        self.check_extension_raw(c_ulong::from(KVM_CAP_REGISTER_MEM_AREA)) > 0
    }

    fn serve_areas(&self, enabled: bool) -> Result<(), errno::Error> {
        let info = kvm_area_info {
            enabled: u8::from(enabled),
            pad: [0; 3],
        };
        // SAFETY: the ioctl reads a `kvm_area_info`, which lives until it returns.
        let ret =
            unsafe { ioctl_with_ref(self, c_ulong::from(KVM_USERSPACE_REGISTER_MEM_AREA), &info) };
        if ret != 0 {
            return Err(errno::Error::last());
        }
        Ok(())
    }

    unsafe fn set_user_memory_regions(&self, list: &RegionList) -> Result<(), Error> {
        // SAFETY: the caller vouches for the memory that the entries name.
        unsafe { ioctl::set_user_memory_regions(self, list) }
    }
}
