// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The programs of workers and monitor.
//!
//! A worker visits its segments in a shuffled order, several times, and mixes words
//! of them into a sum. It counts its visits in its low segment, from where the
//! monitor reads the count: the monitor has the worker's low segment in a window.

use std::{arch::global_asm, slice};

use kvm_memory_uapi::{Memory, SEGMENT_SIZE};

use crate::vcpu::Entry;

/// The segment with page tables, program and counter.
pub const LOW: u64 = 0;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PROGRAM: u64 = 0x10000;
/// Words in the low segment: visits, and how often to visit each segment.
pub const VISITS: u64 = 0x20000;
const PASSES: u64 = VISITS + 8;

/// Where a worker's segments are.
pub const DATA: u64 = 64 << 20;
/// Where the monitor has a worker's low segment.
pub const WINDOW: u64 = 32 << 20;
/// The page tables map this much, one to one.
const MAPPED: u64 = 1 << 30;
/// As many segments as [`MAPPED`] has room for, as a power of 2.
pub const MAX_SEGMENTS: u64 = 512;

const _: () = assert!(WINDOW + SEGMENT_SIZE <= DATA);
const _: () = assert!(DATA + MAX_SEGMENTS * SEGMENT_SIZE <= MAPPED);

/// A worker reads a word this often in a segment.
const STEP: u64 = 0x10000;
/// The port to which the monitor writes what it reads.
pub const PORT: u16 = 0x10;
/// Shuffles the segments, whose number is a power of 2.
const STRIDE: u64 = 7;
// Knuth's (MMIX).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

// r10 segments, r11 their number, r12 sum, r14 words in the low segment, r15 multiplier.
global_asm!(
    r#"
    .pushsection .rodata.sample_vmm_worker, "a"
    .global sample_vmm_worker
sample_vmm_worker:
    xor     ecx, ecx
2:  xor     ebx, ebx
3:  imul    rax, rbx, {stride}
    lea     rdx, [r11 - 1]
    and     rax, rdx
    shl     rax, 20
    add     rax, r10
    xor     esi, esi
4:  imul    r12, r15
    add     r12, [rax + rsi]
    add     rsi, {step}
    cmp     rsi, {segment}
    jb      4b
    inc     qword ptr [r14]
    inc     rbx
    cmp     rbx, r11
    jb      3b
    inc     rcx
    cmp     rcx, [r14 + 8]
    jb      2b
    hlt
    .global sample_vmm_worker_end
sample_vmm_worker_end:
    .popsection
    "#,
    stride = const STRIDE,
    step = const STEP,
    segment = const SEGMENT_SIZE,
);

// r10 the counter in the window.
global_asm!(
    r#"
    .pushsection .rodata.sample_vmm_monitor, "a"
    .global sample_vmm_monitor
sample_vmm_monitor:
    mov     rax, [r10]
    mov     edx, {port}
    out     dx, eax
    mov     ecx, 2000
2:  pause
    dec     ecx
    jnz     2b
    jmp     sample_vmm_monitor
    .global sample_vmm_monitor_end
sample_vmm_monitor_end:
    .popsection
    "#,
    port = const PORT,
);

extern "C" {
    #[link_name = "sample_vmm_worker"]
    static WORKER: u8;
    #[link_name = "sample_vmm_worker_end"]
    static WORKER_END: u8;
    #[link_name = "sample_vmm_monitor"]
    static MONITOR: u8;
    #[link_name = "sample_vmm_monitor_end"]
    static MONITOR_END: u8;
}

/// What a vCPU runs.
#[derive(Clone, Copy)]
pub enum Program {
    Worker { segments: u64, passes: u64 },
    Monitor,
}

impl Program {
    fn code(self) -> &'static [u8] {
        let (start, end) = match self {
            Program::Worker { .. } => (&raw const WORKER, &raw const WORKER_END),
            Program::Monitor => (&raw const MONITOR, &raw const MONITOR_END),
        };
        // SAFETY: both symbols are defined by the assembly above in one read-only
        // section, the start before the end.
        unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }

    /// Writes page tables and program to a low segment. Returns false if they do not
    /// fit.
    #[must_use]
    pub fn load(self, low: &Memory) -> bool {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        let entry = |table, index, value: u64| {
            low.write(table + index * 8, &(value | PRESENT_WRITABLE).to_le_bytes())
        };
        let tables = entry(PML4, 0, PDPT) && entry(PDPT, 0, DIRECTORY);
        let mut directory = (0..MAPPED >> 21).map(|i| entry(DIRECTORY, i, (i << 21) | LARGE));
        let passes = match self {
            Program::Worker { passes, .. } => passes,
            Program::Monitor => 0,
        };
        tables
            && directory.all(|fits| fits)
            && low.write(PASSES, &passes.to_le_bytes())
            && low.write(PROGRAM, self.code())
    }

    /// The registers with which a vCPU starts.
    pub fn entry(self) -> Entry {
        let entry = Entry {
            page_table: PML4,
            rip: PROGRAM,
            ..Entry::default()
        };
        match self {
            Program::Worker { segments, .. } => Entry {
                r10: DATA,
                r11: segments,
                r12: 1,
                r14: VISITS,
                r15: MULTIPLIER,
                ..entry
            },
            Program::Monitor => Entry {
                r10: WINDOW + VISITS,
                ..entry
            },
        }
    }
}

/// The words of a worker's segment that it reads, each with its offset.
pub fn contents(world: u64, segment: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..SEGMENT_SIZE).step_by(STEP as usize).map(move |offset| {
        let place = (world << 40) | (segment << 20) | offset;
        (offset, (place + 1).wrapping_mul(MULTIPLIER))
    })
}

/// The sum that a worker computes.
pub fn expected(world: u64, segments: u64, passes: u64) -> u64 {
    let mut sum: u64 = 1;
    for _ in 0..passes {
        for i in 0..segments {
            for (_, word) in contents(world, i * STRIDE % segments) {
                sum = sum.wrapping_mul(MULTIPLIER).wrapping_add(word);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_place() {
        let low = Memory::new(1).expect("memory");
        let worker = Program::Worker {
            segments: 8,
            passes: 3,
        };
        assert!(worker.load(&low));
        assert!(Program::Monitor.load(&low));
        assert!(PROGRAM + worker.code().len() as u64 <= VISITS);
    }

    #[test]
    fn the_order_is_a_permutation() {
        let mut segments = [0; 64];
        for i in 0..64 {
            segments[(i * STRIDE % 64) as usize] += 1;
        }
        assert_eq!(segments, [1; 64]);
    }

    #[test]
    fn worlds_differ() {
        assert_ne!(expected(0, 4, 1), expected(1, 4, 1));
        assert_ne!(expected(0, 4, 1), expected(0, 4, 2));
        assert_ne!(contents(1, 2).next(), contents(1, 3).next());
    }
}
