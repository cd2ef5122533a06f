// SPDX-License-Identifier: GPL-2.0-only
//! How much memory the guest has left, for a VMM that would take some away or give some back.

use kernel::{
    bindings,
    sync::{
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::{
            smp_mb,
            Write, //
        }, //
    },
};

use crate::{
    area::{
        Area,
        Shared, //
    },
    layout, //
};

pub(crate) type Contents = layout::Pressure<Atomic<u64>>;

// SAFETY: An integer is valid whatever it is.
unsafe impl Shared for Contents {
    const TYPE: u32 = layout::PRESSURE;
}

/// The figures. One work item updates them, so that there is one writer at a time.
pub(crate) struct Pressure(pub(crate) Area<Contents>);

impl Pressure {
    pub(crate) fn update(&self) {
        let mut info = bindings::sysinfo::default();
        // SAFETY: It is a struct to be filled.
        unsafe { bindings::si_meminfo(&raw mut info) };
        // SAFETY: The function takes nothing.
        let available = unsafe { bindings::si_mem_available() };
        let bytes = |units: usize| (units as u64).wrapping_mul(info.mem_unit.into());

        let area = &*self.0;
        let sequence = area.sequence.load(Relaxed);
        area.sequence.store(sequence.wrapping_add(1), Relaxed);
        // Pairs with the reader's second look at `sequence`.
        smp_mb(Write);
        area.total.store(bytes(info.totalram), Relaxed);
        area.free.store(bytes(info.freeram), Relaxed);
        // Negative if the reserves are larger than what is free.
        area.available
            .store(bytes(usize::try_from(available).unwrap_or(0)), Relaxed);
        area.sequence.store(sequence.wrapping_add(2), Release);
    }
}
