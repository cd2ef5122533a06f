// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A thread for each vCPU, which can be paused.
//!
//! Pausing works as in QEMU: `kvm_run.immediate_exit` and a signal bring every
//! vCPU thread out of `KVM_RUN`, and the thread waits until it may continue.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{anyhow, Context, Result};
use kvm_ioctls::VcpuFd;

use crate::{
    kick::{kick, ImmediateExit},
    memslots::{
        exits::{self, End},
        guest::{self, Device},
    },
};

/// The threads of a VM's vCPUs. Dropping this ends them.
pub struct Threads {
    vcpus: Vec<Vcpu>,
    shared: Arc<Shared>,
}

struct Vcpu {
    /// Returns the vCPU and, if the guest reached the end of its program, what
    /// it computed wrongly.
    thread: JoinHandle<(VcpuFd, Result<Option<String>>)>,
    immediate_exit: ImmediateExit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    Quit,
}

struct State {
    order: Order,
    /// Threads that still run their vCPU, parked ones included.
    alive: usize,
    parked: usize,
    /// How the first vCPU died.
    death: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single assignment, so a panic cannot
        // leave one unfinished.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a vCPU thread may enter `KVM_RUN`; waits during a pause.
    fn may_run(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::Pause {
            state.parked += 1;
            self.changed.notify_all();
            while state.order == Order::Pause {
                state = self.wait(state);
            }
            state.parked -= 1;
        }
        state.order == Order::Run
    }

    fn ended(&self, death: Option<String>) {
        let mut state = self.lock();
        state.alive -= 1;
        if state.death.is_none() {
            state.death = death;
        }
        self.changed.notify_all();
    }
}

impl Threads {
    pub fn new() -> Threads {
        Threads {
            vcpus: Vec::new(),
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    order: Order::Run,
                    alive: 0,
                    parked: 0,
                    death: None,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// Number of threads.
    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// Starts the thread of vCPU `id`. When the guest has reached the end of its
    /// program, the thread calls `check`, which returns what the guest computed
    /// wrongly.
    pub fn start(
        &mut self,
        id: u64,
        mut fd: VcpuFd,
        check: impl FnOnce(&VcpuFd, &Device) -> Result<Option<String>> + Send + 'static,
    ) -> Result<()> {
        // The VcpuFd moves into the thread, and from there into the result that
        // `Vcpu::thread` holds.
        let immediate_exit = ImmediateExit::of(&mut fd);
        let shared = self.shared.clone();
        let thread = move || {
            let mut device = Device::default();
            let end = run_until_end(&mut fd, immediate_exit, &mut device, &shared);
            let halted = matches!(end, Some(End::Halted));
            shared.ended(match end {
                Some(End::Died(how)) => Some(format!("{}: {how}", guest::name(id))),
                Some(End::Halted) | None => None,
            });
            let wrong = if halted {
                check(&fd, &device)
            } else {
                Ok(None)
            };
            (fd, wrong)
        };
        self.shared.lock().alive += 1;
        match thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(thread)
        {
            Ok(thread) => self.vcpus.push(Vcpu {
                thread,
                immediate_exit,
            }),
            Err(e) => {
                self.shared.lock().alive -= 1;
                return Err(e).context("cannot create a thread");
            }
        }
        Ok(())
    }

    /// How the guest died, if it did.
    pub fn death(&self) -> Option<String> {
        self.shared.lock().death.clone()
    }

    /// Pauses all vCPUs: when this returns, none runs.
    pub fn pause(&self) {
        let mut state = self.order(Order::Pause);
        while state.parked < state.alive {
            state = self.shared.wait(state);
        }
    }

    /// Lets all vCPUs continue after a pause.
    pub fn resume(&self) {
        self.shared.lock().order = Order::Run;
        self.shared.changed.notify_all();
    }

    /// Stops all vCPUs for good, and takes one of them out.
    pub fn take(&mut self, vcpu: usize) -> Result<VcpuFd> {
        self.quit();
        let (fd, _) = join(self.vcpus.swap_remove(vcpu))?;
        Ok(fd)
    }

    /// Waits until all vCPUs have ended. Returns `false` after the timeout.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while state.alive > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Waits for all threads. Returns what the first vCPU with a difference
    /// computed wrongly.
    pub fn join(mut self) -> Result<Option<String>> {
        let mut wrong = None;
        for vcpu in self.vcpus.drain(..) {
            let (_, found) = join(vcpu)?;
            wrong = wrong.or(found?);
        }
        Ok(wrong)
    }

    fn quit(&self) {
        drop(self.order(Order::Quit));
        self.shared.changed.notify_all();
    }

    /// Gives an order and brings all vCPU threads out of `KVM_RUN`.
    fn order(&self, order: Order) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.order = order;
        for vcpu in &self.vcpus {
            // A thread reads the order after it has cleared this byte, so either
            // the thread sees the order or KVM_RUN sees the byte.
            vcpu.immediate_exit.set(true);
            kick(&vcpu.thread);
        }
        state
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.quit();
        for vcpu in self.vcpus.drain(..) {
            // The thread itself has reported a panic.
            let _ = join(vcpu);
        }
    }
}

fn join(vcpu: Vcpu) -> Result<(VcpuFd, Result<Option<String>>)> {
    vcpu.thread
        .join()
        .map_err(|_| anyhow!("a vCPU thread panicked"))
}

/// Runs a vCPU until its guest ends; `None` if the order to quit came first.
fn run_until_end(
    fd: &mut VcpuFd,
    immediate_exit: ImmediateExit,
    device: &mut Device,
    shared: &Shared,
) -> Option<End> {
    loop {
        immediate_exit.set(false);
        if !shared.may_run() {
            return None;
        }
        if let Some(end) = exits::run(fd, device) {
            return Some(end);
        }
    }
}
