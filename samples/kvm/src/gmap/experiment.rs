// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Runs workers, pager and monitor, and checks the results.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_ioctls::{Kvm, VcpuExit};
use kvm_memory_uapi::{Memory, Part, VcpuFdGmapExt, VmFdMemoryExt, SEGMENT_SIZE};

use crate::gmap::{
    guest::{self, Program, MAX_SEGMENTS, PORT, WINDOW},
    pager::{pager, Pager},
    world::World,
};

/// What the monitor has read at some time.
pub struct Reading {
    pub at: Duration,
    pub world: usize,
    pub visits: u64,
}

/// What a worker has done.
pub struct Outcome {
    /// How long the pager took for each segment that was missing.
    pub answers: Vec<Duration>,
    pub visits: u64,
    pub time: Duration,
    pub is_right: bool,
}

/// Runs `workers` workers, each of which visits `segments` segments `passes` times, and a
/// monitor. Returns the outcome of each worker, and what the monitor has read.
pub fn run(
    kvm: &Kvm,
    workers: u64,
    segments: u64,
    passes: u64,
) -> Result<(Vec<Outcome>, Vec<Reading>)> {
    ensure!(
        segments.is_power_of_two() && segments <= MAX_SEGMENTS,
        "--segments must be a power of 2, at most {MAX_SEGMENTS}"
    );
    let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
    let max = vm.max_vcpu_address_spaces() as u64;
    ensure!(
        max > workers,
        "this KVM cannot give {} vCPUs address spaces of their own (KVM_CAP_S390_UCONTROL); load \
         KVM modules that were built with CONFIG_KVM_RUST_MEMORY=y, with the TDP MMU",
        workers + 1
    );
    vm.enable_vcpu_address_spaces()
        .context("cannot give vCPUs address spaces")?;

    let program = Program::Worker { segments, passes };
    let worlds = (0..workers)
        .map(|id| World::new(kvm, &vm, id, program))
        .collect::<Result<Vec<_>>>()?;
    let monitor = World::new(kvm, &vm, workers, Program::Monitor)?;
    let lows: Vec<_> = worlds.iter().map(|world| world.low.clone()).collect();

    let running = AtomicUsize::new(worlds.len());
    let start = Instant::now();
    let (mut outcomes, readings) = thread::scope(|scope| -> Result<_> {
        let (pager, requests) = pager(segments);
        scope.spawn(move || requests.serve());
        let workers: Vec<_> = (0..)
            .zip(worlds)
            .map(|(id, world)| {
                let (pager, running) = (pager.clone(), &running);
                scope.spawn(move || {
                    let outcome = work(id, world, &pager, start);
                    running.fetch_sub(1, Ordering::Relaxed);
                    outcome
                })
            })
            .collect();
        drop(pager);
        let readings = watch(monitor, &lows, start, &running)?;
        let outcomes = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
            .collect::<Result<Vec<_>>>()?;
        Ok((outcomes, readings))
    })?;

    for (id, outcome) in (0..).zip(&mut outcomes) {
        outcome.is_right &= outcome.visits == segments * passes
            && outcome.answers.len() as u64 == segments
            && never_back(&readings, id, outcome.visits);
    }
    Ok((outcomes, readings))
}

/// Whether what the monitor has read of a world's counter only ever grows, up to
/// its last value.
fn never_back(readings: &[Reading], world: usize, end: u64) -> bool {
    let mut last = 0;
    readings
        .iter()
        .filter(|reading| reading.world == world)
        .all(|reading| {
            let grows = reading.visits >= last && reading.visits <= end;
            last = reading.visits;
            grows
        })
}

/// Runs a worker to its end.
fn work(id: usize, mut world: World, pager: &Pager, start: Instant) -> Result<Outcome> {
    let (mut answers, number) = (Vec::new(), id as u64);
    loop {
        match world.vcpu.run().context("KVM_RUN failed")? {
            VcpuExit::S390Ucontrol => {}
            VcpuExit::Hlt => break,
            exit => bail!("world {id}: unexpected exit {exit:?}"),
        }
        let page = world
            .vcpu
            .missing_page()
            .context("no address in the exit")?;
        let segment = page & !(SEGMENT_SIZE - 1);
        answers.push(pager.page_in(number, &world.space, segment)?);
    }
    let time = start.elapsed();
    let sum = world.vcpu.get_regs().context("KVM_GET_REGS failed")?.r12;
    let visits = visits(&world.low);
    let segments = answers.len() as u64;
    let passes = visits / segments.max(1);
    Ok(Outcome {
        is_right: sum == guest::expected(number, segments, passes),
        answers,
        visits,
        time,
    })
}

fn visits(low: &Memory) -> u64 {
    low.word(guest::VISITS)
        .map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Has the monitor look at one worker after the other, each time through the same
/// window, until no worker runs.
fn watch(
    mut monitor: World,
    lows: &[Arc<Memory>],
    start: Instant,
    running: &AtomicUsize,
) -> Result<Vec<Reading>> {
    let mut readings = Vec::new();
    loop {
        let last = running.load(Ordering::Relaxed) == 0;
        for (world, low) in lows.iter().enumerate() {
            monitor
                .space
                .map(WINDOW, Part::all(low.clone())?)
                .context("cannot map the window")?;
            let visits = match monitor.vcpu.run().context("KVM_RUN failed")? {
                VcpuExit::IoOut(PORT, data) => match <[u8; 4]>::try_from(data) {
                    Ok(bytes) => u64::from(u32::from_le_bytes(bytes)),
                    Err(_) => bail!("the monitor wrote {} bytes", data.len()),
                },
                exit => bail!("monitor: unexpected exit {exit:?}"),
            };
            readings.push(Reading {
                at: start.elapsed(),
                world,
                visits,
            });
        }
        if last {
            return Ok(readings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_never_goes_back() {
        let readings = |visits: &[u64]| -> Vec<Reading> {
            visits
                .iter()
                .map(|&visits| Reading {
                    at: Duration::ZERO,
                    world: 1,
                    visits,
                })
                .collect()
        };
        assert!(never_back(&readings(&[0, 1, 1, 5]), 1, 5));
        assert!(!never_back(&readings(&[0, 2, 1, 5]), 1, 5));
        assert!(!never_back(&readings(&[0, 6]), 1, 5));
        assert!(never_back(&readings(&[3, 2]), 0, 0));
    }
}
