// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A heartbeat over time, as the VMM reads it from memory.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use crate::areas::served::{Beats, Served};

/// Interval at which the VMM looks.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub at: Duration,
    pub beats: Beats,
}

/// The longest times in which the VMM saw no beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    pub timer: Duration,
    pub task: Duration,
}

/// What the VMM has seen since `start`.
pub struct Watch {
    start: Instant,
    samples: Vec<Sample>,
}

impl Watch {
    /// Starts so long ago.
    pub fn since(elapsed: Duration) -> Watch {
        let now = Instant::now();
        Watch {
            start: now.checked_sub(elapsed).unwrap_or(now),
            samples: Vec::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Appends what another process has seen.
    pub fn extend(&mut self, samples: Vec<Sample>) {
        self.samples.extend(samples);
    }

    /// Watches for so long, and returns the stalls of that time.
    pub fn watch(
        &mut self,
        served: &Served,
        memory: &GuestMemoryMmap,
        time: Duration,
    ) -> Result<Stalls> {
        let first = self.samples.len();
        let end = self.elapsed() + time;
        while self.elapsed() < end {
            let beats = served
                .beats(memory)?
                .context("the guest has no heartbeat any more")?;
            self.samples.push(Sample {
                at: self.elapsed(),
                beats,
            });
            thread::sleep(INTERVAL);
        }
        Ok(stalls(&self.samples[first..]))
    }
}

fn stalls(samples: &[Sample]) -> Stalls {
    let longest = |counter: fn(&Beats) -> u64| {
        let mut longest = Duration::ZERO;
        let mut last = samples.first();
        for sample in samples {
            let Some(moved) = last else { break };
            longest = longest.max(sample.at.saturating_sub(moved.at));
            if counter(&sample.beats) != counter(&moved.beats) {
                last = Some(sample);
            }
        }
        longest
    };
    Stalls {
        timer: longest(|beats| beats.timer),
        task: longest(|beats| beats.task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_ends_with_a_beat_or_with_the_samples() {
        let samples: Vec<_> = [
            (0, 1, 1),
            (1, 2, 1),
            (2, 3, 1),
            (3, 4, 2),
            (4, 4, 3),
            (5, 4, 4),
        ]
        .map(|(second, timer, task)| Sample {
            at: Duration::from_secs(second),
            beats: Beats { timer, task },
        })
        .into();
        assert_eq!(
            stalls(&samples),
            Stalls {
                timer: Duration::from_secs(2),
                task: Duration::from_secs(3),
            }
        );
        assert_eq!(stalls(&[]), Stalls::default());
    }
}
