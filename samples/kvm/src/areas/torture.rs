// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest's driver where the VMM, or KVM, does not do what it would like.

use std::path::Path;

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;

use crate::{
    areas::{
        guest::{Files, Guest, PATIENCE},
        layout,
        served::Served,
    },
    kick::register_kick,
    linux::machine::End,
};

/// What a kernel that is not well says.
const COMPLAINTS: &str = "BUG|WARNING|Oops|KASAN|possible|suspicious|unreferenced|stays registered";

/// What starts another kernel, and where the guest has that kernel.
const KEXEC: &str = "/sbin/kexec";
const NEXT_KERNEL: &str = "bzImage";
const NEXT_INITRAMFS: &str = "initramfs";

/// Loads and unloads the module so often under each kind of VMM.
pub fn run(kvm: &Kvm, files: &Files, cycles: u32) -> Result<()> {
    register_kick()?;

    eprintln!("a guest without areas ...");
    let guest = Guest::boot(kvm, files, files.initramfs()?, false)?;
    cycle(&guest, cycles, "nothing is shared", 0)?;
    end(guest)?;

    let mut initramfs = files.initramfs()?;
    initramfs.host_program(Path::new(KEXEC))?;
    initramfs.host_file(NEXT_KERNEL, &files.kernel)?;
    initramfs.file(NEXT_INITRAMFS, &files.initramfs()?.finish()?)?;
    let guest = Guest::boot(kvm, files, initramfs, true)?;
    for (refused, message) in [
        (vec![], ""),
        (
            vec![layout::RECORD],
            "no record: the hypervisor does not allow the type",
        ),
        (vec![layout::HEARTBEAT], "no heartbeat: "),
        (vec![layout::PRESSURE], "no memory pressure: "),
        (
            vec![layout::RECORD, layout::HEARTBEAT, layout::PRESSURE],
            "no heartbeat: ",
        ),
    ] {
        eprintln!("a VMM that refuses {refused:x?} ...");
        let areas = 3 - refused.len();
        guest.served.refuse(refused);
        cycle(&guest, cycles, message, areas)?;
    }

    guest.served.refuse(vec![]);
    for lost in [layout::RECORD, layout::HEARTBEAT, layout::PRESSURE] {
        eprintln!("a VMM whose answer about {lost:#x} is lost ...");
        guest.served.lose(vec![lost]);
        for _ in 0..cycles {
            guest.run("if insmod /kvm_areas.ko 2>/dev/null; then rmmod kvm_areas; fi")?;
            ensure!(
                guest.served.bases().is_empty(),
                "the guest has freed what it has registered: {:x?}",
                guest.served.bases()
            );
        }
        complaints(&guest)?;
    }
    guest.served.lose(vec![]);

    eprintln!("allocations that fail ...");
    let injected = guest.run(&format!(
        "for n in $(seq 1 {}); do if [ -e /proc/self/fail-nth ]; then \
         sh -c \"echo $n >/proc/self/fail-nth; exec insmod /kvm_areas.ko\" 2>/dev/null && \
         rmmod kvm_areas; fi; done; ls /proc/self/fail-nth 2>/dev/null || :",
        10 * cycles
    ))?;
    eprintln!(
        "{}",
        if injected.trim().is_empty() {
            "(this guest cannot inject failures)"
        } else {
            "(injected)"
        }
    );
    ensure!(
        guest.served.bases().is_empty(),
        "areas are left behind: {:x?}",
        guest.served.bases()
    );

    eprintln!("a kexec with areas ...");
    register(&guest)?;
    guest.run(&format!(
        "{KEXEC} -c -l /{NEXT_KERNEL} --initrd=/{NEXT_INITRAMFS} --reuse-cmdline"
    ))?;
    guest.begin(&format!("{KEXEC} -e"))?;
    guest.booted()?;
    nothing_is_left(&guest.served)?;

    eprintln!("a reboot with areas ...");
    register(&guest)?;
    let served = guest.served.clone();
    guest.begin("reboot -f")?;
    let stopped = guest.machine.wait(PATIENCE)?;
    ensure!(
        stopped.end == Some(End::TripleFault),
        "the guest did not reboot but {:?}",
        stopped.end
    );
    nothing_is_left(&served)
}

fn register(guest: &Guest) -> Result<()> {
    guest.run("insmod /kvm_areas.ko")?;
    ensure!(guest.served.bases().len() == 3, "areas are missing");
    complaints(guest)
}

fn nothing_is_left(served: &Served) -> Result<()> {
    ensure!(
        served.bases().is_empty(),
        "the next kernel finds areas of the last one: {:x?}",
        served.bases()
    );
    Ok(())
}

fn cycle(guest: &Guest, cycles: u32, message: &str, areas: usize) -> Result<()> {
    guest.run("dmesg -c >/dev/null")?;
    for _ in 0..cycles {
        guest.run("insmod /kvm_areas.ko period_ms=1")?;
        let found = guest.served.bases().len();
        ensure!(found == areas, "{found} areas are registered");
        guest.run("cat /sys/kernel/debug/kvm_areas/state 2>/dev/null || :")?;
        guest.run("rmmod kvm_areas")?;
        ensure!(
            guest.served.bases().is_empty(),
            "areas are left behind: {:x?}",
            guest.served.bases()
        );
    }
    let log = guest.run("dmesg")?;
    ensure!(log.contains(message), "no word of \"{message}\" in:\n{log}");
    complaints(guest)
}

fn complaints(guest: &Guest) -> Result<()> {
    let found = guest.run(&format!("dmesg | grep -E '{COMPLAINTS}' || :"))?;
    ensure!(
        found.trim().is_empty(),
        "the guest's kernel complains:\n{found}"
    );
    Ok(())
}

/// Ends a guest that shares nothing.
fn end(guest: Guest) -> Result<()> {
    guest.begin("reboot -f")?;
    let stopped = guest.machine.wait(PATIENCE)?;
    ensure!(stopped.end == Some(End::TripleFault), "{:?}", stopped.end);
    Ok(())
}
