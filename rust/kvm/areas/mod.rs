// SPDX-License-Identifier: GPL-2.0-only

//! Memory areas that a guest shares with its hypervisor.
//!
//! | file | contents |
//! |---|---|
//! | `descriptor.rs` | the descriptor that a guest writes, and results; pure |
//! | `types.rs` | the types of areas that KVM serves; pure |
//! | `command.rs` | what a write of one of the two MSRs does; pure |
//! | `msr.rs` | the functions that C calls for the MSRs |
//! | `ioctl.rs` | the function that C calls for `KVM_USERSPACE_REGISTER_MEM_AREA` |
//! | `x86.c` | guest memory, and the MSRs that areas stand for |
//!
//! KVM parses, checks, routes and reports. It keeps no registry: an area that KVM serves *is* the
//! MSR of that name, with its filter, reset, saving and restoring, and the VMM knows the areas that
//! it serves itself. A registry would need all of that once more, would grow as the guest likes, and
//! could disagree with the MSRs. So there is no lock here, and the only state is the exit that
//! a vCPU has in flight.
//!
//! All of it runs in the vCPU's own read section of `kvm->srcu`, as the WRMSR does that causes it.
//! A command that KVM meets elsewhere, in L1's list of MSRs for a vCPU that leaves L2 because it is
//! destroyed, is refused.

pub mod command;
pub mod descriptor;
pub mod ioctl;
pub mod msr;
pub mod types;
