// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A machine that boots Linux.
//!
//! | file | holds |
//! |---|---|
//! | `machine.rs` | the VM, its vCPU and its devices |
//! | `boot.rs` | the kernel in memory, and the vCPU at its entry point |
//! | `initramfs.rs` | the root file system |
//! | `console.rs` | the serial port |

pub mod area_uapi;
pub mod boot;
pub mod console;
pub mod initramfs;
pub mod machine;

use std::{path::PathBuf, time::Duration};

use anyhow::{ensure, Result};
use clap::Args;
use kvm_ioctls::Kvm;

use self::{
    area_uapi::kvm_x86_msr_op,
    console::Output,
    initramfs::Initramfs,
    machine::{Boot, Devices, End, Machine},
};
use crate::kick::register_kick;

/// What every guest boots with.
pub const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 pci=off acpi=off quiet";

/// The files that a guest is made of.
#[derive(Args)]
pub struct Files {
    /// The kernel, a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// A statically linked busybox.
    #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// Add to the command line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
}

struct NoDevices;

impl Devices for NoDevices {
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn area(&mut self, _: &mut kvm_x86_msr_op) {}
}

pub fn run(kvm: &Kvm, files: &Files) -> Result<()> {
    register_kick()?;
    let init = "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox echo hello\n/bin/busybox cat /proc/uptime /proc/interrupts\n/bin/busybox dmesg\n/bin/busybox reboot -f\n";
    let initramfs = Initramfs::with_busybox(&files.busybox, init)?.finish()?;
    let machine = Machine::boot(
        kvm,
        Boot {
            kernel: &files.kernel,
            initramfs,
            command_line: format!("{COMMAND_LINE} {}", files.append),
            memory: 256 << 20,
            areas: false,
        },
        Output::new(true),
        NoDevices,
    )?;
    let stopped = machine.wait(Duration::from_secs(60))?;
    ensure!(stopped.end == Some(End::Reset), "{:?}", stopped.end);
    Ok(())
}
