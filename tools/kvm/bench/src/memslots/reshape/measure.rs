// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Updates of a running guest, one at a time, and what each of them costs it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use kvm_ioctls::Kvm;
use kvm_memory_uapi::RegionList;

use super::case::{Case, Method};
use super::guest::Guest;
use crate::populate::memory::Memory;

/// Time after an update in which a stall counts. It is the same for all methods, and
/// without an update: the longer one waits, the longer is the longest stall.
const WINDOW: Duration = Duration::from_millis(50);

/// What a vCPU did from the start of an update until, after its end, the vCPU had
/// written to all of its memory.
pub struct Sweep {
    pub time: Duration,
    /// Pages to which it wrote in that time, during the update or after it.
    pub pages: u32,
}

/// What one update did to the guest. At rest, what happens without one.
pub struct Sample {
    /// Time of the update itself.
    pub update: Duration,
    /// Each vCPU's longest time for one page, from the start of the update to
    /// [`WINDOW`] after its end.
    pub stalls: Vec<Duration>,
    /// Of each vCPU.
    pub sweeps: Vec<Sweep>,
    /// Page faults in that time.
    pub faults: u64,
}

impl Sample {
    /// The time until all vCPUs have written to all of their memory.
    pub fn all(&self) -> Duration {
        let times = self.sweeps.iter().map(|sweep| sweep.time);
        times.max().unwrap_or_default()
    }
}

/// Updates the slots of a new guest `updates` times. Returns as many samples at rest
/// as with updates, taken in turn.
pub fn measure(
    kvm: &Kvm,
    memory: &Memory,
    case: Case,
    method: Method,
    updates: usize,
) -> Result<Vec<(Method, Sample)>> {
    let mut guest = Guest::start(kvm, case, memory)?;
    let mut samples = Vec::new();
    for _ in 0..updates {
        for method in [Method::Rest, method] {
            samples.push((method, sample(&mut guest, method)?));
        }
    }
    guest.finish()?;
    Ok(samples)
}

fn sample(guest: &mut Guest<'_>, method: Method) -> Result<Sample> {
    let list = match method {
        Method::Rest => RegionList::new(),
        _ => guest.slots.split_or_merge()?,
    };
    let faults = guest.faults()?;
    guest.take_longest();
    let before = guest.steps();
    let update = guest.update(&list, method)?;

    let updated = Instant::now();
    let mut stalls = None;
    // Pages that a vCPU wrote to before the update was over do not count: a paused
    // vCPU may have written to all of them before it was paused.
    let ends = guest.wait_for_sweep(&guest.steps(), &mut || {
        if updated.elapsed() >= WINDOW {
            stalls.get_or_insert_with(|| guest.take_longest());
        }
    })?;
    let stalls = stalls.unwrap_or_else(|| {
        thread::sleep(WINDOW.saturating_sub(updated.elapsed()));
        guest.take_longest()
    });
    let sweep = |(before, (time, steps)): (&u32, (Duration, u32))| Sweep {
        time: update + time,
        pages: steps.wrapping_sub(*before),
    };
    Ok(Sample {
        update,
        stalls,
        sweeps: before.iter().zip(ends).map(sweep).collect(),
        faults: guest.faults()? - faults,
    })
}
