// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! KVM's guest-memory ioctls for users of [`kvm_ioctls`]:
//! `KVM_SET_USER_MEMORY_REGION_LIST` updates many memslots in one step,
//! `KVM_MAP_MEMORY` populates guest memory before the guest needs it,
//! `KVM_S390_UCAS_MAP` gives each vCPU a memory map of its own, and
//! `KVM_EXIT_X86_MSR_OP` tells a VMM of memory that the guest shares with it.
//!
//! A VMM that resizes, splits or moves a memslot with single ioctls leaves the
//! guest without that memory in between, and a vCPU that runs there dies. KVM
//! applies a list as a whole: a running vCPU sees the slots before the list or
//! the slots after it, and if one entry fails, no entry takes effect.
//!
//! A guest that touches memory for the first time leaves guest mode for each
//! page. Populated memory is mapped already.
//!
//! In a VM whose vCPUs have address spaces of their own, a world is a vCPU and what
//! this process maps for it, which any thread may change while the vCPU runs.
//!
//! A guest that shares an area of memory with its VMM needs no exit to tell it
//! something, or to be told.
//!
//! | family | type | is |
//! |---|---|---|
//! | memslots | [`RegionList`] | the argument of the ioctl, built entry by entry; refuses every entry that all VMs would refuse |
//! | | [`Memslots`] | a VMM's record of its slots, which changes only after the kernel accepted an update |
//! | | [`VmFdMemoryExt`] | the ioctl, on [`VmFd`](kvm_ioctls::VmFd) |
//! | populate | [`Mapping`] | guest memory that remains to be populated |
//! | | [`VcpuFdMemoryExt`] | the ioctl, on [`VcpuFd`](kvm_ioctls::VcpuFd): one step, all steps, or an iterator over the steps |
//! | gmap | [`VcpuAddressSpace`] | the address space of a vCPU, and what it keeps mapped |
//! | | [`Memory`], [`Part`] | memory that address spaces can map |
//! | | [`VcpuFdGmapExt`] | what a vCPU has missed |
//! | areas | [`VcpuFdAreaExt`] | the exit with which a guest shares an area, on [`VcpuFd`](kvm_ioctls::VcpuFd): a request that must be answered |
//! | | [`offer_areas`] | the CPUID bit that lets a guest do that |
//! | all | [`Stats`], [`Counter`] | KVM's statistics, for example the number of page faults that the guest took |
//! | | [`bindings`] | the C structs and numbers, generated from `linux/kvm_memory.h` |
//!
//! # Examples
//!
//! A slot of two pages becomes two slots, under running vCPUs:
//!
//! ```no_run
//! use kvm_ioctls::Kvm;
//! use kvm_memory_uapi::{Flags, Memslots, Region, Slot, VmFdMemoryExt};
//!
//! # fn mmap(_len: u64) -> u64 { 0 }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Kvm::new()?.create_vm()?;
//! assert!(vm.can_set_user_memory_regions(), "this kernel does not have the ioctl");
//!
//! let whole = Region {
//!     slot: Slot::new(0),
//!     flags: Flags::empty(),
//!     guest_phys_addr: 0,
//!     memory_size: 0x2000,
//!     userspace_addr: mmap(0x2000),
//! };
//! let (low, high) = whole.split_at(0x1000, Slot::new(1)).ok_or("not inside the slot")?;
//!
//! let mut memslots = Memslots::new();
//! let mut update = memslots.update();
//! update.create(whole)?;
//! // SAFETY: the mapping outlives the VM.
//! unsafe { vm.update_memslots(update) }?;
//!
//! let mut update = memslots.update();
//! update.delete(whole.slot)?.create(low)?.create(high)?;
//! // SAFETY: as above, and the halves name the same memory.
//! unsafe { vm.update_memslots(update) }?;
//! # Ok(())
//! # }
//! ```
//!
//! A vCPU populates both pages for writing. The third page of the range has no
//! memslot, so populating fails there, and the mapping says which page failed:
//!
//! ```no_run
//! use kvm_memory_uapi::{Access, Mapping, PopulateError, VcpuFdMemoryExt};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! let mut mapping = Mapping::new(0, 0x3000, Access::WRITE)?;
//! assert_eq!(vcpu.populate(&mut mapping), Err(PopulateError::NoMemslot));
//! assert_eq!((mapping.guest_phys_addr(), mapping.pages()), (0x2000, 1));
//! # Ok(())
//! # }
//! ```

mod areas;
mod gmap;
mod memslots;
mod populate;
mod reason;
mod stats;
mod vm;

/// `linux/kvm_memory.h` as bindgen translates it; `bindgen.sh` regenerates it.
#[allow(
    missing_docs,
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]
pub mod bindings;

pub use areas::{offer_areas, Answer, Area, CustomResult, Request, VcpuFdAreaExt, MSR_OP_EXIT};
pub use gmap::{
    GmapError, HostMemory, Memory, Part, VcpuAddressSpace, VcpuFdGmapExt, SEGMENT_SIZE,
};
pub use memslots::{EntryError, Error, Flags, MemslotUpdate, Memslots, Region, RegionList, Slot};
pub use populate::{Access, Mapping, PopulateError, PopulateSteps, Progress, VcpuFdMemoryExt};
pub use reason::{Field, Reason, PAGE_SIZE};
pub use stats::{Counter, Stats};
pub use vm::{ListFields, VmFdMemoryExt};
