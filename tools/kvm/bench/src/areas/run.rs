// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All measurements of memory areas.

use std::path::Path;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use crate::areas::case::Method;
use crate::areas::guest::Guest;
use crate::areas::report::{self, Results};
use crate::flavour::{load, Flavour};
use crate::progress::Progress;

/// How often the guest does it in one measurement.
const TIMES: u32 = 20_000;
const QUICK_TIMES: u32 = 2_000;

/// Measures all methods in all rounds, and prints the table.
pub fn run(quick: bool, rounds: Option<u32>, kvm_flavour: &Path) -> Result<()> {
    let rounds = rounds.unwrap_or(if quick { 2 } else { 5 });
    let times = if quick { QUICK_TIMES } else { TIMES };
    let mut results = Results::default();
    let mut progress = Progress::new(2 * rounds as usize);
    for round in 1..=rounds {
        let mut flavours = [Flavour::C, Flavour::Rust];
        if round % 2 == 0 {
            flavours.reverse();
        }
        for flavour in flavours {
            progress.step(&format!("round {round}, areas, {}", flavour.name()));
            load(flavour, kvm_flavour)?;
            let kvm = Kvm::new().context("/dev/kvm")?;
            for method in Method::ALL {
                if flavour == Flavour::C && !method.works_in_c() {
                    continue;
                }
                let sample = Guest::new(&kvm, method)
                    .and_then(|mut guest| guest.measure(times))
                    .with_context(|| format!("{method}, {}", flavour.name()))?;
                results.add(method, flavour, sample);
            }
        }
    }
    // What runs after this expects the Rust core.
    load(Flavour::Rust, kvm_flavour)?;
    print!("{}", report::table(&results, rounds)?);
    Ok(())
}
