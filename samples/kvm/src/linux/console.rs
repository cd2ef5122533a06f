// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest's serial console.

use std::{
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

/// Of what the guest writes, so much is kept: it can write for ever.
const KEPT: usize = 1 << 20;

/// What the guest has written to its console so far.
#[derive(Clone)]
pub struct Output {
    shared: Arc<(Mutex<Vec<u8>>, Condvar)>,
    echo: bool,
}

impl Output {
    /// With `echo`, what the guest writes also goes to standard output.
    pub fn new(echo: bool) -> Output {
        Output {
            shared: Arc::default(),
            echo,
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }

    /// Waits until the guest has written `text` after the first `from` bytes. Returns
    /// what precedes it there, and the number of bytes up to its end.
    pub fn wait_for(&self, text: &str, from: usize, timeout: Duration) -> Option<(String, usize)> {
        let deadline = Instant::now() + timeout;
        let mut written = self.lock();
        loop {
            let new = written.get(from..).unwrap_or_default();
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                return Some((before, from + at + text.len()));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            (written, _) = self
                .shared
                .1
                .wait_timeout(written, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // An append cannot be left unfinished by a panic.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.echo {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        let mut written = self.lock();
        let room = KEPT.saturating_sub(written.len());
        written.extend_from_slice(&bytes[..room.min(bytes.len())]);
        drop(written);
        self.shared.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
