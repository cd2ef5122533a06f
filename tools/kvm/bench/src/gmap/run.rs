// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All measurements of address spaces.

use std::path::Path;

use anyhow::{Context, Result};

use crate::flavour::{load, Flavour};
use crate::gmap::measure;
use crate::gmap::report::Report;
use crate::gmap::world::Factory;
use crate::progress::Progress;

/// Segments in 512 GiB.
const LARGE: u64 = 512 << 10;

/// Measures all cases in all rounds and prints the table. All of it runs on the Rust
/// core: the C code has no address spaces of vCPUs.
pub fn run(quick: bool, rounds: Option<u32>, kvm_flavour: &Path) -> Result<()> {
    let rounds = rounds.unwrap_or(if quick { 2 } else { 3 });
    let (extents, worlds): (&[u64], &[u64]) = if quick {
        (&[1, 100], &[1, 8])
    } else {
        (&[1, 100, 1000], &[1, 8, 64, 255])
    };
    let most = worlds.iter().copied().max().unwrap_or(1);
    load(Flavour::Rust, kvm_flavour)?;
    let factory = Factory::new()?;

    let mut report = Report::default();
    let mut progress =
        Progress::new(rounds as usize * (2 * (extents.len() + 1) + worlds.len() + 3));
    for round in 1..=rounds {
        for running in [false, true] {
            let beside = if running { ", a vCPU running" } else { "" };
            for &n in extents {
                progress.step(&format!("round {round}, {n} extents of 1 MiB{beside}"));
                let times = measure::small(&factory, n, running)
                    .with_context(|| format!("{n} extents{beside}"))?;
                report.changes(&format!("{n} of 1 MiB{beside}"), times);
            }
            progress.step(&format!("round {round}, 512 GiB{beside}"));
            let times = measure::large(&factory, LARGE, running)
                .with_context(|| format!("512 GiB{beside}"))?;
            report.changes(&format!("512 GiB{beside}"), times);
        }

        progress.step(&format!("round {round}, faults"));
        let [missing, mapped] = measure::fault(&factory, if quick { 50 } else { 500 })?;
        report.add("from the exit to the access", missing);
        report.add("page fault if it is mapped before", mapped);

        progress.step(&format!("round {round}, {most} worlds and VMs"));
        let lives = measure::lives(&factory, most)?;
        report.add("create a world", lives.world[0]);
        report.add("destroy it, with its VM", lives.world[1]);
        report.add("another world on the same vCPU", lives.reuse);
        report.add("create a VM, a memslot, a vCPU", lives.vm[0]);
        report.add("destroy them", lives.vm[1]);

        progress.step(&format!("round {round}, memory"));
        let [world, extent] = measure::memory(&factory, most, 1000)?;
        report.add_kib("a world", world);
        report.add_kib("an extent", extent);

        for &n in worlds {
            progress.step(&format!("round {round}, MMU notifier, {n} worlds"));
            let times = measure::notifier(&factory, n).with_context(|| format!("{n} worlds"))?;
            report.notifier(n, times);
        }
    }
    print!("{}", report.table(rounds)?);
    Ok(())
}
