// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A small VMM that shows what updates of memslots do to a running guest.
//!
//! `sample-vmm demo` runs a guest whose page tables, code, stacks and data lie
//! in a memslot, and resizes, splits, merges and moves that slot under it, in
//! three ways:
//!
//! - (a) with one `KVM_SET_USER_MEMORY_REGION` per step, as each of these needs
//!   several: the guest has no memory in between;
//! - (b) the same with all vCPUs paused, as VMMs do today;
//! - (c) with one `KVM_SET_USER_MEMORY_REGION_LIST`.
//!
//! It prints who survived, how the others died, and what it cost in stalls of
//! the guest, and draws the guest's progress over time. The exit status is 0 if
//! and only if the guests of (c) survived every update and computed what they
//! should have.
//!
//! `sample-vmm prefault` populates a guest's memory before the guest runs, by all
//! its vCPUs at once, and shows which page faults that spares it; `--prefault`
//! does the same for the guests of the demo.
//!
//! | file | holds |
//! |---|---|
//! | `plan.rs` | the updates, as lists |
//! | `guest.rs` | the guest: memory layout, program, and a replay to check it |
//! | `machine.rs` | VM, vCPU threads, the three ways to apply a list |
//! | `experiment.rs` | one guest, one way: run and measure |
//! | `report.rs` | table and charts |
//! | `prefault.rs` | populating memory, and the guest that shows what it is good for |

// A program has no public items: `pub` is for its other files.
#![allow(unreachable_pub)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the guest is x86-64 code, and KVM is Linux");

mod experiment;
mod guest;
mod machine;
mod plan;
mod prefault;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{ensure, Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memory_uapi::VmFdMemoryExt;

use experiment::{Method, Outcome};
use guest::Variant;

#[derive(Parser)]
#[command(
    version,
    about = "What updates of memslots do to a running guest, and what populating its memory spares it"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Update the memslots of running guests in three ways and compare.
    Demo {
        /// Updates that each guest is to survive.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
        updates: u32,
        /// vCPUs of each guest.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=guest::MAX_VCPUS))]
        vcpus: u64,
        /// Whether the guests execute instructions that KVM emulates.
        #[arg(long, default_value = "both")]
        variant: Variants,
        /// Write the chart to this file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// A tenth of the updates.
        #[arg(long)]
        quick: bool,
        /// Populate the guests' memory before they start.
        #[arg(long)]
        prefault: bool,
    },
    /// Populate a guest's memory, let it touch every page, and compare with a
    /// guest that has to fault its memory in.
    Prefault {
        /// Memory of the guest, in bytes or with K, M or G.
        #[arg(long, default_value = "1G", value_parser = bytes)]
        size: u64,
        /// vCPUs of the guest, which populate and touch it at the same time.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=guest::MAX_VCPUS))]
        vcpus: u64,
        /// Populate it with contents, from a buffer of the same size.
        #[arg(long)]
        source: bool,
    },
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size, like 512M")?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum Variants {
    Plain,
    Emulated,
    Both,
}

impl Variants {
    fn list(self) -> &'static [Variant] {
        match self {
            Variants::Plain => &[Variant::Plain],
            Variants::Emulated => &[Variant::Emulated],
            Variants::Both => &[Variant::Plain, Variant::Emulated],
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo {
            updates,
            vcpus,
            variant,
            svg,
            quick,
            prefault,
        } => {
            let updates = if quick { updates.div_ceil(10) } else { updates };
            demo(updates as usize, vcpus, variant.list(), prefault, svg)
        }
        Command::Prefault {
            size,
            vcpus,
            source,
        } => prefault(vcpus, size, source),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sample-vmm: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn open_kvm() -> Result<Kvm> {
    Kvm::new().context(
        "cannot open /dev/kvm; load kvm_amd or kvm_intel and run as root or in the group kvm, \
         or run `make demo`, which boots a kernel that has it",
    )
}

fn ensure_can_map_memory(vm: &VmFd) -> Result<()> {
    ensure!(
        vm.can_map_memory(),
        "this KVM cannot populate memory (KVM_CAP_MAP_MEMORY); load KVM modules that were built \
         with CONFIG_KVM_RUST_MEMORY=y, with npt=1 (kvm_amd) or ept=1 (kvm_intel)"
    );
    Ok(())
}

fn prefault(vcpus: u64, size: u64, source: bool) -> Result<()> {
    let kvm = open_kvm()?;
    ensure_can_map_memory(&kvm.create_vm().context("KVM_CREATE_VM failed")?)?;
    prefault::compare(&kvm, vcpus, size, source)
}

fn demo(
    updates: usize,
    vcpus: u64,
    variants: &[Variant],
    prefault: bool,
    svg: Option<PathBuf>,
) -> Result<()> {
    let kvm = open_kvm()?;
    let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
    let has_list = vm.max_memory_region_list_entries() > 0;
    if prefault {
        ensure_can_map_memory(&vm)?;
    }
    machine::register_kick()?;

    let mut outcomes: Vec<Outcome> = Vec::new();
    for &variant in variants {
        for method in Method::ALL {
            if method == Method::List && !has_list {
                continue;
            }
            eprintln!("{updates} updates, {variant} guest, {method} ...");
            let outcome = experiment::run(&kvm, variant, method, vcpus, prefault, updates)
                .with_context(|| format!("{variant} guest, {method}"))?;
            outcomes.push(outcome);
        }
    }

    println!("{}", report::table(&outcomes));
    for outcomes in report::by_variant(&outcomes) {
        println!("Steps of the {} guest over time:", outcomes[0].variant);
        println!("{}", report::text_chart(&outcomes));
        println!("{:>12}{}\n", "", report::legend(&outcomes));
    }
    if let Some(path) = &svg {
        report::svg(&outcomes, path)?;
    }

    ensure!(
        has_list,
        "no figures for (c): this kernel does not have KVM_CAP_USER_MEMORY_REGION_LIST; \
         load KVM modules that were built with CONFIG_KVM_RUST_MEMORY=y"
    );
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.method == Method::List && !outcome.passed())
        .count();
    ensure!(
        failed == 0,
        "a guest did not survive the list unharmed, see the table"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("4096", 4096),
            ("8k", 8 << 10),
            ("64M", 64 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(bytes(text), Ok(size));
        }
        for text in ["", "G", "1T", "-1", "1.5G", "99999999999G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
