// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A thread for each vCPU, which can be paused as QEMU does it:
//! `kvm_run.immediate_exit` and a signal bring the thread out of `KVM_RUN`, and the
//! thread waits until it may continue.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{anyhow, bail, Context, Result};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// The threads. Dropping this ends them.
pub struct Vcpus {
    vcpus: Vec<Vcpu>,
    shared: Arc<Shared>,
}

struct Vcpu {
    /// Gives the vCPU back.
    thread: JoinHandle<VcpuFd>,
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
    /// Threads that have not ended.
    alive: usize,
    parked: usize,
    /// What the first vCPU that could not go on did.
    failure: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread may enter `KVM_RUN`; waits during a pause.
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
}

/// `kvm_run.immediate_exit` of a vCPU, for its own and the controlling thread.
///
/// # Invariants
///
/// Points into the mapping of the vCPU's `kvm_run`. Nothing uses it after the
/// `VcpuFd` that owns the mapping is gone.
#[derive(Clone, Copy)]
struct ImmediateExit(*mut u8);

// SAFETY: all accesses to the byte are atomic.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn set(self, value: bool) {
        // SAFETY: the invariants say that the byte is mapped.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value.into(), Ordering::SeqCst);
    }
}

/// Registers the signal that brings threads out of `KVM_RUN`; once per process,
/// before the first [`Vcpus`].
pub fn register_kick() -> Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).context("cannot set the signal handler")
}

impl Vcpus {
    /// Starts a thread for each vCPU.
    pub fn start(fds: Vec<VcpuFd>) -> Result<Vcpus> {
        let mut vcpus = Vcpus {
            vcpus: Vec::new(),
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    order: Order::Run,
                    alive: 0,
                    parked: 0,
                    failure: None,
                }),
                changed: Condvar::new(),
            }),
        };
        for mut fd in fds {
            // INVARIANT: the VcpuFd moves into the thread, and from there into the
            // result that `Vcpu::thread` holds.
            let immediate_exit = ImmediateExit(&raw mut fd.get_kvm_run().immediate_exit);
            let shared = vcpus.shared.clone();
            vcpus.shared.lock().alive += 1;
            let thread = thread::spawn(move || {
                let result = run(&mut fd, immediate_exit, &shared);
                let mut state = shared.lock();
                state.alive -= 1;
                if let Err(e) = result {
                    state.failure.get_or_insert(format!("{e:#}"));
                }
                shared.changed.notify_all();
                drop(state);
                fd
            });
            vcpus.vcpus.push(Vcpu {
                thread,
                immediate_exit,
            });
        }
        Ok(vcpus)
    }

    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// Fails if a vCPU could not go on.
    pub fn check(&self) -> Result<()> {
        match &self.shared.lock().failure {
            Some(failure) => Err(anyhow!("{failure}")),
            None => Ok(()),
        }
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

    /// Ends all threads.
    pub fn quit(&mut self) {
        drop(self.order(Order::Quit));
        self.shared.changed.notify_all();
        for vcpu in self.vcpus.drain(..) {
            // The thread itself has reported a panic.
            let _ = vcpu.thread.join();
        }
    }

    /// Gives an order and brings all threads out of `KVM_RUN`.
    fn order(&self, order: Order) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.order = order;
        for vcpu in &self.vcpus {
            // A thread reads the order after it has cleared this byte, so either
            // the thread sees the order or KVM_RUN sees the byte.
            vcpu.immediate_exit.set(true);
            // Fails for a thread that has ended, which needs no kick.
            let _ = vcpu.thread.kill(SIGRTMIN());
        }
        state
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.quit();
    }
}

/// Runs a vCPU until the order to quit.
fn run(fd: &mut VcpuFd, immediate_exit: ImmediateExit, shared: &Shared) -> Result<()> {
    loop {
        immediate_exit.set(false);
        if !shared.may_run() {
            return Ok(());
        }
        match fd.run() {
            Ok(exit) => bail!("a vCPU stopped with {exit:?}"),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e).context("KVM_RUN"),
        }
    }
}
