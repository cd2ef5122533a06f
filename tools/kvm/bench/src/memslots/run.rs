// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All measurements of memslot updates.

use std::path::Path;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use crate::flavour::{load, Flavour};
use crate::memslots::measure::{self, Case, Memory, Method};
use crate::memslots::report::{self, Results, Unit};
use crate::progress::Progress;

/// The largest number of slots that is also measured with a running vCPU. Every
/// single update waits for the vCPU, up to 10 ms on an emulated machine.
const VCPU_MAX_SLOTS: u16 = 64;

/// Measures all cases in all rounds, prints the table and writes the picture to
/// `svg`. Instructions are counted in one thread, where no vCPU runs at the same time.
pub fn run(
    unit: Unit,
    quick: bool,
    rounds: Option<u32>,
    svg: Option<&Path>,
    kvm_flavour: &Path,
) -> Result<()> {
    let (default_rounds, counts): (u32, &[u16]) = if quick {
        (2, &[1, 64, 1024])
    } else {
        (5, &[1, 16, 512, 4096, 32000])
    };
    let rounds = rounds.unwrap_or(default_rounds);

    let vcpu: &[bool] = match unit {
        Unit::Micros => &[false, true],
        Unit::Instructions => &[false],
    };
    let cases: Vec<_> = vcpu
        .iter()
        .flat_map(|&vcpu| counts.iter().map(move |&slots| Case { vcpu, slots }))
        .filter(|case| !case.vcpu || case.slots <= VCPU_MAX_SLOTS)
        .collect();
    let memory = Memory::new(counts.iter().copied().max().unwrap_or(0))?;
    let mut results = Results::default();
    let mut progress = Progress::new(rounds as usize * cases.len() * Method::ALL.len());

    for round in 1..=rounds {
        for flavour in [Flavour::C, Flavour::Rust] {
            load(flavour, kvm_flavour)?;
            let kvm = Kvm::new().context("/dev/kvm")?;
            for &case in &cases {
                for method in Method::ALL.into_iter().filter(|m| m.flavour() == flavour) {
                    progress.step(&format!("round {round}, {method}, {case}"));
                    let times = measure::all_operations(&kvm, &memory, case, method)
                        .with_context(|| format!("{method}, {case}"))?;
                    results.add(case, method, times);
                }
            }
        }
    }

    print!("{}", report::table(&results, unit, rounds)?);
    if let Some(file) = svg {
        report::picture(&results, file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}
