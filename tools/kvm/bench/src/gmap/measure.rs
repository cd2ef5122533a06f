// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The measurements. All times are in µs.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use kvm_memory_uapi::{HostMemory, Memory, Part, VcpuAddressSpace, PAGE_SIZE, SEGMENT_SIZE};

use crate::gmap::world::{Factory, DATA};

/// A map into a hole, over other memory, and an unmap.
pub type Changes = [f64; 3];

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Four segments, which extents take in turn: neighbours are never joined.
struct Turns(Arc<Memory>);

impl Turns {
    fn new() -> Result<Self> {
        Ok(Turns(Arc::new(Memory::new(4)?)))
    }

    /// The memory of extent `i`; `other`: other memory than before.
    fn part(&self, i: u64, other: bool) -> Result<Part> {
        let segment = i % 2 * 2 + u64::from(other);
        Ok(Part::new(
            self.0.clone(),
            segment * SEGMENT_SIZE,
            SEGMENT_SIZE,
        )?)
    }
}

fn gpa(i: u64) -> u64 {
    DATA + i * SEGMENT_SIZE
}

/// Time for each call that maps or unmaps one of `extents` extents of 1 MiB.
pub fn small(factory: &Factory, extents: u64, running: bool) -> Result<Changes> {
    let vm = factory.vm()?;
    let mut world = factory.world(&vm, 0, Arc::new(Memory::new(1)?))?;
    let turns = Turns::new()?;
    // The clock cannot measure one.
    let cycles = 20_u64.div_ceil(extents);
    world.beside(running, |space| {
        let mut times = [0.0; 3];
        for _ in 0..cycles {
            for (time, other) in times.iter_mut().zip([false, true]) {
                let start = Instant::now();
                for i in 0..extents {
                    space.map(gpa(i), turns.part(i, other)?)?;
                }
                *time += micros(start);
            }
            let start = Instant::now();
            for i in 0..extents {
                space.unmap(gpa(i), SEGMENT_SIZE)?;
            }
            times[2] += micros(start);
        }
        Ok(times.map(|time| time / (cycles * extents) as f64))
    })
}

/// Time for a call that maps or unmaps this many segments, in extents of up to 16 GiB.
pub fn large(factory: &Factory, segments: u64, running: bool) -> Result<Changes> {
    let vm = factory.vm()?;
    let mut world = factory.world(&vm, 0, Arc::new(Memory::new(1)?))?;
    let memory: Arc<dyn HostMemory> = Arc::new(Memory::new(segments as usize + 1)?);
    let size = segments * SEGMENT_SIZE;
    let parts = [0, SEGMENT_SIZE].map(|offset| Part::new(memory.clone(), offset, size));
    world.beside(running, |space| {
        let mut times = [0.0; 3];
        for (time, part) in times.iter_mut().zip(parts) {
            let part = part?;
            let start = Instant::now();
            space.map(DATA, part)?;
            *time = micros(start);
        }
        let start = Instant::now();
        space.unmap(DATA, size)?;
        times[2] = micros(start);
        Ok(times)
    })
}

/// Time from the exit for a missing segment to the re-entry, and what a page fault
/// takes when the segment is mapped before.
pub fn fault(factory: &Factory, segments: u64) -> Result<[f64; 2]> {
    let vm = factory.vm()?;
    let mut world = factory.world(&vm, 0, Arc::new(Memory::new(1)?))?;
    // All pages are present on the host.
    let memory = Arc::new(Memory::new(segments as usize)?);
    for segment in 0..segments {
        let word = memory.word(segment * SEGMENT_SIZE).context("inside")?;
        word.store(1, std::sync::atomic::Ordering::Relaxed);
    }
    // So that the page of the program is mapped.
    world.beside(true, |_| Ok(()))?;

    let part = |i| Part::new(memory.clone(), i * SEGMENT_SIZE, SEGMENT_SIZE);
    let start = Instant::now();
    world.touch(segments, |space, vcpu| {
        space.answer(vcpu, |gpa| part((gpa - DATA) / SEGMENT_SIZE).ok())?;
        Ok(())
    })?;
    let missing = micros(start);

    world.space.unmap(DATA, memory.size())?;
    world.space.map(DATA, Part::all(memory.clone())?)?;
    let start = Instant::now();
    world.touch(segments, |_, _| Ok(()))?;
    Ok([missing, micros(start)].map(|time| time / segments as f64))
}

/// The life of a world, or of a VM: creating it and destroying it.
pub struct Lives {
    pub world: [f64; 2],
    pub vm: [f64; 2],
    /// Of a vCPU whose world another one takes the place of.
    pub reuse: f64,
}

pub fn lives(factory: &Factory, n: u64) -> Result<Lives> {
    let low = Arc::new(Memory::new(1)?);
    let data = Arc::new(Memory::new(1)?);
    let part = || Part::all(data.clone());

    let start = Instant::now();
    let vm = factory.vm()?;
    let mut worlds = Vec::new();
    for id in 0..n {
        let world = factory.world(&vm, id, low.clone())?;
        world.space.map(DATA, part()?)?;
        worlds.push(world);
    }
    let created = micros(start);
    let start = Instant::now();
    for world in &worlds {
        world.space.unmap(DATA, SEGMENT_SIZE)?;
        world.space.map(DATA, part()?)?;
    }
    let reused = micros(start);
    let start = Instant::now();
    drop(worlds);
    drop(vm);
    let world = [created, micros(start)].map(|time| time / n as f64);

    let mut vm = [0.0; 2];
    for _ in 0..n {
        let start = Instant::now();
        let machine = factory.ordinary(&data)?;
        vm[0] += micros(start);
        let start = Instant::now();
        drop(machine);
        vm[1] += micros(start);
    }
    Ok(Lives {
        world,
        vm: vm.map(|time| time / n as f64),
        reuse: reused / n as f64,
    })
}

/// Memory of the kernel in KiB for each of `worlds` worlds, and for each of `extents`
/// extents.
pub fn memory(factory: &Factory, worlds: u64, extents: u64) -> Result<[f64; 2]> {
    let low = Arc::new(Memory::new(1)?);
    let turns = Turns::new()?;
    let vm = factory.vm()?;
    let first = factory.world(&vm, 0, low.clone())?;
    let before = free_kib()?;
    let others = (1..=worlds)
        .map(|id| factory.world(&vm, id, low.clone()))
        .collect::<Result<Vec<_>>>()?;
    let between = free_kib()?;
    for i in 0..extents {
        first.space.map(gpa(i), turns.part(i, false)?)?;
    }
    let after = free_kib()?;
    drop(others);
    Ok([
        (before - between) / worlds as f64,
        (between - after) / extents as f64,
    ])
}

fn free_kib() -> Result<f64> {
    // Each processor counts up to 125 pages for itself before it adds them to the sum.
    const REFRESH: &str = "/proc/sys/vm/stat_refresh";
    const ZONES: &str = "/proc/zoneinfo";
    fs::write(REFRESH, "1").context(REFRESH)?;
    let zones = fs::read_to_string(ZONES).context(ZONES)?;
    Ok((free_pages(&zones) * PAGE_SIZE / 1024) as f64)
}

/// The free pages of all zones, with those that each processor keeps for itself: an
/// allocation takes one of those first, which `MemFree` does not show.
fn free_pages(zones: &str) -> u64 {
    zones
        .lines()
        .map(str::trim_start)
        .filter_map(|line| {
            line.strip_prefix("pages free")
                .or(line.strip_prefix("count:"))
        })
        .filter_map(|pages| pages.trim().parse::<u64>().ok())
        .sum()
}

/// What it takes to take a page away from the process which none, one or all of
/// `worlds` worlds have mapped.
pub fn notifier(factory: &Factory, worlds: u64) -> Result<[f64; 3]> {
    const TIMES: u32 = 20;
    let low = Arc::new(Memory::new(1)?);
    let vm = factory.vm()?;
    let memory = [(); 3].map(|()| Memory::new(1).map(Arc::new));
    let [none, one, all] = memory;
    let (none, one, all) = (none?, one?, all?);
    let worlds = (0..worlds)
        .map(|id| {
            let world = factory.world(&vm, id, low.clone())?;
            world.space.map(DATA, Part::all(all.clone())?)?;
            Ok(world)
        })
        .collect::<Result<Vec<_>>>()?;
    let spaces: Vec<_> = worlds.iter().map(|world| &world.space).collect();
    spaces[0].map(DATA + 2 * SEGMENT_SIZE, Part::all(one.clone())?)?;

    let mut times = [0.0; 3];
    for _ in 0..TIMES {
        times[0] += take_away(&none, &[], 0)?;
        times[1] += take_away(&one, &spaces[..1], DATA + 2 * SEGMENT_SIZE)?;
        times[2] += take_away(&all, &spaces, DATA)?;
    }
    Ok(times.map(|time| time / f64::from(TIMES)))
}

/// Takes away a page that is present in these worlds.
fn take_away(memory: &Memory, spaces: &[&VcpuAddressSpace], gpa: u64) -> Result<f64> {
    let word = memory.word(0).context("inside")?;
    word.store(1, std::sync::atomic::Ordering::Relaxed);
    for space in spaces {
        space.make_present(gpa)?;
    }
    let start = Instant::now();
    // SAFETY: the page becomes zero, as which nothing minds it.
    let ret = unsafe {
        libc::madvise(
            memory.range().start as *mut libc::c_void,
            PAGE_SIZE as usize,
            libc::MADV_DONTNEED,
        )
    };
    let time = micros(start);
    if ret != 0 {
        return Err(std::io::Error::last_os_error()).context("madvise");
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_are_those_of_zones_and_of_processors() {
        let zones = "Node 0, zone      DMA\n  per-node stats\n      nr_free_cma  5\n  pages free     3840\n        \
                     boost    0\n  pagesets\n    cpu: 0\n              count:    10\n              high:     7\n    \
                     cpu: 1\n              count:    2\nNode 0, zone    DMA32\n  pages free     100\n";
        assert_eq!(free_pages(zones), 3952);
        assert_eq!(free_pages(""), 0);
    }
}
