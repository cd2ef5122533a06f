// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest's serial console.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{anyhow, Result};
use vm_superio::{serial::NoEvents, Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// The I/O ports of the first 16550, and the interrupt line of the PC that it has.
pub const PORTS: std::ops::Range<u16> = 0x3f8..0x400;
pub const GSI: u32 = 4;

/// A 16550 whose output goes to an [`Output`].
pub type Uart = Serial<Interrupt, NoEvents, Output>;

/// Makes the UART, in the state of another one if given.
pub fn uart(interrupt: EventFd, output: Output, state: Option<&SerialState>) -> Result<Uart> {
    let state = state.cloned().unwrap_or_default();
    Serial::from_state(&state, Interrupt(interrupt), NoEvents, output)
        .map_err(|e| anyhow!("cannot make the serial port: {e}"))
}

/// An irqfd.
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Number of bytes that are kept of what nobody has waited for: the guest can write for ever.
const KEPT: usize = 1 << 20;

/// What the guest has written to its console, and nobody has waited for yet. What is read of it is
/// [`printable`].
#[derive(Clone, Default)]
pub struct Output(Arc<Shared>);

#[derive(Default)]
struct Shared {
    written: Mutex<VecDeque<u8>>,
    grown: Condvar,
}

impl Output {
    pub fn text(&self) -> String {
        printable(self.lock().make_contiguous())
    }

    /// Waits until the guest has written `text`. Returns what precedes it, and drops both.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut written = self.lock();
        loop {
            let bytes = written.make_contiguous();
            if let Some(at) = bytes.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = printable(&bytes[..at]);
                written.drain(..at + text.len());
                return Some(before);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            (written, _) = self
                .0
                .grown
                .wait_timeout(written, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // No panic can leave a change unfinished.
        self.0
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = self.lock();
        written.extend(bytes);
        let excess = written.len().saturating_sub(KEPT);
        written.drain(..excess);
        drop(written);
        self.0.grown.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a guest has written, for a terminal: no escape sequences.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|&c| c == '\n' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not wait.
    fn next(output: &Output, text: &str) -> Option<String> {
        output.wait_for(text, Duration::ZERO)
    }

    #[test]
    fn what_was_waited_for_is_gone() -> io::Result<()> {
        let mut output = Output::default();
        output.write_all(b"one\ntwo\nthr")?;
        assert_eq!(next(&output, "\n"), Some("one".to_owned()));
        assert_eq!(next(&output, "\n"), Some("two".to_owned()));
        assert_eq!(next(&output, "\n"), None);
        output.write_all(b"ee\n")?;
        assert_eq!(output.text(), "three\n");
        assert_eq!(next(&output, "\n"), Some("three".to_owned()));
        assert_eq!(output.text(), "");
        Ok(())
    }

    #[test]
    fn the_last_bytes_are_kept() -> io::Result<()> {
        let mut output = Output::default();
        output.write_all(b"first")?;
        for _ in 0..3 {
            output.write_all(&[b'.'; KEPT / 2])?;
        }
        output.write_all(b"last")?;
        let text = output.text();
        assert_eq!(text.len(), KEPT);
        assert!(text.ends_with(".last") && !text.contains("first"));
        assert_eq!(next(&output, "last").map(|text| text.len()), Some(KEPT - 4));
        Ok(())
    }

    #[test]
    fn no_escape_sequence_gets_out() -> io::Result<()> {
        let mut output = Output::default();
        output.write_all(b"\x1b[2J\xc2\x9b1mred\x07\r\n\xffdone")?;
        assert_eq!(output.text(), "[2J1mred\n\u{fffd}done");
        assert_eq!(next(&output, "done"), Some("[2J1mred\n\u{fffd}".to_owned()));
        Ok(())
    }
}
