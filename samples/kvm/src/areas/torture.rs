// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest's driver where the VMM, or KVM, does not do what it would like.

use std::path::Path;

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;
use kvm_memory_uapi::Answer;

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

const ALL: [u32; 3] = [layout::RECORD, layout::HEARTBEAT, layout::PRESSURE];

/// What starts another kernel, and where the guest has that kernel.
const KEXEC: &str = "/sbin/kexec";
const NEXT_KERNEL: &str = "bzImage";
const NEXT_INITRAMFS: &str = "initramfs";

/// Loads and unloads the module `cycles` times under each kind of VMM.
pub fn run(kvm: &Kvm, files: &Files, cycles: u32) -> Result<()> {
    register_kick()?;

    eprintln!("a guest without areas ...");
    let guest = Guest::boot(kvm, files, files.initramfs()?, false)?;
    cycle(&guest, cycles, "nothing is shared", 0)?;
    reset(guest)?;

    let mut initramfs = files.initramfs()?;
    initramfs.host_program(Path::new(KEXEC))?;
    initramfs.host_file(NEXT_KERNEL, &files.kernel)?;
    initramfs.file(NEXT_INITRAMFS, &files.initramfs()?.finish()?)?;
    let guest = Guest::boot(kvm, files, initramfs, true)?;
    eprintln!("a VMM that serves all areas ...");
    cycle(&guest, cycles, "", ALL.len())?;
    for (refused, answer, message) in [
        (
            &[layout::RECORD][..],
            Answer::Denied,
            "no record: the hypervisor does not allow the type",
        ),
        (
            &[layout::RECORD],
            Answer::Fault,
            "no record: the hypervisor does not answer",
        ),
        (&[layout::HEARTBEAT], Answer::Denied, "no heartbeat: "),
        (&[layout::PRESSURE], Answer::Denied, "no memory pressure: "),
        (&ALL, Answer::Denied, "no heartbeat: "),
    ] {
        eprintln!("a VMM that refuses {refused:x?} by {answer:?} ...");
        guest.served.refuse(refused, answer);
        cycle(&guest, cycles, message, ALL.len() - refused.len())?;
    }

    guest.served.refuse(&[], Answer::Denied);
    for (lost, what) in [
        (layout::RECORD, "record"),
        (layout::HEARTBEAT, "heartbeat"),
        (layout::PRESSURE, "memory pressure"),
    ] {
        eprintln!("a VMM whose answer about {lost:#x} is lost ...");
        guest.served.lose(vec![lost]);
        let message = format!("no {what}: the hypervisor does not answer");
        cycle(&guest, cycles, &message, ALL.len() - 1)?;
    }
    guest.served.lose(vec![]);

    eprintln!("allocations that fail ...");
    fail_allocations(&guest)?;

    eprintln!("a kexec with areas ...");
    register(&guest)?;
    guest.run(&format!(
        "{KEXEC} -c -l /{NEXT_KERNEL} --initrd=/{NEXT_INITRAMFS} --reuse-cmdline"
    ))?;
    guest.begin(&format!("{KEXEC} -e"))?;
    guest.booted()?;
    nothing_is_left(&guest.served)?;
    // What it said while it booted is not about areas.
    guest.run("dmesg -c >/dev/null")?;

    eprintln!("a reboot with areas ...");
    register(&guest)?;
    let served = guest.served.clone();
    expect_end(guest, End::TripleFault)?;
    nothing_is_left(&served)
}

/// Lets each allocation fail once that a process makes to load the module.
fn fail_allocations(guest: &Guest) -> Result<()> {
    // The kernel counts `times` down when it lets an allocation fail. The process itself cannot
    // tell: it is gone by then.
    const TIMES: &str = "/sys/kernel/debug/fail*/times";
    let can_fail = "[ -e /proc/self/fail-nth -a -e /sys/kernel/debug/failslab ] && echo yes || :";
    if guest.run(can_fail)?.trim().is_empty() {
        eprintln!("(this guest cannot inject failures)");
        return Ok(());
    }
    // Those of a task that can sleep, too, and those of single pages.
    for (value, file) in [
        ("N", "ignore-gfp-wait"),
        ("N", "ignore-gfp-highmem"),
        ("0", "min-order"),
        ("0", "verbose"),
    ] {
        guest.run(&format!(
            "for f in /sys/kernel/debug/fail*/{file}; do echo {value} >$f; done"
        ))?;
    }
    let (mut failed, mut loaded) = (0, 0);
    for nth in 1.. {
        let found = guest.run(&format!(
            "for f in {TIMES}; do echo 1 >$f; done; \
             sh -c 'echo {nth} >/proc/self/fail-nth; exec insmod /kvm_areas.ko' 2>/dev/null && \
             rmmod kvm_areas && echo loaded; cat {TIMES}"
        ))?;
        nothing_is_left(&guest.served)?;
        let is_loaded = found.contains("loaded");
        if !found.lines().any(|line| line == "0") {
            ensure!(is_loaded, "the module does not load any more");
            break;
        }
        if is_loaded {
            loaded += 1;
        } else {
            failed += 1;
        }
    }
    eprintln!("({failed} loads failed, and {loaded} did without the allocation)");
    complaints(guest)
}

fn register(guest: &Guest) -> Result<()> {
    guest.run("insmod /kvm_areas.ko")?;
    ensure!(guest.served.bases().len() == ALL.len(), "areas are missing");
    complaints(guest)
}

fn nothing_is_left(served: &Served) -> Result<()> {
    ensure!(
        served.bases().is_empty(),
        "areas are left behind: {:x?}",
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
        nothing_is_left(&guest.served)?;
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

/// Ends a guest by the keyboard controller, as a PC is reset.
fn reset(guest: Guest) -> Result<()> {
    guest.run("echo kbd >/sys/kernel/reboot/type")?;
    expect_end(guest, End::Reset)
}

/// Has the guest reboot, and checks how that ends it.
fn expect_end(guest: Guest, end: End) -> Result<()> {
    guest.begin("reboot -f")?;
    let stopped = guest.machine.wait(PATIENCE)?;
    ensure!(
        stopped.end.as_ref() == Some(&end),
        "the guest did not end by {end:?} but {:?}",
        stopped.end
    );
    Ok(())
}
