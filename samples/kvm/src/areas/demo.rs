// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What the guest goes through, and the verdict.

use std::{
    hint::black_box,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;

use crate::{
    areas::{
        guest::{Files, Guest, WATCHDOG},
        report::{self, Cost, Hang, Report},
        transfer,
        watch::Watch,
    },
    kick::register_kick,
};

/// How long each part takes.
struct Times {
    /// The exits of so long are counted.
    count: Duration,
    /// The guest is watched so long before and after it hangs.
    watch: Duration,
    hang: Duration,
}

/// The guest is idle after so long.
const SETTLE: Duration = Duration::from_millis(500);
/// Milliseconds between two heartbeats.
const PERIOD: u32 = 50;
const STATE: &str = "/sys/kernel/debug/kvm_areas/state";

/// Boots Linux, shows what the VMM learns of it through areas, and fails if that is not
/// what the guest has done.
pub fn run(kvm: &Kvm, files: &Files, quick: bool, svg: Option<&Path>) -> Result<()> {
    register_kick()?;
    let times = if quick {
        Times {
            count: Duration::from_millis(1500),
            watch: Duration::from_millis(500),
            hang: Duration::from_millis(1000),
        }
    } else {
        Times {
            count: Duration::from_secs(10),
            watch: Duration::from_millis(1500),
            hang: Duration::from_millis(2000),
        }
    };

    eprintln!("booting Linux ...");
    let guest = Guest::boot(kvm, files, files.initramfs()?, true)?;

    eprintln!("counting exits ...");
    let idle = count(&guest, "no heartbeat", times.count)?;
    load(&guest, &format!("mmio_watchdog={WATCHDOG:#x}"))?;
    let watchdog = count(&guest, "MMIO watchdog", times.count)?;
    unload(&guest)?;
    load(&guest, "steal=1")?;
    let area = count(&guest, "memory area", times.count)?;

    eprintln!("taking processors from the guest ...");
    let steal = steal(&guest, times.hang)?;

    eprintln!("hanging ...");
    let mut watch = Watch::since(Duration::ZERO);
    watch_for(&mut watch, &guest, times.watch)?;
    let hangs = vec![
        hang(&mut watch, &guest, "tasks", &times)?,
        hang(&mut watch, &guest, "interrupts", &times)?,
    ];

    let state = guest.run(&format!("cat {STATE}"))?;
    let memory = guest
        .served
        .memory(guest.machine.memory())?
        .context("the guest does not say how much memory it has")?;

    eprintln!("moving to another process, and panicking there ...");
    let served = guest.served.clone();
    let stopped = guest.machine.stop()?;
    let moved = watch.elapsed();
    let afterlife = transfer::send(kvm, &stopped, &served, watch.elapsed(), times.watch)?;
    let before = watch.samples().last().context("nothing was seen")?.beats;
    watch.extend(afterlife.samples);

    let report = Report {
        costs: vec![idle, watchdog, area],
        hangs,
        steal,
        state,
        memory,
        moved,
        samples: watch.samples().to_vec(),
        end: afterlife.end,
        remains: afterlife.remains,
    };
    print!("{}", report::text(&report));
    if let Some(path) = svg {
        report::svg(&report, path)?;
    }
    report.check(before)
}

fn load(guest: &Guest, params: &str) -> Result<()> {
    guest.run(&format!("insmod /kvm_areas.ko period_ms={PERIOD} {params}"))?;
    ensure!(
        guest.served.beats(guest.machine.memory())?.is_some(),
        "the guest registers no heartbeat: {}",
        guest.run("dmesg | grep kvm_areas")?
    );
    Ok(())
}

fn unload(guest: &Guest) -> Result<()> {
    guest.run("rmmod kvm_areas")?;
    ensure!(
        guest.served.bases().is_empty(),
        "the guest leaves areas behind: {:x?}",
        guest.served.bases()
    );
    Ok(())
}

/// Counts the exits of an idle guest.
fn count(guest: &Guest, what: &'static str, time: Duration) -> Result<Cost> {
    let read = |guest: &Guest| -> Result<(u64, u64, u64)> {
        let beats = guest.served.beats(guest.machine.memory())?;
        let (exits, mmio_exits) = guest.machine.exits()?;
        Ok((beats.map_or(0, |beats| beats.timer), exits, mmio_exits))
    };
    // The shell is still on its way to sleep.
    thread::sleep(SETTLE);
    let first = read(guest)?;
    thread::sleep(time);
    let last = read(guest)?;
    // The guest can write whatever it likes to the counter.
    let beats = last.0.checked_sub(first.0);
    Ok(Cost {
        what,
        beats: beats.with_context(|| format!("{what}: the guest counts its beats backwards"))?,
        exits: last.1 - first.1,
        mmio_exits: last.2 - first.2,
    })
}

fn watch_for(watch: &mut Watch, guest: &Guest, time: Duration) -> Result<()> {
    watch.watch(&guest.served, guest.machine.memory(), time)?;
    Ok(())
}

/// Lets the guest hang, and watches it.
fn hang(watch: &mut Watch, guest: &Guest, what: &'static str, times: &Times) -> Result<Hang> {
    let command = format!(
        "echo {what} {} >/sys/kernel/debug/kvm_areas/hang",
        times.hang.as_millis()
    );
    let at = watch.elapsed();
    guest.begin(&command)?;
    let seen = watch.watch(
        &guest.served,
        guest.machine.memory(),
        times.hang + times.watch,
    )?;
    guest.finish(&command)?;
    Ok(Hang {
        what,
        at,
        time: times.hang,
        seen,
    })
}

/// Keeps the host's processors busy, and returns the time that the guest has not had,
/// as KVM says it in the area.
fn steal(guest: &Guest, time: Duration) -> Result<Duration> {
    let before = stolen(guest)?;
    let stop = AtomicBool::new(false);
    let processors = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        for _ in 0..2 * processors {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    black_box(());
                }
            });
        }
        // The guest must want to run, too.
        let result = guest.run(&format!(
            "timeout {} sh -c 'while :; do :; done' || :",
            time.as_secs().max(1)
        ));
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(stolen(guest)?.saturating_sub(before))
}

fn stolen(guest: &Guest) -> Result<Duration> {
    let text = guest.run(&format!("sed -n 's/^  \\([0-9]*\\) ns$/\\1/p' {STATE}"))?;
    let nanoseconds = text
        .trim()
        .parse()
        .with_context(|| format!("the guest has no steal time, but: {text}"))?;
    Ok(Duration::from_nanos(nanoseconds))
}
