// SPDX-License-Identifier: GPL-2.0-only
//! Steal time, which KVM itself serves, by an area in place of the MSR.

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::area::{
    Area,
    RegisterError,
    Shared, //
};

/// `struct kvm_steal_time`
#[repr(C, align(64))]
pub(crate) struct Contents {
    steal: Atomic<u64>,
    rest: [Atomic<u32>; 14],
}

const _: () = assert!(size_of::<Contents>() == size_of::<bindings::kvm_steal_time>());

// SAFETY: Integers are valid whatever they are.
unsafe impl Shared for Contents {
    const TYPE: u32 = bindings::KVM_MEM_AREA_TYPE_STEAL_TIME;
}

/// The steal time of the first processor, which cannot be taken offline.
pub(crate) struct Steal(pub(crate) Area<Contents>);

impl Steal {
    pub(crate) fn register() -> Result<Self, RegisterError> {
        let mut msr = 0;
        // SAFETY: It is a value to be filled.
        let ret =
            unsafe { bindings::rdmsrq_safe_on_cpu(0, bindings::MSR_KVM_STEAL_TIME, &raw mut msr) };
        // An area of this type is that MSR. If the kernel uses it, it must not be taken away.
        if ret == 0 && msr & u64::from(bindings::KVM_MSR_ENABLED) != 0 {
            pr_info!("the kernel accounts steal time itself\n");
            return Err(RegisterError::Failed(EBUSY));
        }
        Ok(Self(Area::register_on(0)?))
    }

    /// Time in which the processor wanted to run and did not.
    pub(crate) fn nanoseconds(&self) -> u64 {
        self.0.steal.load(Relaxed)
    }
}
