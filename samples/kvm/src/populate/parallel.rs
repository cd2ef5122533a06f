// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Populates memory by all vCPUs of a VM at the same time.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure, Context, Result};
use kvm_ioctls::{VcpuFd, VmFd};
use kvm_memory_uapi::{Mapping, VcpuFdMemoryExt, VmFdMemoryExt, PAGE_SIZE};

use crate::populate::progress::Progress;

/// Most bytes that a vCPU takes at a time: enough for many huge pages, and so few
/// that all vCPUs end at about the same time.
const PART: u64 = 8 << 20;

/// Memory that has been populated, and the time it took.
pub struct Populated {
    pub pages: u64,
    pub time: Duration,
}

/// Fails if this KVM cannot populate memory.
pub fn ensure_can_populate(vm: &VmFd) -> Result<()> {
    ensure!(
        vm.can_populate(),
        "this KVM cannot populate memory (KVM_CAP_MAP_MEMORY); load KVM modules that were built \
         with CONFIG_KVM_RUST_MEMORY=y, with npt=1 (kvm_amd) or ept=1 (kvm_intel)"
    );
    Ok(())
}

/// Populates all of `mappings` by all vCPUs, each in a thread of its own, and shows
/// the progress. After an error all vCPUs stop.
pub fn populate(vcpus: &mut [VcpuFd], mappings: &[Mapping]) -> Result<Populated> {
    let pages: u64 = mappings.iter().map(Mapping::pages).sum();
    let share = pages.div_ceil(vcpus.len().max(1) as u64) * PAGE_SIZE;
    let parts = Mutex::new(parts(mappings, share.min(PART)));
    let progress = Progress::new(pages);
    let start = Instant::now();
    thread::scope(|scope| {
        let (parts, progress) = (&parts, &progress);
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(move || {
                    let result = take_parts(vcpu, parts, progress);
                    if result.is_err() {
                        lock(parts).clear();
                    }
                    result
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a thread that populates memory panicked"))?
        })
    })?;
    let time = start.elapsed();
    progress.end();
    Ok(Populated { pages, time })
}

/// Cuts the mappings into parts of at most `size` bytes, last part first.
fn parts(mappings: &[Mapping], size: u64) -> Vec<Mapping> {
    let mut parts = Vec::new();
    for &mapping in mappings {
        let mut rest = mapping;
        while let Some((part, after)) = rest.split_at(size) {
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
    }
    parts.reverse();
    parts
}

/// Populates parts from the end of `parts` until none is left.
fn take_parts(vcpu: &mut VcpuFd, parts: &Mutex<Vec<Mapping>>, progress: &Progress) -> Result<()> {
    loop {
        let Some(mut part) = lock(parts).pop() else {
            return Ok(());
        };
        let mut done = 0;
        let error = vcpu.populate_steps(&mut part).find_map(|step| match step {
            Ok(step) => {
                progress.add(step.done - done);
                done = step.done;
                None
            }
            Err(error) => Some(error),
        });
        if let Some(error) = error {
            let gpa = part.guest_phys_addr();
            return Err(error).with_context(|| format!("cannot populate the page at {gpa:#x}"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under the lock is a single call, so a panic cannot leave one
    // unfinished.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kvm_memory_uapi::Access;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn parts_are_in_order_and_complete() {
        let mapping = |gpa, size| Mapping::new(gpa, size, Access::WRITE).expect("valid");
        let mappings = [mapping(0, 0x3000), mapping(GIB, 2 * PART + 0x1000)];
        let mut parts = parts(&mappings, PART);
        let mut next = || {
            let part = parts.pop()?;
            Some((part.guest_phys_addr(), part.memory_size()))
        };
        assert_eq!(next(), Some((0, 0x3000)));
        assert_eq!(next(), Some((GIB, PART)));
        assert_eq!(next(), Some((GIB + PART, PART)));
        assert_eq!(next(), Some((GIB + 2 * PART, 0x1000)));
        assert_eq!(next(), None);
    }
}
