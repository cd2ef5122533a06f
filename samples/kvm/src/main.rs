// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A small VMM that shows what updates of memslots do to a running guest, what
//! populating guest memory saves a guest, and vCPUs with memory of their own.
//!
//! `sample-vmm demo` runs a guest whose page tables, code, stacks and data lie
//! in a memslot, and resizes, splits, merges and moves that slot under it, in
//! three ways:
//!
//! - (a) with single `KVM_SET_USER_MEMORY_REGION`s, several per update: in between
//!   the guest has no memory;
//! - (b) the same while all vCPUs are paused, as VMMs do today;
//! - (c) with one `KVM_SET_USER_MEMORY_REGION_LIST`.
//!
//! One more vCPU of the guest, the bystander, runs from slots that are not updated.
//!
//! It prints which guests survived, how the others died, how long the guests
//! stalled and how many page faults the updates caused, and draws the progress of
//! guest and bystander over time. The exit status is 0 if and only if the guests
//! of (c) survived every update, computed the right results, and took no page fault
//! when slots were resized, split or merged.
//!
//! `sample-vmm populate` populates a guest's memory before the guest runs, by all of
//! its vCPUs at the same time, and shows how many page faults that saves;
//! `--populate` does the same for the guests of the demo. `prefault` is another name
//! of both.
//!
//! `sample-vmm worlds` runs several worlds in one VM: vCPUs with memory of their own,
//! which a pager fills when they need it, and a vCPU that looks into them while they
//! run.
//!
//! | file | holds |
//! |---|---|
//! | `main.rs` | the command line |
//! | `gmap/` | `sample-vmm worlds` |
//! | `memslots/` | `sample-vmm demo` |
//! | `populate/` | `sample-vmm populate` |
//! | `areas/` | `sample-vmm areas`: what Linux in the VM shares with the VMM |
//! | `linux/` | a machine that boots Linux |
//! | `vcpu.rs` | a vCPU in 64-bit mode, for the guests of `gmap/`, `memslots/` and `populate/` |
//! | `chart.rs` | what all charts look like |

// A program has no public items: `pub` is for its other modules.
#![allow(unreachable_pub)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the guest is x86-64 code, and KVM is Linux");

mod areas;
mod chart;
mod gmap;
mod linux;
mod memslots;
mod populate;
mod vcpu;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use kvm_ioctls::Kvm;
use kvm_vcpu_threads::kick;

use memslots::{
    demo,
    guest::{Variant, MAX_VCPUS},
};
use populate::experiment;

#[derive(Parser)]
#[command(
    version,
    about = "What updates of memslots do to a running guest, what populating its memory saves, and \
             vCPUs with memory of their own"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot Linux and show what it shares with the VMM in memory areas.
    Areas {
        #[command(flatten)]
        files: areas::Files,
        /// Write the chart to this SVG file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Take less time for each part.
        #[arg(long, conflicts_with = "torture")]
        quick: bool,
        /// Load and unload the guest's module CYCLES times under each of several VMMs
        /// instead.
        #[arg(long, value_name = "CYCLES")]
        torture: Option<u32>,
    },
    /// Run the guest of another process.
    #[command(hide = true)]
    AreasReceive {
        /// Descriptor of the guest's memory.
        memory: i32,
    },
    /// Update the memslots of running guests in three ways and compare.
    Demo {
        /// Updates that each guest must survive.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
        updates: u32,
        /// vCPUs of each guest, beside the bystander.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=MAX_VCPUS))]
        vcpus: u64,
        /// Guests to run: emulated ones execute instructions that KVM emulates.
        #[arg(long, default_value = "both")]
        variant: Variants,
        /// Write the charts to this SVG file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Make a tenth of the updates.
        #[arg(long)]
        quick: bool,
        /// Populate the guests' memory before they start.
        #[arg(long, visible_alias = "prefault")]
        populate: bool,
    },
    /// Populate a guest's memory, let the guest touch every page, and compare it
    /// with a guest that takes a page fault on every page.
    #[command(visible_alias = "prefault")]
    Populate {
        /// Size of the guest's memory, in bytes or with K, M or G.
        #[arg(long, default_value = "1G", value_parser = bytes)]
        size: u64,
        /// vCPUs of the guest, which populate and touch it at the same time.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=MAX_VCPUS))]
        vcpus: u64,
        /// Fill the memory from a buffer of the same size.
        #[arg(long)]
        source: bool,
    },
    /// Run vCPUs with memory of their own, which is filled when they need it, and a
    /// vCPU that looks into it.
    Worlds {
        /// Worlds, each of which is a vCPU.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
        workers: u64,
        /// Segments of 1 MiB that each of them visits, a power of 2.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
        segments: u64,
        /// How often it visits each.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
        passes: u64,
        /// Write the chart to this SVG file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
}

/// Parses a size with an optional unit: "8k" is 8192, "1T" an error.
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
    let command = Cli::parse().command;
    let result = open_kvm().and_then(|kvm| match command {
        Command::Demo {
            updates,
            vcpus,
            variant,
            svg,
            quick,
            populate,
        } => {
            let updates = if quick { updates.div_ceil(10) } else { updates };
            let variants = variant.list();
            demo::run(
                &kvm,
                updates as usize,
                vcpus,
                variants,
                populate,
                svg.as_deref(),
            )
        }
        Command::Areas {
            files,
            svg,
            quick,
            torture,
        } => match torture {
            Some(cycles) => areas::torture::run(&kvm, &files, cycles),
            None => areas::demo::run(&kvm, &files, quick, svg.as_deref()),
        },
        Command::AreasReceive { memory } => areas::transfer::receive(&kvm, memory),
        Command::Populate {
            size,
            vcpus,
            source,
        } => experiment::compare(&kvm, vcpus, size, source),
        Command::Worlds {
            workers,
            segments,
            passes,
            svg,
        } => gmap::demo::run(&kvm, workers, segments, passes, svg.as_deref()),
    });
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
