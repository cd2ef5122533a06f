// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Memory of the VMM: for the guest, and for contents.

use anyhow::{ensure, Context, Result};
use kvm_memory_uapi::PAGE_SIZE;
use vm_memory::MmapRegion;

use crate::populate::case::{Kind, Shape, MIB};

const HUGE: u64 = 2 * MIB;

/// What must remain free beside the guest's memory and its contents.
const SPARE: u64 = 256 * MIB;

/// Anonymous memory at an address where huge pages can start.
pub struct Memory {
    map: MmapRegion,
    size: u64,
}

impl Memory {
    /// `size` bytes; with `huge` in pages of 2 MiB, else of 4 KiB.
    pub fn new(size: u64, huge: bool) -> Result<Self> {
        let map = MmapRegion::new((size + HUGE) as usize).context("mmap")?;
        let advice = if huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        // SAFETY: the advice changes the size of pages in `map` only.
        if unsafe { libc::madvise(map.as_ptr().cast(), map.size(), advice) } != 0 {
            return Err(std::io::Error::last_os_error()).context("madvise");
        }
        Ok(Memory { map, size })
    }

    /// Address of the first byte in this process.
    pub fn addr(&self) -> u64 {
        (self.map.as_ptr() as u64).next_multiple_of(HUGE)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes to every page.
    pub fn write(&self) {
        for offset in (0..self.size).step_by(PAGE_SIZE as usize) {
            // SAFETY: inside the mapping, which nothing else uses yet.
            unsafe { ((self.addr() + offset) as *mut u64).write(offset + 1) };
        }
    }

    /// Copies `size` bytes at `offset` from the same offset of `from`.
    pub fn copy_from(&self, from: &Memory, offset: u64, size: u64) {
        assert!(offset + size <= self.size && offset + size <= from.size);
        // SAFETY: inside two different mappings; this thread is the only one that
        // uses this part of them.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (from.addr() + offset) as *const u8,
                (self.addr() + offset) as *mut u8,
                size as usize,
            );
        }
    }
}

/// [`touch_available`] for the memory that `cases` need.
pub fn warm_up(cases: &[(Kind, Shape)]) -> Result<()> {
    let most = cases.iter().map(|&(kind, shape)| match kind {
        Kind::Source => 2 * shape.size,
        _ => shape.size,
    });
    touch_available(most.max().unwrap_or(0))
}

/// Checks that there is memory for guests with `size` bytes, and touches all available
/// memory: a virtual machine may get its memory only when something touches it,
/// and the first measurement would pay for that.
pub fn touch_available(size: u64) -> Result<()> {
    let needed = size + SPARE;
    let info = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available = info
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()
        })
        .context("no MemAvailable in /proc/meminfo")?;
    let available = available.parse::<u64>()? * 1024;
    ensure!(
        available >= needed,
        "{} MiB of memory are available, {} MiB are needed: a larger MEM, or --quick",
        available / MIB,
        needed / MIB
    );
    Memory::new(available - SPARE, true)?.write();
    Ok(())
}
