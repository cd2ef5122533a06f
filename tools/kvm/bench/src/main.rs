// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Measures what memslot updates cost (`memslots/`): single ioctls of KVM's C
//! code, the same ioctls of the Rust core, and one list. Measures what a guest
//! loses when its slots are split and merged (`memslots/reshape/`): while its vCPUs
//! are paused, and by one list. Measures what it costs to populate guest memory
//! (`populate/`): by `KVM_MAP_MEMORY`, by `KVM_PRE_FAULT_MEMORY` and by the guest
//! itself. Measures what address spaces of vCPUs cost (`gmap/`). Measures what it
//! costs a guest to share memory areas (`areas/`): with KVM, with the VMM, and with
//! a VMM that uses the MSR filter instead.
//!
//! All measurements run in one boot of one machine. The module sets, or the ways
//! to populate, take turns in each round, so that a load that slows the machine
//! down for a while affects all of them.
//!
//! | file | holds |
//! |---|---|
//! | `memslots/run.rs`, `populate/run.rs`, `gmap/run.rs` | all measurements of the family |
//! | `memslots/measure.rs`, `populate/measure.rs`, `gmap/measure.rs` | one measurement |
//! | `memslots/report.rs`, `populate/report.rs`, `gmap/report.rs` | results, table and picture |
//! | `memslots/reshape/` | what a running guest loses: a table of its files is in `mod.rs` |
//! | `areas/run.rs`, `areas/guest.rs`, `areas/report.rs` | measurements, the guest, and table |
//! | `areas/case.rs` | what the guest does |
//! | `populate/case.rs` | what is populated, and by what |
//! | `populate/guest.rs`, `populate/memory.rs` | the guest, and its memory |
//! | `gmap/world.rs` | vCPUs with address spaces, and their guest |
//! | `figures.rs`, `picture.rs` | numbers and drawing that the families share |
//! | `flavour.rs` | loads KVM's C code or the Rust core |
//! | `progress.rs` | lines on stderr |
//! | `vcpu.rs` | the mode that all guests begin in |

mod areas;
mod figures;
mod flavour;
mod gmap;
mod memslots;
mod picture;
mod populate;
mod progress;
mod vcpu;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::memslots::Unit;

/// Measure the cost of memslot updates, in C, in Rust and as a list, of
/// populating guest memory, of address spaces of vCPUs, and of memory areas.
///
/// Runs as root where both sets of KVM modules can be loaded: in the test VM.
#[derive(Parser)]
struct Args {
    /// Check that everything works: fewer slots, less memory, fewer rounds
    #[arg(long)]
    quick: bool,
    /// Measure only this
    #[arg(long)]
    only: Option<Group>,
    /// Split and merge the slots of this guest, for example 2048x8: 2 GiB, 8 vCPUs
    /// [default: some with 64 to 1024 MiB and 1 to 8 vCPUs]
    #[arg(long, value_name = "MIBxVCPUS")]
    guest: Vec<memslots::reshape::Case>,
    /// Number of rounds [default: 5, reshaping and populating 3, quick: 2, reshaping 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Write a picture of the updates to this SVG file, and those of reshaping and of
    /// populating to NAME-reshape.svg and NAME-populate.svg in the same directory
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Program that loads the module set named by its argument, c or rust
    #[arg(long, env, value_name = "PROGRAM", default_value = "kvm-flavour")]
    kvm_flavour: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Updates,
    /// What updates take where the clock counts instructions: in a VM with ACCEL=icount
    Instructions,
    Reshape,
    Endure,
    Populate,
    Ucas,
    Areas,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let measures = |group| args.only.is_none_or(|only| only == group);
    let (quick, rounds, svg) = (args.quick, args.rounds, args.svg.as_deref());
    let flavour = &args.kvm_flavour;
    if measures(Group::Updates) {
        memslots::run(Unit::Micros, quick, rounds, svg, flavour)?;
    }
    if args.only == Some(Group::Instructions) {
        memslots::run(Unit::Instructions, quick, rounds, None, flavour)?;
    }
    if measures(Group::Reshape) {
        memslots::reshape::measure_all(&args.guest, quick, rounds, svg, flavour)?;
    }
    if measures(Group::Endure) {
        memslots::reshape::endure_all(quick, flavour)?;
    }
    if measures(Group::Populate) {
        populate::run(quick, rounds, svg, flavour)?;
    }
    if measures(Group::Areas) {
        areas::run(quick, rounds, flavour)?;
    }
    if measures(Group::Ucas) {
        gmap::run(quick, rounds, flavour)?;
    }
    Ok(())
}
