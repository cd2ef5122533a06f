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
//! | file | holds |
//! |---|---|
//! | `plan.rs` | the updates, as lists |
//! | `guest.rs` | the guest: memory layout, program, and a replay to check it |
//! | `machine.rs` | VM, vCPU threads, the three ways to apply a list |
//! | `experiment.rs` | one guest, one way: run and measure |
//! | `report.rs` | table and charts |

// A program has no public items: `pub` is for its other files.
#![allow(unreachable_pub)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the guest is x86-64 code, and KVM is Linux");

mod experiment;
mod guest;
mod machine;
mod plan;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{ensure, Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::VmFdMemoryExt;

use experiment::{Method, Outcome};
use guest::Variant;

#[derive(Parser)]
#[command(version, about = "What updates of memslots do to a running guest")]
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
    },
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
    let Command::Demo {
        updates,
        vcpus,
        variant,
        svg,
        quick,
    } = Cli::parse().command;
    let updates = if quick { updates.div_ceil(10) } else { updates };
    match demo(updates as usize, vcpus, variant.list(), svg) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sample-vmm: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(updates: usize, vcpus: u64, variants: &[Variant], svg: Option<PathBuf>) -> Result<()> {
    let kvm = Kvm::new().context(
        "cannot open /dev/kvm; load kvm_amd or kvm_intel and run as root or in the group kvm, \
         or run `make demo`, which boots a kernel that has it",
    )?;
    let has_list = kvm
        .create_vm()
        .context("KVM_CREATE_VM failed")?
        .max_memory_region_list_entries()
        > 0;
    machine::register_kick()?;

    let mut outcomes: Vec<Outcome> = Vec::new();
    for &variant in variants {
        for method in Method::ALL {
            if method == Method::List && !has_list {
                continue;
            }
            eprintln!("{updates} updates, {variant} guest, {method} ...");
            let outcome = experiment::run(&kvm, variant, method, vcpus, updates)
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
