// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Updates of a running guest, one at a time, and what each of them costs it.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::RegionList;

use super::case::{Case, Method};
use super::guest::Guest;
use crate::populate::memory::Memory;

/// Time after an update in which a stall counts. It is the same for all methods, and
/// without an update: the longer one waits, the longer is the longest stall.
const WINDOW: Duration = Duration::from_millis(50);

/// What one update did to the guest. At rest, what happens without one.
pub struct Sample {
    /// Time of the update itself.
    pub update: Duration,
    /// Each vCPU's longest time for one page, from the start of the update to
    /// [`WINDOW`] after its end.
    pub stalls: Vec<Duration>,
    /// For each vCPU, the time from the start of the update until it has written to
    /// all of its memory.
    pub sweeps: Vec<Duration>,
    /// Page faults in that time.
    pub faults: u64,
}

impl Sample {
    /// The time until all vCPUs have written to all of their memory.
    pub fn all(&self) -> Duration {
        self.sweeps.iter().copied().max().unwrap_or_default()
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
    let guest = &*guest;
    let faults = guest.faults()?;
    guest.take_longest();
    let before = guest.steps();
    // Set by the thread that updates, so that this one can watch the vCPUs.
    let updated = OnceLock::new();
    thread::scope(|scope| {
        let updater = scope.spawn(|| {
            let time = guest.update(&list, method);
            updated.get_or_init(Instant::now);
            time
        });
        let in_window = || updated.get().is_none_or(|end| end.elapsed() < WINDOW);
        let mut stalls = None;
        let sweeps = guest.wait_for_sweep(&before, &mut || {
            if !in_window() {
                stalls.get_or_insert_with(|| guest.take_longest());
            }
        });
        let update = updater
            .join()
            .map_err(|_| anyhow!("the thread that updates memslots panicked"))??;
        let sweeps = sweeps?;
        while stalls.is_none() && in_window() {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Sample {
            update,
            stalls: stalls.unwrap_or_else(|| guest.take_longest()),
            sweeps,
            faults: guest.faults()? - faults,
        })
    })
}
