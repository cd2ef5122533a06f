// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The sets of KVM modules.

use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::VmFdMemoryExt;

/// A set of KVM modules: upstream's C code, or the Rust core.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    C,
    Rust,
}

impl Flavour {
    pub fn name(self) -> &'static str {
        match self {
            Flavour::C => "c",
            Flavour::Rust => "rust",
        }
    }
}

/// Loads a module set with the program `kvm_flavour`, and checks that it is the
/// right one.
pub fn load(flavour: Flavour, kvm_flavour: &Path) -> Result<()> {
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
    let has_list = vm.can_set_user_memory_regions();
    ensure!(
        has_list == (flavour == Flavour::Rust),
        "the modules loaded as '{}' {} KVM_SET_USER_MEMORY_REGION_LIST",
        flavour.name(),
        if has_list { "have" } else { "do not have" }
    );
    Ok(())
}
