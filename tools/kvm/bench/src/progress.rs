// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Progress of a measurement, on stderr.

use std::time::Instant;

/// Prints a line per step. A bar would not show: in the test VM stderr is never a
/// terminal.
pub struct Progress {
    start: Instant,
    done: usize,
    total: usize,
}

impl Progress {
    pub fn new(total: usize) -> Self {
        Progress {
            start: Instant::now(),
            done: 0,
            total,
        }
    }

    pub fn step(&mut self, what: &str) {
        self.done += 1;
        eprintln!(
            "[{}/{}] {} s: {what}",
            self.done,
            self.total,
            self.start.elapsed().as_secs()
        );
    }
}
