// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! All experiments, and the verdict.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::VmFdMemoryExt;

use crate::{
    kick::register_kick,
    memslots::{
        experiment::{self, Method, Outcome},
        guest::Variant,
        report::{self, Curve},
    },
    populate::parallel::ensure_can_populate,
};

/// Runs a guest of each variant through `updates` updates with each method,
/// and prints the results. Fails if a guest of [`Method::List`] does not pass, or if
/// one of its vCPUs took a page fault where no memory of the guest changed.
pub fn run(
    kvm: &Kvm,
    updates: usize,
    vcpus: u64,
    variants: &[Variant],
    populate: bool,
    svg: Option<&Path>,
) -> Result<()> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
    let has_list = vm.can_set_user_memory_regions();
    if populate {
        ensure_can_populate(&vm)?;
    }
    register_kick()?;

    let mut outcomes: Vec<Outcome> = Vec::new();
    for &variant in variants {
        for method in Method::ALL {
            if method == Method::List && !has_list {
                continue;
            }
            eprintln!("{updates} updates, {variant} guest, {method} ...");
            let outcome = experiment::run(kvm, variant, method, vcpus, populate, updates)
                .with_context(|| format!("{variant} guest, {method}"))?;
            outcomes.push(outcome);
        }
    }

    println!("{}", report::table(&outcomes));
    for outcomes in report::by_variant(&outcomes) {
        println!("Steps of the {} guest over time:", outcomes[0].variant);
        println!("{}", report::text_chart(&outcomes, Curve::Window));
        println!("Steps of its bystander over time:");
        println!("{}", report::text_chart(&outcomes, Curve::Bystander));
        println!("{:>12}{}\n", "", report::legend(&outcomes));
    }
    if let Some(path) = svg {
        report::svg(&outcomes, path)?;
    }

    ensure!(
        has_list,
        "no figures for (c): this kernel does not have KVM_CAP_USER_MEMORY_REGION_LIST; \
         load KVM modules that were built with CONFIG_KVM_RUST_MEMORY=y"
    );
    let mut of_list = outcomes
        .iter()
        .filter(|outcome| outcome.method == Method::List);
    ensure!(
        of_list.clone().all(Outcome::passed),
        "a guest did not survive the list unharmed, see the table"
    );
    // Without EPT or NPT, KVM cannot populate memory, and a list drops all mappings.
    ensure!(
        !vm.can_populate() || of_list.all(Outcome::undisturbed),
        "a guest took page faults while a list reshaped its slots, see the table; if not the list \
         is to blame, this machine moved the guest's memory (numa_balancing, khugepaged)"
    );
    Ok(())
}
