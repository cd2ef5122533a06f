// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! A thread for each vCPU of a VM: paused, resumed, ended.

use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use kvm_ioctls::VcpuFd;

use crate::kick::{kick, ImmediateExit};

/// The threads of a VM's vCPUs, each of which returns a `T`. Dropping this ends them.
pub struct Threads<T> {
    vcpus: Vec<Vcpu<T>>,
    shared: Arc<Shared>,
}

struct Vcpu<T> {
    thread: JoinHandle<(VcpuFd, T)>,
    immediate_exit: ImmediateExit,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Run,
    Pause,
    Quit,
}

#[derive(Default)]
struct State {
    order: Order,
    /// Permits that exist: threads that still run their vCPU, parked ones included.
    alive: usize,
    parked: usize,
    /// What the first vCPU that could not go on did.
    failure: Option<String>,
}

#[derive(Default)]
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
}

/// Lets a thread run its vCPU, which it cannot outlive. A pause waits for all threads
/// that have theirs.
pub struct Permit<'a> {
    immediate_exit: ImmediateExit,
    shared: Arc<Shared>,
    vcpu: PhantomData<&'a ()>,
}

impl Permit<'_> {
    fn new(immediate_exit: ImmediateExit, shared: &Arc<Shared>) -> Self {
        shared.lock().alive += 1;
        Permit {
            immediate_exit,
            shared: shared.clone(),
            vcpu: PhantomData,
        }
    }

    /// Whether the thread may enter `KVM_RUN`, once; waits during a pause. `false` if
    /// the thread must end.
    pub fn may_run(&self) -> bool {
        self.immediate_exit.set(false);
        let mut state = self.shared.lock();
        if state.order == Order::Pause {
            state.parked += 1;
            self.shared.changed.notify_all();
            while state.order == Order::Pause {
                state = self.shared.wait(state);
            }
            state.parked -= 1;
        }
        state.order == Order::Run
    }

    /// Reports that the vCPU cannot go on, and how that came.
    pub fn fail(self, how: String) {
        self.shared.lock().failure.get_or_insert(how);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.alive -= 1;
        if thread::panicking() {
            let how = || "a vCPU thread panicked".to_owned();
            state.failure.get_or_insert_with(how);
        }
        self.shared.changed.notify_all();
    }
}

impl<T> Default for Threads<T> {
    fn default() -> Self {
        Threads {
            vcpus: Vec::new(),
            shared: Arc::default(),
        }
    }
}

impl<T> Threads<T> {
    /// No threads yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts the thread of vCPU `id`, which calls `run`. The vCPU counts as running
    /// until `run` drops the permit.
    ///
    /// # Errors
    ///
    /// The system has no room for a thread, or does not map the vCPU's `kvm_run`.
    pub fn start(
        &mut self,
        id: u64,
        mut fd: VcpuFd,
        run: impl FnOnce(&mut VcpuFd, Permit<'_>) -> T + Send + 'static,
    ) -> Result<()>
    where
        T: Send + 'static,
    {
        let immediate_exit = ImmediateExit::of(&fd)?;
        let permit = Permit::new(immediate_exit.clone(), &self.shared);
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let result = run(&mut fd, permit);
                (fd, result)
            })
            .context("cannot create a thread")?;
        self.vcpus.push(Vcpu {
            thread,
            immediate_exit,
        });
        Ok(())
    }

    /// What the first vCPU that could not go on did, if there is one.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
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
        drop(self.order(Order::Run));
    }

    /// Waits until no vCPU runs any more. Returns `false` after the timeout.
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

    /// Waits for all threads to end by themselves. Returns their results in the order
    /// in which they were started.
    ///
    /// # Errors
    ///
    /// A thread panicked.
    pub fn join(mut self) -> Result<Vec<T>> {
        let ended: Vec<_> = self.vcpus.drain(..).map(join).collect();
        ended.into_iter().map(|ended| Ok(ended?.1)).collect()
    }

    /// Stops all vCPUs for good, and takes one out, by its position among those that are
    /// left, in the order in which they were started.
    ///
    /// # Errors
    ///
    /// Its thread panicked.
    pub fn take(&mut self, vcpu: usize) -> Result<VcpuFd> {
        drop(self.order(Order::Quit));
        let (fd, _) = join(self.vcpus.remove(vcpu))?;
        Ok(fd)
    }

    /// Ends all threads.
    pub fn quit(&mut self) {
        drop(self.order(Order::Quit));
        for vcpu in self.vcpus.drain(..) {
            // The thread itself has reported a panic.
            let _ = join(vcpu);
        }
    }

    /// Gives an order, and brings all threads out of `KVM_RUN` and out of a pause.
    fn order(&self, order: Order) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.order = order;
        self.shared.changed.notify_all();
        if order != Order::Run {
            for vcpu in &self.vcpus {
                // A thread reads the order after it has cleared this byte, so either
                // the thread sees the order or KVM_RUN sees the byte.
                vcpu.immediate_exit.set(true);
                kick(&vcpu.thread);
            }
        }
        state
    }
}

impl<T> Drop for Threads<T> {
    fn drop(&mut self) {
        self.quit();
    }
}

fn join<T>(vcpu: Vcpu<T>) -> Result<(VcpuFd, T)> {
    vcpu.thread
        .join()
        .map_err(|_| anyhow!("a vCPU thread panicked"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    /// A file in place of a vCPU's.
    fn no_vcpu() -> Result<File> {
        let file = TempFile::new()?.into_file();
        file.set_len(0x1000)?;
        Ok(file)
    }

    #[test]
    fn immediate_exit_outlives_the_vcpu() -> Result<()> {
        let vcpu = no_vcpu()?;
        let exit = ImmediateExit::of(&vcpu)?;
        drop(vcpu);
        exit.set(true);
        exit.clone().set(false);
        Ok(())
    }

    #[test]
    fn a_pause_waits_for_the_vcpus_that_can_go_on() -> Result<()> {
        let mut threads = Threads::<()>::new();
        let vcpu = no_vcpu()?;
        let permit =
            || -> Result<_> { Ok(Permit::new(ImmediateExit::of(&vcpu)?, &threads.shared)) };
        let (runs, fails, panics) = (permit()?, permit()?, permit()?);
        let thread = thread::spawn(move || while runs.may_run() {});
        let failed = thread::spawn(move || fails.fail("no memory".to_owned()));
        assert!(failed.join().is_ok());
        thread::spawn(move || {
            let _permit = panics;
            std::panic::resume_unwind(Box::new("not printed"));
        });

        threads.pause();
        assert_eq!(threads.shared.lock().parked, 1);
        assert_eq!(threads.failure().as_deref(), Some("no memory"));
        assert!(!threads.wait_for_end(Duration::ZERO));
        threads.resume();
        threads.quit();
        assert!(thread.join().is_ok());
        assert!(threads.wait_for_end(Duration::ZERO));
        Ok(())
    }

    #[test]
    fn a_panic_is_a_failure() -> Result<()> {
        let threads = Threads::<()>::new();
        let permit = Permit::new(ImmediateExit::of(&no_vcpu()?)?, &threads.shared);
        let thread = thread::spawn(move || {
            let _permit = permit;
            std::panic::resume_unwind(Box::new("not printed"));
        });
        assert!(thread.join().is_err());
        assert!(threads.failure().is_some());
        Ok(())
    }
}
