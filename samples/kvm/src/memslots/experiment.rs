// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Runs and measures one guest with one way to update its memslots.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, Context, Result};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::memslots::{
    guest::{self, Variant},
    machine::{self, Machine, Sides},
    plan::Plan,
};

/// Interval at which the host reads the guest's step counters.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(1);
/// Time before the first update: stalls in it show what the guest does at rest.
pub const UNDISTURBED: Duration = Duration::from_millis(200);
/// Pause before the next update, once all vCPUs make progress.
const BETWEEN_UPDATES: Duration = Duration::from_millis(1);
/// A vCPU without progress for so long is dead.
const HUNG: Duration = Duration::from_secs(10);

/// A way to apply a list of updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With single ioctls, while the vCPUs run.
    Single,
    /// With single ioctls, while the vCPUs are paused.
    Paused,
    /// With one ioctl.
    List,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::Single, Method::Paused, Method::List];

    pub fn letter(self) -> char {
        match self {
            Method::Single => 'a',
            Method::Paused => 'b',
            Method::List => 'c',
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Single => "single ioctls",
            Method::Paused => "vCPUs paused",
            Method::List => "list",
        })
    }
}

/// The step counters of all vCPUs at one time.
pub struct Sample {
    /// Time since the start; there is no update in the first [`UNDISTURBED`].
    pub at: Duration,
    /// Of the vCPUs in the window.
    pub steps: Vec<u64>,
    pub bystander: u64,
}

/// Page faults from the beginning of an update to that of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of the updates that reshape slots.
    pub reshapes: Sides<u64>,
    /// Of the updates that move a slot.
    pub moves: Sides<u64>,
}

/// The result for a guest. A stall is a time in which a vCPU completes no step;
/// for a guest that died, stalls and page faults count up to the last update that
/// it survived. Stalls are those of the vCPUs in the window if nothing else is
/// said.
pub struct Outcome {
    pub variant: Variant,
    pub method: Method,
    pub updates: usize,
    /// Updates after which every vCPU made progress.
    pub survived: usize,
    pub death: Option<String>,
    /// What the guest computed wrongly; `None` if it died.
    pub wrong: Option<String>,
    /// The longest stall in [`UNDISTURBED`], as a vCPU measured it.
    pub stall_undisturbed: Duration,
    /// The longest stall during the updates, as a vCPU measured it.
    pub stall_guest: Duration,
    /// The mean of the longest stalls of the updates.
    pub stall_guest_mean: Duration,
    /// The longest stall of the bystander during the updates, by its own clock.
    pub stall_bystander: Duration,
    /// The longest stall that the host's samples show, which is a lower bound.
    pub stall_host: Duration,
    /// Mean time of an update, pausing and resuming included.
    pub update_mean: Duration,
    pub faults: Faults,
    pub samples: Vec<Sample>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.survived == self.updates && self.death.is_none() && self.wrong.is_none()
    }

    /// Whether no vCPU took a page fault because slots were reshaped.
    pub fn undisturbed(&self) -> bool {
        self.faults.reshapes == Sides::default()
    }
}

/// Runs a new guest through `updates` updates, or until it dies. With
/// `populated`, its memory is populated before it runs.
pub fn run(
    kvm: &Kvm,
    variant: Variant,
    method: Method,
    vcpus: u64,
    populated: bool,
    updates: usize,
) -> Result<Outcome> {
    let mut machine = Machine::start(kvm, vcpus, variant, populated)?;
    // While the guest faults its pages in, it stalls without any update.
    if let Some(death) = wait_for_progress(&mut machine, vcpus, 20)? {
        bail!("the guest does not even start: {death}");
    }
    machine.take_longest_gap()?;

    let start = Instant::now();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let memory = machine.memory().clone();
        let sampler = scope.spawn(|| sample(memory, vcpus, start, &stop));
        let outcome = drive(machine, variant, method, vcpus, updates, start);
        stop.store(true, Ordering::Relaxed);
        let samples = sampler
            .join()
            .map_err(|_| anyhow!("the sampling thread panicked"))??;

        let (mut outcome, updating) = outcome?;
        outcome.stall_host = longest_stall(&samples, updating);
        outcome.samples = samples;
        Ok(outcome)
    })
}

/// All of [`run`] but the samples. Also returns when the first and the last update
/// were.
fn drive(
    mut machine: Machine,
    variant: Variant,
    method: Method,
    vcpus: u64,
    updates: usize,
    start: Instant,
) -> Result<(Outcome, (Duration, Duration))> {
    let mut plan = Plan::new(machine.window());
    let mut outcome = Outcome {
        variant,
        method,
        updates,
        survived: 0,
        death: None,
        wrong: None,
        stall_undisturbed: Duration::ZERO,
        stall_guest: Duration::ZERO,
        stall_guest_mean: Duration::ZERO,
        stall_bystander: Duration::ZERO,
        stall_host: Duration::ZERO,
        update_mean: Duration::ZERO,
        faults: Faults::default(),
        samples: Vec::new(),
    };
    thread::sleep(UNDISTURBED);
    outcome.stall_undisturbed = machine.take_longest_gap()?.window;

    let first = start.elapsed();
    let mut last = first;
    let mut in_updates = Duration::ZERO;
    let mut stalls = Duration::ZERO;
    let mut faults = machine.faults()?;
    for number in 1..=updates {
        let update = plan.next_update()?;
        let begin = Instant::now();
        match method {
            Method::Single => machine.set_one_by_one(&update.list),
            Method::Paused => machine.set_one_by_one_paused(&update.list),
            Method::List => machine.set_list(&update.list),
        }
        .with_context(|| format!("update {number} ({})", update.operation))?;
        in_updates += begin.elapsed();
        outcome.update_mean = in_updates / number as u32;

        // Two steps, as the first one may have begun before the update.
        if let Some(death) = wait_for_progress(&mut machine, vcpus, 2)? {
            outcome.death = Some(format!("update {number} ({}), {death}", update.operation));
            break;
        }
        let stall = machine.take_longest_gap()?;
        stalls += stall.window;
        outcome.survived = number;
        outcome.stall_guest = outcome.stall_guest.max(stall.window);
        outcome.stall_guest_mean = stalls / number as u32;
        outcome.stall_bystander = outcome.stall_bystander.max(stall.bystander);
        last = start.elapsed();
        thread::sleep(BETWEEN_UPDATES);

        let now = machine.faults()?;
        let caused = if update.operation.moves() {
            &mut outcome.faults.moves
        } else {
            &mut outcome.faults.reshapes
        };
        caused.window += now.window.saturating_sub(faults.window);
        caused.bystander += now.bystander.saturating_sub(faults.bystander);
        faults = now;
    }
    if outcome.death.is_none() {
        outcome.wrong = machine.finish()?;
    }
    Ok((outcome, (first, last)))
}

/// Waits until every vCPU has completed `steps` more steps. Returns how the guest
/// died if it does not.
fn wait_for_progress(machine: &mut Machine, vcpus: u64, steps: u64) -> Result<Option<String>> {
    let goals = read_steps(machine.memory(), vcpus)?;
    let begin = Instant::now();
    loop {
        if let Some(death) = machine.death() {
            return Ok(Some(death));
        }
        let now = read_steps(machine.memory(), vcpus)?;
        let Some(behind) = (0..goals.len()).find(|&vcpu| now[vcpu] < goals[vcpu] + steps) else {
            return Ok(None);
        };
        if begin.elapsed() > HUNG {
            let name = machine::ids(vcpus).nth(behind).map(guest::name);
            return Ok(Some(format!(
                "{}: no progress for {} s at rip {:#x}",
                name.unwrap_or_default(),
                HUNG.as_secs(),
                machine.locate(behind)?
            )));
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// The step counters of all vCPUs, the bystander's last.
fn read_steps(memory: &GuestMemoryMmap, vcpus: u64) -> Result<Vec<u64>> {
    machine::ids(vcpus)
        .map(|vcpu| Ok(memory.load(guest::steps(vcpu), Ordering::Relaxed)?))
        .collect()
}

fn sample(
    memory: GuestMemoryMmap,
    vcpus: u64,
    start: Instant,
    stop: &AtomicBool,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let at = start.elapsed();
        let mut steps = read_steps(&memory, vcpus)?;
        samples.push(Sample {
            at,
            bystander: steps.pop().context("no bystander")?,
            steps,
        });
        thread::sleep(SAMPLE_INTERVAL);
    }
    Ok(samples)
}

/// The longest time for which a vCPU had the same count.
fn longest_stall(samples: &[Sample], (from, to): (Duration, Duration)) -> Duration {
    let mut seen: Vec<(u64, Duration)> = Vec::new();
    let mut longest = Duration::ZERO;
    for sample in samples.iter().filter(|s| (from..=to).contains(&s.at)) {
        seen.resize(sample.steps.len(), (u64::MAX, Duration::ZERO));
        for (&steps, (count, since)) in sample.steps.iter().zip(&mut seen) {
            if *count == steps {
                longest = longest.max(sample.at - *since);
            } else {
                (*count, *since) = (steps, sample.at);
            }
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_of_one_vcpu_counts_and_only_within_the_updates() {
        let ms = Duration::from_millis;
        let samples: Vec<_> = [
            (0, [1, 1]),
            (9, [1, 1]),
            (10, [2, 2]),
            (11, [3, 2]),
            (14, [4, 2]),
            (15, [5, 3]),
            (16, [6, 4]),
            (30, [6, 4]),
        ]
        .map(|(at, steps)| Sample {
            at: ms(at),
            steps: steps.to_vec(),
            bystander: 0,
        })
        .into();
        assert_eq!(longest_stall(&samples, (ms(10), ms(20))), ms(4));
        assert_eq!(longest_stall(&samples, (ms(0), ms(40))), ms(14));
        assert_eq!(longest_stall(&[], (ms(0), ms(40))), ms(0));
    }
}
