// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `sample-vmm worlds`: runs the experiment, and shows what it has found.

use std::path::Path;

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;

use crate::gmap::{experiment, report};

/// Runs `workers` workers, each of which visits `segments` segments `passes` times, prints
/// the table, and draws the chart if `svg` is given. Fails if a worker's result or
/// what the monitor has seen is wrong.
pub fn run(kvm: &Kvm, workers: u64, segments: u64, passes: u64, svg: Option<&Path>) -> Result<()> {
    let (outcomes, readings) = experiment::run(kvm, workers, segments, passes)?;
    print!("{}", report::table(&outcomes, &readings));
    if let Some(path) = svg {
        report::svg(&outcomes, &readings, path)?;
    }
    ensure!(
        outcomes.iter().all(|outcome| outcome.is_right),
        "a world is not what it should be, see the table"
    );
    Ok(())
}
