// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All measurements.

use std::path::Path;

use anyhow::{bail, Context, Result};
use kvm_ioctls::Kvm;
use kvm_vcpu_threads::kick::register_kick;

use super::case::{cases, updates, Case, Method};
use super::endure::{endure, Endured};
use super::measure::measure;
use super::picture;
use super::report;
use super::results::Results;
use crate::flavour::{load, Flavour};
use crate::populate::memory::{touch_available, Memory};
use crate::progress::Progress;

/// Samples of lists for each one with pausing: they take much less time.
const LISTS: usize = 5;

/// Measures all guests in all rounds, prints the tables, and writes the picture to a
/// file beside `svg`. Measures a selection of guests if `guests` names none.
pub fn measure_all(
    guests: &[Case],
    quick: bool,
    rounds: Option<u32>,
    svg: Option<&Path>,
    kvm_flavour: &Path,
) -> Result<()> {
    let rounds = rounds.unwrap_or(if quick { 1 } else { 3 });
    let cases = if guests.is_empty() {
        cases(quick)
    } else {
        guests.to_vec()
    };
    register_kick()?;

    let largest = cases.iter().map(|case| case.size).max().unwrap_or(0);
    touch_available(largest)?;
    let memory = Memory::new(largest, false)?;
    memory.write();
    let mut results = Results::default();
    let mut progress = Progress::new(2 * rounds as usize * cases.len());
    for round in 1..=rounds {
        for (flavour, method) in [(Flavour::C, Method::Paused), (Flavour::Rust, Method::List)] {
            load(flavour, kvm_flavour)?;
            let kvm = Kvm::new().context("/dev/kvm")?;
            for &case in &cases {
                progress.step(&format!("round {round}, {method}, {case}"));
                let updates = match method {
                    Method::List => updates(case, quick) * LISTS,
                    _ => updates(case, quick),
                };
                let samples = measure(&kvm, &memory, case, method, updates)
                    .with_context(|| format!("{method}, {case}"))?;
                results.add(case, samples)?;
            }
        }
    }

    print!("{}", report::tables(&results, rounds)?);
    if let Some(file) = svg {
        let mut name = file.file_stem().unwrap_or_default().to_os_string();
        name.push("-reshape.svg");
        let file = file.with_file_name(name);
        picture::draw(&results, &file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}

/// Reshapes slots thousands of times, and prints what KVM counted. Fails if a guest
/// took a page fault because of a list, or if a list without pages that go had a
/// window.
pub fn endure_all(quick: bool, kvm_flavour: &Path) -> Result<()> {
    let lists = if quick { 500 } else { 5000 };
    register_kick()?;
    load(Flavour::Rust, kvm_flavour)?;
    let kvm = Kvm::new().context("/dev/kvm")?;
    let mut progress = Progress::new(2);
    let mut endured = Vec::new();
    for huge in [false, true] {
        let pages = if huge { "2 MiB" } else { "4 KiB" };
        progress.step(&format!("{lists} lists, pages of {pages}"));
        endured.push(endure(&kvm, huge, lists).with_context(|| format!("pages of {pages}"))?);
    }
    print!("{}", report::endurance(&endured)?);
    if let Some((operation, counts)) = endured.iter().find_map(Endured::disturbance) {
        bail!("the guest was disturbed: {operation}, {counts:?}");
    }
    Ok(())
}
