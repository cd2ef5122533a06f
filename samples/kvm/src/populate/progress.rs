// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Shows how far populating is.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Least time between two lines.
const BETWEEN_LINES: Duration = Duration::from_millis(500);

/// A bar if stderr is a terminal, lines if it is not.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    /// Time of the last line.
    line: Mutex<Instant>,
}

impl Progress {
    /// `pages` is the number of pages to populate.
    pub fn new(pages: u64) -> Self {
        let bar = ProgressBar::new(pages);
        let template = "populating [{wide_bar}] {pos} of {len} pages, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let start = Instant::now();
        Progress {
            bar,
            start,
            line: Mutex::new(start),
        }
    }

    pub fn add(&self, pages: u64) {
        self.bar.inc(pages);
        if self.bar.is_hidden() {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            if line.elapsed() >= BETWEEN_LINES {
                *line = Instant::now();
                self.print();
            }
        }
    }

    fn print(&self) {
        eprintln!(
            "populating: {} of {} pages, {:.1} s",
            self.bar.position(),
            self.bar.length().unwrap_or(0),
            self.start.elapsed().as_secs_f64(),
        );
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
        if self.bar.is_hidden() {
            self.print();
        }
    }
}
