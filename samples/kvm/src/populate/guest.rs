// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A guest that touches all of its memory.
//!
//! Each vCPU increments a word of every page of its share of the memory, and mixes
//! the former value into a sum. One access does both: a write that follows a read
//! replaces the zero page, and vCPUs that do this to each other's page faults make
//! a guest without populated memory look far worse.

use std::{arch::global_asm, ops::Range, slice};

use kvm_memory_uapi::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vcpu::Entry;

/// Page tables and program.
pub const LOW: u64 = 0;
pub const LOW_SIZE: u64 = TABLES + (1 + MAX_SIZE / GIB) * PAGE_SIZE;
const PROGRAM: u64 = LOW;
const PML4: u64 = PAGE_SIZE;
const PDPT: u64 = 2 * PAGE_SIZE;
/// Page directories: one for the first GiB, then one for each GiB of [`MEMORY`].
const TABLES: u64 = 3 * PAGE_SIZE;
/// The memory that the guest touches.
pub const MEMORY: u64 = 4 * GIB;
const GIB: u64 = 1 << 30;
/// Its largest size in bytes: as many page directories are in [`LOW_SIZE`].
pub const MAX_SIZE: u64 = 64 * GIB;

// Knuth's (MMIX).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

// r10 to r11 memory, r12 sum, r15 multiplier.
global_asm!(
    r#"
    .pushsection .rodata.sample_vmm_touch, "a"
    .global sample_vmm_touch
sample_vmm_touch:
    mov     eax, 1
    lock xadd [r10], rax
    imul    r12, r15
    add     r12, rax
    add     r10, {page}
    cmp     r10, r11
    jb      sample_vmm_touch
    hlt
    .global sample_vmm_touch_end
sample_vmm_touch_end:
    .popsection
    "#,
    page = const PAGE_SIZE,
);

extern "C" {
    #[link_name = "sample_vmm_touch"]
    static PROGRAM_START: u8;
    #[link_name = "sample_vmm_touch_end"]
    static PROGRAM_END: u8;
}

fn program() -> &'static [u8] {
    let start = &raw const PROGRAM_START;
    let end = &raw const PROGRAM_END;
    // SAFETY: both symbols are defined by the assembly above in one read-only
    // section, the start before the end.
    unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// Writes program and page tables to fresh guest memory.
pub fn load(memory: &GuestMemoryMmap, size: u64) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let entry = |table, index, value| {
        memory.write_obj(value | PRESENT_WRITABLE, GuestAddress(table + index * 8))
    };

    memory.write_slice(program(), GuestAddress(PROGRAM))?;
    entry(PML4, 0, PDPT)?;
    let touched = MEMORY / GIB..(MEMORY + size).div_ceil(GIB);
    for (gib, table) in [0].into_iter().chain(touched).zip((TABLES..).step_by(4096)) {
        entry(PDPT, gib, table)?;
        for index in 0..512 {
            entry(table, index, (gib * GIB + (index << 21)) | LARGE)?;
        }
    }
    Ok(())
}

/// The word at the start of page `n` if the memory has contents.
pub fn contents(n: u64) -> u64 {
    (n + 1).wrapping_mul(MULTIPLIER)
}

/// The registers with which a vCPU starts the program, for the pages that it
/// touches.
pub fn entry(share: Range<u64>) -> Entry {
    Entry {
        page_table: PML4,
        rip: PROGRAM,
        r10: MEMORY + share.start * PAGE_SIZE,
        r11: MEMORY + share.end * PAGE_SIZE,
        r12: 1,
        r15: MULTIPLIER,
        ..Entry::default()
    }
}

/// The pages that vCPU `id` touches.
pub fn share(id: u64, vcpus: u64, pages: u64) -> Range<u64> {
    id * pages / vcpus..(id + 1) * pages / vcpus
}

/// The sum that a vCPU computes from these pages.
pub fn expected(pages: Range<u64>, filled: bool) -> u64 {
    pages.fold(1, |sum: u64, page| {
        let word = if filled { contents(page) } else { 0 };
        sum.wrapping_mul(MULTIPLIER).wrapping_add(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_whole() {
        for (vcpus, pages) in [(1, 1), (3, 10), (8, 8)] {
            let mut next = 0;
            for id in 0..vcpus {
                let share = share(id, vcpus, pages);
                assert!(share.start == next && share.end > next);
                next = share.end;
            }
            assert_eq!(next, pages);
        }
    }
}
