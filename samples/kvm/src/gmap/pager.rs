// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The thread that fills segments when a worker misses them.
//!
//! A worker's thread asks it and waits. The pager maps from its own thread: mapping
//! needs no help of the vCPU.

use std::{
    sync::{mpsc, Arc},
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_memory_uapi::{Memory, Part, VcpuAddressSpace, SEGMENT_SIZE};

use crate::gmap::guest::{self, DATA};

/// A segment that a world misses.
struct Missing {
    world: u64,
    space: Arc<VcpuAddressSpace>,
    gpa: u64,
    answer: mpsc::SyncSender<Result<()>>,
}

/// Sends requests to the pager.
#[derive(Clone)]
pub struct Pager(mpsc::Sender<Missing>);

/// What the pager works through until there is no [`Pager`] any more.
pub struct Requests {
    queue: mpsc::Receiver<Missing>,
    segments: u64,
}

/// A pager for workers of `segments` segments each.
pub fn pager(segments: u64) -> (Pager, Requests) {
    let (sender, queue) = mpsc::channel();
    (Pager(sender), Requests { queue, segments })
}

impl Pager {
    /// Has the segment at `gpa` filled and mapped. Returns the time that took.
    pub fn page_in(&self, world: u64, space: &Arc<VcpuAddressSpace>, gpa: u64) -> Result<Duration> {
        let start = Instant::now();
        let (answer, answered) = mpsc::sync_channel(1);
        let missing = Missing {
            world,
            space: space.clone(),
            gpa,
            answer,
        };
        let gone = || anyhow!("the pager has ended");
        self.0.send(missing).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())??;
        Ok(start.elapsed())
    }
}

impl Requests {
    /// Answers all requests. Ends when the last [`Pager`] is dropped.
    pub fn serve(self) {
        for missing in &self.queue {
            let answer = self.fill(&missing);
            // A worker that has ended does not wait for it.
            let _ = missing.answer.send(answer);
        }
    }

    fn fill(&self, missing: &Missing) -> Result<()> {
        let Some(segment) = missing.gpa.checked_sub(DATA).map(|by| by / SEGMENT_SIZE) else {
            bail!(
                "world {} has no memory at {:#x}",
                missing.world,
                missing.gpa
            );
        };
        ensure!(
            segment < self.segments,
            "world {} has no segment {segment}",
            missing.world
        );
        let memory = Memory::new(1).context("no memory for a segment")?;
        for (offset, word) in guest::contents(missing.world, segment) {
            ensure!(memory.write(offset, &word.to_le_bytes()), "no such word");
        }
        missing
            .space
            .map(missing.gpa, Part::all(Arc::new(memory))?)
            .with_context(|| format!("cannot map the segment at {:#x}", missing.gpa))
    }
}
