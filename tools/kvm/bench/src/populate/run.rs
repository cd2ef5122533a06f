// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All measurements of populating.

use std::path::Path;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use crate::flavour::{load, Flavour};
use crate::populate::case::cases;
use crate::populate::measure::measure;
use crate::populate::memory::warm_up;
use crate::populate::report::{self, Results};
use crate::progress::Progress;

/// Measures all cases in all rounds, prints the table, and writes the picture to
/// a file beside `svg`.
///
/// All of it runs on the Rust core: the C code has no `KVM_MAP_MEMORY`, and the
/// same `KVM_PRE_FAULT_MEMORY`.
pub fn run(quick: bool, rounds: Option<u32>, svg: Option<&Path>, kvm_flavour: &Path) -> Result<()> {
    let rounds = rounds.unwrap_or(if quick { 2 } else { 3 });
    let cases = cases(quick);
    warm_up(&cases)?;
    load(Flavour::Rust, kvm_flavour)?;
    let kvm = Kvm::new().context("/dev/kvm")?;

    let mut results = Results::default();
    let mut progress = Progress::new(rounds as usize * cases.len());
    for round in 1..=rounds {
        for &(kind, shape) in &cases {
            progress.step(&format!("round {round}, {kind}, {shape}"));
            let mut methods = kind.methods().to_vec();
            if round % 2 == 0 {
                methods.reverse();
            }
            for method in methods {
                let sample = measure(&kvm, kind, shape, method)
                    .with_context(|| format!("{method}, {kind}, {shape}"))?;
                results.add(kind, shape, method, sample);
            }
        }
    }

    print!("{}", report::table(&results, rounds)?);
    if let Some(file) = svg {
        let mut name = file.file_stem().unwrap_or_default().to_os_string();
        name.push("-populate.svg");
        let file = file.with_file_name(name);
        report::picture(&results, &file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}
