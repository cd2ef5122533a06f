// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What memslot updates cost: single ioctls of KVM's C code, the same ioctls of
//! the memory core in Rust, and one list. And what it costs to populate guest
//! memory: `KVM_MAP_MEMORY`, `KVM_PRE_FAULT_MEMORY` and the guest itself.
//!
//! Everything is measured in one boot of one machine. The module sets take
//! turns, round after round, so that whatever else slows the machine down for
//! a while meets all of them.

mod measure;
mod populate;
mod populate_report;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::{Parser, ValueEnum};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::VmFdMemoryExt;

use measure::{Case, Flavour, Memory, Method};
use report::Results;

/// The largest number of slots that is measured with a vCPU as well. Every
/// single update waits for it, up to 10 ms where the machine is emulated.
const VCPU_MAX_SLOTS: u16 = 64;

/// Measure what memslot updates cost, in C, in Rust and as a list, and what
/// populating guest memory costs.
///
/// Runs as root where both sets of KVM modules can be loaded: in the test VM.
#[derive(Parser)]
struct Args {
    /// Fewer slots, less memory, fewer rounds: does it all work, rather than how fast
    #[arg(long)]
    quick: bool,
    /// Measure nothing else
    #[arg(long)]
    only: Option<Group>,
    /// Times that everything is measured [default: 5, populating 3, quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Write a picture of the updates to this SVG file, and one of populating
    /// beside it: NAME-populate.svg
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Program that loads the module set named by its argument, c or rust
    #[arg(long, env, value_name = "PROGRAM", default_value = "kvm-flavour")]
    kvm_flavour: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Updates,
    Populate,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.only != Some(Group::Populate) {
        measure_updates(&args)?;
    }
    if args.only != Some(Group::Updates) {
        measure_populating(&args)?;
    }
    Ok(())
}

fn measure_updates(args: &Args) -> Result<()> {
    let (rounds, counts): (u32, &[u16]) = if args.quick {
        (2, &[1, 64, 1024])
    } else {
        (5, &[1, 64, 4096, 32000])
    };
    let rounds = args.rounds.unwrap_or(rounds);

    let cases: Vec<_> = [false, true]
        .into_iter()
        .flat_map(|vcpu| counts.iter().map(move |&slots| Case { vcpu, slots }))
        .filter(|case| !case.vcpu || case.slots <= VCPU_MAX_SLOTS)
        .collect();
    let memory = Memory::new(counts.iter().copied().max().unwrap_or(0))?;
    let mut results = Results::default();
    let mut progress = Progress::new(rounds as usize * cases.len() * Method::ALL.len());

    for round in 1..=rounds {
        for flavour in [Flavour::C, Flavour::Rust] {
            load(flavour, &args.kvm_flavour)?;
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

    print!("{}", report::table(&results, rounds)?);
    if let Some(file) = &args.svg {
        report::picture(&results, file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}

/// All with the Rust core, as the C code has no `KVM_MAP_MEMORY`, and the same
/// `KVM_PRE_FAULT_MEMORY`.
fn measure_populating(args: &Args) -> Result<()> {
    let rounds = args.rounds.unwrap_or(if args.quick { 2 } else { 3 });
    let cases = populate::cases(args.quick);
    populate::warm_up(&cases)?;
    load(Flavour::Rust, &args.kvm_flavour)?;
    let kvm = Kvm::new().context("/dev/kvm")?;

    let mut results = populate_report::Results::default();
    let mut progress = Progress::new(rounds as usize * cases.len());
    for round in 1..=rounds {
        for &(kind, shape) in &cases {
            progress.step(&format!("round {round}, {kind}, {shape}"));
            let mut methods = kind.methods().to_vec();
            if round % 2 == 0 {
                methods.reverse();
            }
            for method in methods {
                let sample = populate::measure(&kvm, kind, shape, method)
                    .with_context(|| format!("{method}, {kind}, {shape}"))?;
                results.add(kind, shape, method, sample);
            }
        }
    }

    print!("{}", populate_report::table(&results, rounds)?);
    if let Some(file) = &args.svg {
        let mut name = file.file_stem().unwrap_or_default().to_os_string();
        name.push("-populate.svg");
        let file = file.with_file_name(name);
        populate_report::picture(&results, &file).with_context(|| format!("{}", file.display()))?;
    }
    Ok(())
}

/// Loads a module set, and makes sure that it is the one that was meant.
fn load(flavour: Flavour, kvm_flavour: &Path) -> Result<()> {
    let status = Command::new(kvm_flavour)
        .arg(flavour.name())
        .status()
        .with_context(|| format!("{}", kvm_flavour.display()))?;
    ensure!(
        status.success(),
        "{} {}: {status}",
        kvm_flavour.display(),
        flavour.name()
    );
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).context("KVM")?;
    let has_list = vm.max_memory_region_list_entries() > 0;
    ensure!(
        has_list == (flavour == Flavour::Rust),
        "the modules loaded as '{}' {} KVM_SET_USER_MEMORY_REGION_LIST",
        flavour.name(),
        if has_list { "have" } else { "do not have" }
    );
    Ok(())
}

/// Lines on stderr: in the test VM that is never a terminal, so a bar would
/// not be seen.
struct Progress {
    start: Instant,
    done: usize,
    total: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Progress {
            start: Instant::now(),
            done: 0,
            total,
        }
    }

    fn step(&mut self, what: &str) {
        self.done += 1;
        eprintln!(
            "[{}/{}] {} s: {what}",
            self.done,
            self.total,
            self.start.elapsed().as_secs()
        );
    }
}
