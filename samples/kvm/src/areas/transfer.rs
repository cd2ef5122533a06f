// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest goes on in another process on the same host, and so do its areas.
//!
//! KVM's part of an area is an MSR, which is saved with all other MSRs. The VMM's part is
//! where the area is. The memory is a file that both processes map.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, RawFd},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemory, GuestMemoryRegion};

use crate::{
    areas::{
        guest::{Board, Guest, PATIENCE},
        served::{Bases, Remains, Served},
        watch::{Sample, Watch},
    },
    kick::register_kick,
    linux::{
        console::Output,
        machine::{self, End, Stopped},
        state::State,
    },
};

/// What the other process gets, beside the memory.
#[derive(Serialize, Deserialize)]
struct Handover {
    machine: State,
    areas: Bases,
    memory_size: u64,
    /// How long the guest has been watched.
    watched: Duration,
    /// How long the other process watches it.
    watch: Duration,
}

/// What became of the guest in the other process.
#[derive(Serialize, Deserialize)]
pub struct Afterlife {
    pub samples: Vec<Sample>,
    pub end: String,
    pub remains: Option<Remains>,
}

/// Hands the guest over to a new process, which watches it for a while and then makes
/// it panic.
pub fn send(
    kvm: &Kvm,
    machine: &Stopped<Board>,
    served: &Served,
    watched: Duration,
    watch: Duration,
) -> Result<Afterlife> {
    let region = machine.memory.iter().next().context("no memory")?;
    let file = region.file_offset().context("the memory is not a file")?;
    let handover = Handover {
        machine: State::save(kvm, machine)?,
        areas: served.bases(),
        memory_size: region.len(),
        watched,
        watch,
    };
    let mut child = Command::new("/proc/self/exe")
        .arg("areas-receive")
        // Inherited: the file is not close-on-exec.
        .arg(file.file().as_raw_fd().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start another process")?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    stdin.write_all(&serde_json::to_vec(&handover)?)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the guest does not go on in the other process: {}",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the other process has no answer")
}

/// The other process: takes the guest whose memory is in `fd`.
pub fn receive(kvm: &Kvm, fd: RawFd) -> Result<()> {
    register_kick()?;
    let handover: Handover =
        serde_json::from_reader(io::stdin()).context("cannot read the guest's state")?;
    let mut watch = Watch::since(handover.watched);
    // SAFETY: whoever starts this process passes it the descriptor for this.
    let file = unsafe { File::from_raw_fd(fd) };
    let memory = machine::memory(file, handover.memory_size)?;
    let served = Served::restored(handover.areas);
    let board = Board {
        served: served.clone(),
    };
    let machine = handover
        .machine
        .resume(kvm, memory, Output::default(), board)?;
    let guest = Guest::running(machine, served.clone());

    watch.watch(&served, guest.machine.memory(), handover.watch)?;
    guest.begin("echo c >/proc/sysrq-trigger")?;
    let stopped = guest.machine.wait(PATIENCE)?;
    let afterlife = Afterlife {
        samples: watch.samples().to_vec(),
        end: match stopped.end {
            Some(End::TripleFault) => "triple fault".to_owned(),
            Some(End::Reset) => "reset".to_owned(),
            Some(End::Failed(how)) => how,
            None => "stopped".to_owned(),
        },
        remains: served.remains(&stopped.memory)?,
    };
    serde_json::to_writer(io::stdout(), &afterlife).context("cannot answer")
}
