// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The guest: the layout of its memory, its program, and a replay of that program
//! on the host, with which the VMM compares.
//!
//! Each vCPU runs in 64-bit mode and counts *steps*. A step mixes a linear
//! congruential generator into the vCPU's own data and, in the emulated
//! variant, executes instructions that KVM has to fetch from guest memory and
//! emulate. Page tables, code, stacks and data all lie in the window whose
//! memslots are updated. Only the step counter is elsewhere, in a slot that no
//! update changes, where the host reads it.
//!
//! One more vCPU, the bystander, runs the same program from memory that no update
//! changes.

use std::{arch::global_asm, fmt, slice};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vcpu::{Entry, CPUID_FUNCTION, CPUID_RESULT};

/// The window; `plan.rs` says how its memslots change.
pub const WINDOW: u64 = 0x0100_0000;
pub const WINDOW_WORKING: u64 = 0x0010_0000;
pub const WINDOW_FULL: u64 = 0x0020_0000;
/// Address to which an update moves the window's slot.
pub const ALIAS: u64 = 0x0200_0000;
/// The bystander's memory, with the same layout as the window.
pub const ASIDE: u64 = 0x0280_0000;
pub const ASIDE_SIZE: u64 = DATA + DATA_SIZE;
/// One page per vCPU. No update changes this slot, nor that of [`ASIDE`].
pub const REPORT: u64 = 0x0300_0000;
pub const REPORT_SIZE: u64 = (MAX_VCPUS + 1) * PAGE;
/// Address without a memslot: an access is MMIO for [`Device`].
pub const DEVICE: u64 = 0x0400_0000;
/// I/O port of [`Device`].
pub const PORT: u16 = 0x05f0;
/// As many as fit into [`WINDOW_WORKING`].
pub const MAX_VCPUS: u64 = 8;
/// The id of the bystander. Lower ids are in the window.
pub const BYSTANDER: u64 = MAX_VCPUS;

const PAGE: u64 = 4096;

// Offsets in the window, and in the bystander's memory.
const PML4: u64 = 0;
const PDPT: u64 = PAGE;
const PAGE_DIRECTORY: u64 = 2 * PAGE;
const IMAGE: u64 = 3 * PAGE;
const STACKS: u64 = 16 * PAGE;
const DATA: u64 = 32 * PAGE;
const DATA_SIZE: u64 = 16 * PAGE;

const _: () = assert!(STACKS + MAX_VCPUS * PAGE <= DATA);
const _: () = assert!(DATA + MAX_VCPUS * DATA_SIZE <= WINDOW_WORKING);

// Offsets in a vCPU's report page.
const STEPS: u64 = 0;
const LONGEST_GAP: u64 = 8;
const STOP: u64 = 16;

// The generator's constants are Knuth's (MMIX).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;
const WORDS_PER_STEP: u32 = 64;
/// Distance of the words that a step uses: each is in another page, at another
/// offset.
const STRIDE: u64 = PAGE + 8;
const STRING_LENGTH: usize = 4;

// Registers: r8 time stamp of the last step, r10 report page, r11 data,
// r12 generator, r13 offset in the data, r14 variant, r15 gpa of the device.
// Each part has a page of its own, so a split can separate them.
global_asm!(
    r#"
    .pushsection .rodata.sample_vmm_guest, "a"
    .balign 4096
    .global sample_vmm_guest
sample_vmm_guest:
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mov     r8, rax
.Lstep:
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mov     rcx, rax
    sub     rax, r8
    mov     r8, rcx
    cmp     rax, [r10 + {longest_gap}]
    jbe     .Lno_record
    mov     [r10 + {longest_gap}], rax
.Lno_record:
    call    .Lwork
    test    r14, r14
    jz      .Lcount
    call    .Lemulated
.Lcount:
    inc     qword ptr [r10 + {steps}]
    cmp     qword ptr [r10 + {stop}], 0
    je      .Lstep
    hlt

    .balign 4096
.Lwork:
    movabs  rsi, {multiplier}
    movabs  rdi, {increment}
    mov     ecx, {words_per_step}
.Lword:
    imul    r12, rsi
    add     r12, rdi
    add     r13, {stride}
    and     r13, {data_mask}
    mov     rax, [r11 + r13]
    rol     rax, 7
    add     rax, r12
    push    rax
    pop     qword ptr [r11 + r13]
    dec     ecx
    jnz     .Lword
    ret

    .balign 4096
.Lemulated:
    mov     eax, {cpuid_function}
    xor     ecx, ecx
    cpuid
    add     eax, ebx
    add     eax, ecx
    add     eax, edx
    add     r12, rax
    mov     edx, {port}
    mov     eax, r12d
    out     dx, eax
    in      eax, dx
    add     r12, rax
    cld
    lea     rsi, [r11 + r13]
    mov     ecx, {string_length}
    rep outsb
    lea     rdi, [r11 + r13]
    mov     ecx, {string_length}
    rep insb
    mov     [r15], r12d
    mov     eax, [r15]
    add     r12, rax
    ret
    .global sample_vmm_guest_end
sample_vmm_guest_end:
    .popsection
    "#,
    longest_gap = const LONGEST_GAP,
    steps = const STEPS,
    stop = const STOP,
    multiplier = const MULTIPLIER,
    increment = const INCREMENT,
    words_per_step = const WORDS_PER_STEP,
    stride = const STRIDE,
    data_mask = const DATA_SIZE - 8,
    cpuid_function = const CPUID_FUNCTION,
    port = const PORT,
    string_length = const STRING_LENGTH,
);

extern "C" {
    #[link_name = "sample_vmm_guest"]
    static IMAGE_START: u8;
    #[link_name = "sample_vmm_guest_end"]
    static IMAGE_END: u8;
}

fn image() -> &'static [u8] {
    let start = &raw const IMAGE_START;
    let end = &raw const IMAGE_END;
    // SAFETY: both symbols are defined by the assembly above in one read-only
    // section, the start before the end.
    unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

/// Which program the vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// No instruction that KVM must emulate.
    Plain,
    /// CPUID, port I/O, string I/O and MMIO in every step.
    Emulated,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Variant::Plain => "plain",
            Variant::Emulated => "emulated",
        })
    }
}

/// The registers with which a vCPU starts the program.
pub fn entry(vcpu: u64, variant: Variant) -> Entry {
    let (memory, index) = place(vcpu);
    Entry {
        page_table: memory + PML4,
        rip: memory + IMAGE,
        rsp: memory + STACKS + (index + 1) * PAGE,
        r10: report(vcpu).0,
        r11: data(vcpu).0,
        r12: seed(vcpu),
        r14: (variant == Variant::Emulated).into(),
        r15: DEVICE,
    }
}

/// What messages call a vCPU.
pub fn name(vcpu: u64) -> String {
    if vcpu == BYSTANDER {
        "bystander".to_owned()
    } else {
        format!("vCPU {vcpu}")
    }
}

/// The memory from which a vCPU runs, and how many others have their stacks and
/// data before its own there.
fn place(vcpu: u64) -> (u64, u64) {
    if vcpu == BYSTANDER {
        (ASIDE, 0)
    } else {
        (WINDOW, vcpu)
    }
}

fn seed(vcpu: u64) -> u64 {
    0x5eed_0000 + vcpu
}

fn report(vcpu: u64) -> GuestAddress {
    GuestAddress(REPORT + vcpu * PAGE)
}

fn data(vcpu: u64) -> GuestAddress {
    let (memory, index) = place(vcpu);
    GuestAddress(memory + DATA + index * DATA_SIZE)
}

/// Address of the number of steps that the vCPU has completed.
pub fn steps(vcpu: u64) -> GuestAddress {
    GuestAddress(report(vcpu).0 + STEPS)
}

/// Address of the longest time between two steps, in TSC cycles, since the host
/// last set it to 0.
pub fn longest_gap(vcpu: u64) -> GuestAddress {
    GuestAddress(report(vcpu).0 + LONGEST_GAP)
}

/// Address of a word: the vCPU halts at the end of a step once it is not 0.
pub fn stop(vcpu: u64) -> GuestAddress {
    GuestAddress(report(vcpu).0 + STOP)
}

/// Writes program and page tables to fresh guest memory: once to the window and
/// once to the bystander's memory.
pub fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    load_at(memory, WINDOW)?;
    load_at(memory, ASIDE)
}

fn load_at(memory: &GuestMemoryMmap, base: u64) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let entry =
        |table, index, value: u64| memory.write_obj(value, GuestAddress(base + table + index * 8));

    memory.write_slice(image(), GuestAddress(base + IMAGE))?;
    entry(PML4, 0, (base + PDPT) | PRESENT_WRITABLE)?;
    entry(PDPT, 0, (base + PAGE_DIRECTORY) | PRESENT_WRITABLE)?;
    // The identity mapping of the first GiB.
    for index in 0..512 {
        entry(
            PAGE_DIRECTORY,
            index,
            (index << 21) | PRESENT_WRITABLE | LARGE,
        )?;
    }
    Ok(())
}

/// The device behind the port and the MMIO address. Reads return a fixed sequence
/// of bytes and writes go into a checksum, so a missing or an extra access shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    written: u64,
    sequence: u64,
}

impl Device {
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.written = next(self.written ^ u64::from(byte));
        }
    }

    pub fn read(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.sequence = next(self.sequence);
            *byte = (self.sequence >> 56) as u8;
        }
    }
}

fn next(state: u64) -> u64 {
    state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT)
}

/// The guest's program in Rust.
pub struct Replay {
    variant: Variant,
    state: u64,
    offset: u64,
    data: Vec<u64>,
    device: Device,
}

impl Replay {
    /// A vCPU before its first step.
    pub fn new(vcpu: u64, variant: Variant) -> Replay {
        Replay {
            variant,
            state: seed(vcpu),
            offset: 0,
            data: vec![0; (DATA_SIZE / 8) as usize],
            device: Device::default(),
        }
    }

    pub fn step(&mut self) {
        for _ in 0..WORDS_PER_STEP {
            self.state = next(self.state);
            self.offset = (self.offset + STRIDE) & (DATA_SIZE - 8);
            let word = &mut self.data[(self.offset / 8) as usize];
            *word = word.rotate_left(7).wrapping_add(self.state);
        }
        if self.variant == Variant::Emulated {
            let sum = CPUID_RESULT
                .iter()
                .fold(0, |sum: u32, &x| sum.wrapping_add(x));
            self.add(sum);
            self.exchange();
            let word = &mut self.data[(self.offset / 8) as usize];
            let mut bytes = word.to_le_bytes();
            self.device.write(&bytes[..STRING_LENGTH]);
            self.device.read(&mut bytes[..STRING_LENGTH]);
            *word = u64::from_le_bytes(bytes);
            self.exchange();
        }
    }

    fn add(&mut self, value: u32) {
        self.state = self.state.wrapping_add(value.into());
    }

    /// Writes 32 bits of the state to the device, and reads 32 bits from it.
    fn exchange(&mut self) {
        let mut bytes = [0; 4];
        self.device.write(&self.state.to_le_bytes()[..4]);
        self.device.read(&mut bytes);
        self.add(u32::from_le_bytes(bytes));
    }

    /// What is wrong on a vCPU that halted after the same number of steps, if
    /// anything.
    pub fn compare(
        &self,
        vcpu: u64,
        state: u64,
        device: &Device,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<String>, vm_memory::GuestMemoryError> {
        let mut words = vec![0; self.data.len() * 8];
        memory.read_slice(&mut words, data(vcpu))?;
        let wrong = self
            .data
            .iter()
            .zip(words.chunks_exact(8))
            .filter(|(expected, word)| expected.to_le_bytes() != **word)
            .count();
        let found = if wrong > 0 {
            format!("{wrong} of {} words of its data differ", self.data.len())
        } else if self.state != state {
            "its generator differs".to_owned()
        } else if self.device != *device {
            "the device saw other accesses".to_owned()
        } else {
            return Ok(None);
        };
        Ok(Some(format!("{}: {found}", name(vcpu))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_finds_each_kind_of_difference() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(WINDOW), WINDOW_FULL as usize)])
                .expect("memory");
        let mut replay = Replay::new(1, Variant::Emulated);
        for _ in 0..1000 {
            replay.step();
        }
        let (state, device) = (replay.state, replay.device.clone());
        for (address, word) in (data(1).0..).step_by(8).zip(&replay.data) {
            memory
                .write_obj(*word, GuestAddress(address))
                .expect("in memory");
        }
        let compare = |state, device: &Device| {
            replay
                .compare(1, state, device, &memory)
                .expect("in memory")
        };
        assert_eq!(compare(state, &device), None);

        let found = compare(state + 1, &device).expect("a difference");
        assert!(found.contains("generator"), "{found}");

        let mut once_too_often = device.clone();
        once_too_often.write(&[0]);
        let found = compare(state, &once_too_often).expect("a difference");
        assert!(found.contains("device"), "{found}");

        let last = GuestAddress(data(1).0 + DATA_SIZE - 1);
        let byte: u8 = memory.read_obj(last).expect("in memory");
        memory.write_obj(byte ^ 1, last).expect("in memory");
        let found = compare(state, &device).expect("a difference");
        assert!(found.contains("1 of 8192 words"), "{found}");
    }
}
