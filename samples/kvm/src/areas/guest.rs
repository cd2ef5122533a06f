// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A Linux guest that shares areas, and a shell in it.

use std::{path::PathBuf, time::Duration};

use anyhow::{ensure, Context, Result};
use clap::Args;
use kvm_ioctls::Kvm;
use kvm_memory_uapi::{Answer, Request};

use crate::{
    areas::served::Served,
    linux::{
        console::Output,
        initramfs::Initramfs,
        machine::{Boot, Devices, Machine},
    },
};

/// No memory is there: writes exit to the VMM.
pub const WATCHDOG: u64 = 0xd000_0000;
/// A guest that has not answered for so long is dead.
pub const PATIENCE: Duration = Duration::from_secs(120);

const MEMORY: u64 = 256 << 20;
/// A panic ends in a triple fault, after which the guest cannot say anything.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1 pci=off acpi=off";
/// A shell on the serial console, whose prompt is [`PROMPT`].
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t debugfs debugfs /sys/kernel/debug
/bin/busybox --install -s /bin
export PATH=/bin
stty -echo -onlcr </dev/console
while echo ready; read -r line; do
	eval \"$line\"
	echo \"status $?\"
done
";
const PROMPT: &str = "ready";

/// The files that the guest is made of.
#[derive(Args)]
pub struct Files {
    /// The guest's kernel, a bzImage.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The module `kvm_areas.ko` of that kernel.
    #[arg(long, value_name = "FILE")]
    pub module: PathBuf,
    /// A statically linked busybox.
    #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
    pub busybox: PathBuf,
}

impl Files {
    /// A root file system with a shell and the module.
    pub fn initramfs(&self) -> Result<Initramfs> {
        let mut initramfs = Initramfs::with_busybox(&self.busybox, INIT)?;
        initramfs.host_file("kvm_areas.ko", &self.module)?;
        Ok(initramfs)
    }
}

/// What the guest's exits reach.
#[derive(Clone, Default)]
pub struct Board {
    pub served: Served,
}

impl Devices for Board {
    fn mmio_write(&mut self, _: u64, _: &[u8]) {
        // The register of the watchdog; to be petted is all that it wants.
    }

    fn area(&mut self, request: Request) -> Answer {
        self.served.answer(request)
    }
}

/// A guest that runs.
pub struct Guest {
    pub machine: Machine<Board>,
    pub served: Served,
}

impl Guest {
    /// Boots Linux to the shell of this initramfs.
    pub fn boot(kvm: &Kvm, files: &Files, initramfs: Initramfs, areas: bool) -> Result<Guest> {
        let boot = Boot {
            kernel: &files.kernel,
            initramfs: initramfs.finish()?,
            command_line: COMMAND_LINE.to_owned(),
            memory: MEMORY,
            areas,
        };
        let board = Board::default();
        let served = board.served.clone();
        let machine = Machine::boot(kvm, boot, Output::default(), board)?;
        let guest = Guest::running(machine, served);
        guest.booted()?;
        Ok(guest)
    }

    /// Waits until Linux has booted to the shell, for the first time or again.
    pub fn booted(&self) -> Result<()> {
        self.wait_for(PROMPT).context("the guest does not boot")?;
        Ok(())
    }

    /// A guest that has been booted already.
    pub fn running(machine: Machine<Board>, served: Served) -> Guest {
        Guest { machine, served }
    }

    /// Has the guest execute a command, and returns what that has printed.
    pub fn run(&self, command: &str) -> Result<String> {
        self.begin(command)?;
        self.finish(command)
    }

    /// Has the guest begin a command.
    pub fn begin(&self, command: &str) -> Result<()> {
        self.machine.type_in(&format!("{command}\n"))
    }

    /// Waits until a command that was begun has ended.
    pub fn finish(&self, command: &str) -> Result<String> {
        let printed = self.wait_for("status ")?;
        let status = self.wait_for("\n")?;
        self.wait_for(PROMPT)?;
        ensure!(
            status.trim() == "0",
            "in the guest, \"{command}\" fails with status {}: {printed}",
            status.trim()
        );
        Ok(printed)
    }

    /// Waits for `text` on the console, and returns what precedes it.
    fn wait_for(&self, text: &str) -> Result<String> {
        let output = self.machine.output();
        output.wait_for(text, PATIENCE).with_context(|| {
            format!(
                "the guest did not write {text:?} in {PATIENCE:?}, but:\n{}",
                output.text()
            )
        })
    }
}
