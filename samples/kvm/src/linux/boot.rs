// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Loads Linux and sets a vCPU to its 64-bit entry point.
//!
//! Source: `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".

use std::{fs::File, path::Path};

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::{
    configurator::{linux::LinuxBootConfigurator, BootConfigurator, BootParams},
    loader::{
        bootparam::{boot_e820_entry, boot_params, setup_header},
        load_cmdline, BzImage, Cmdline, KernelLoader,
    },
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

const GDT: GuestAddress = GuestAddress(0x500);
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const PML4: GuestAddress = GuestAddress(0x9000);
const PDPT: GuestAddress = GuestAddress(0xa000);
const PAGE_DIRECTORY: GuestAddress = GuestAddress(0xb000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
const COMMAND_LINE_MAX: usize = 2048;
/// End (exclusive) of the memory below the hole of the legacy devices.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
/// The page tables map this much.
const IDENTITY_MAPPED: u64 = 1 << 30;

/// `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

const E820_RAM: u32 = 1;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// Where that is, in the part of the kernel that runs in protected mode.
const ENTRY_64: u64 = 0x200;

/// Loads a bzImage, its initramfs and its command line. Returns the entry point.
pub fn load(
    memory: &GuestMemoryMmap,
    kernel: &Path,
    initramfs: &[u8],
    command_line: &str,
) -> Result<GuestAddress> {
    let end = memory.last_addr().unchecked_add(1);
    ensure!(
        end.0 <= IDENTITY_MAPPED,
        "a guest has at most {IDENTITY_MAPPED:#x} bytes of memory"
    );
    let mut image =
        File::open(kernel).with_context(|| format!("cannot open {}", kernel.display()))?;
    let loaded = BzImage::load(memory, None, &mut image, Some(GuestAddress(HIGH_START)))
        .with_context(|| format!("cannot load {}", kernel.display()))?;
    let mut header = loaded.setup_header.context("no setup header")?;
    ensure!(
        header.xloadflags & XLF_KERNEL_64 != 0,
        "the kernel has no 64-bit entry point"
    );

    let initramfs_at = runtime_end(&header, loaded.kernel_load.0)
        .map(|runtime_end| runtime_end.max(loaded.kernel_end))
        .and_then(|kernel_end| below(end.0, initramfs.len() as u64, kernel_end))
        .context("the kernel and the initramfs do not fit into the guest's memory")?;
    memory
        .write_slice(initramfs, GuestAddress(initramfs_at))
        .context("cannot write the initramfs")?;

    let mut line = Cmdline::new(COMMAND_LINE_MAX)?;
    line.insert_str(command_line)?;
    load_cmdline(memory, COMMAND_LINE, &line)?;

    header.type_of_loader = LOADER_UNDEFINED;
    // Below 1 GiB all of it fits into 32 bits.
    header.cmd_line_ptr = COMMAND_LINE.0 as u32;
    header.ramdisk_image = initramfs_at as u32;
    header.ramdisk_size = initramfs.len() as u32;
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    for (entry, (start, end)) in params
        .e820_table
        .iter_mut()
        .zip([(0, LOW_END), (HIGH_START, end.0)])
    {
        *entry = boot_e820_entry {
            addr: start,
            size: end - start,
            type_: E820_RAM,
        };
        params.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, ZERO_PAGE), memory)
        .context("cannot write the zero page")?;
    write_tables(memory).context("cannot write the GDT and the page tables")?;
    Ok(loaded.kernel_load.unchecked_add(ENTRY_64))
}

/// End (exclusive) of the memory that a kernel loaded at `load` uses before it looks at the memory
/// map: it decompresses itself there.
fn runtime_end(header: &setup_header, load: u64) -> Option<u64> {
    let start = if header.relocatable_kernel != 0 {
        load.max(header.pref_address)
            .checked_next_multiple_of(header.kernel_alignment.into())?
    } else {
        header.pref_address
    };
    start.checked_add(header.init_size.into())
}

/// The highest page boundary from `start` on from which `len` bytes end at or below `end`.
fn below(end: u64, len: u64, start: u64) -> Option<u64> {
    end.checked_sub(len)
        .map(|at| at & !0xfff)
        .filter(|&at| at >= start)
}

/// A GDT with the segments of [`enter`], and page tables that map the first GiB to
/// itself.
fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;

    for (selector, segment) in [
        (CODE_SELECTOR, code_segment()),
        (DATA_SELECTOR, data_segment()),
    ] {
        memory.write_obj(descriptor(&segment), GDT.unchecked_add(selector.into()))?;
    }
    memory.write_obj(PDPT.0 | PRESENT_WRITABLE, PML4)?;
    memory.write_obj(PAGE_DIRECTORY.0 | PRESENT_WRITABLE, PDPT)?;
    for page in 0..512 {
        let entry = (page << 21) | HUGE | PRESENT_WRITABLE;
        memory.write_obj(entry, PAGE_DIRECTORY.unchecked_add(page * 8))?;
    }
    Ok(())
}

/// Sets a vCPU to the entry point that [`load`] returned.
pub fn enter(vcpu: &VcpuFd, entry: GuestAddress) -> Result<()> {
    const CR0_PE: u64 = 1;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME: u64 = 1 << 8;
    const EFER_LMA: u64 = 1 << 10;

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS failed")?;
    sregs.cs = code_segment();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data_segment();
    }
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = DATA_SELECTOR + 7;
    sregs.idt.limit = 0;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PML4.0;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsi: ZERO_PAGE.0,
        rflags: 2,
        ..Default::default()
    })
    .context("KVM_SET_REGS failed")
}

fn code_segment() -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 11, // code, readable, accessed
        db: 0,
        l: 1,
        ..data_segment()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 3, // data, writable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// A segment of base 0 and the largest limit, as it stands in a GDT.
fn descriptor(segment: &kvm_segment) -> u64 {
    let bits = [
        (segment.type_, 40),
        (segment.s, 44),
        (segment.present, 47),
        (segment.l, 53),
        (segment.db, 54),
        (segment.g, 55),
    ];
    bits.iter()
        .fold(0x000f_0000_0000_ffff, |descriptor, &(value, shift)| {
            descriptor | (u64::from(value) << shift)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        assert_eq!(descriptor(&code_segment()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data_segment()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn a_kernel_runs_where_its_header_says() {
        let header = setup_header {
            relocatable_kernel: 1,
            kernel_alignment: 0x20_0000,
            pref_address: 0x100_0000,
            init_size: 0x300_0000,
            ..Default::default()
        };
        assert_eq!(runtime_end(&header, HIGH_START), Some(0x400_0000));
        assert_eq!(runtime_end(&header, 0x110_0000), Some(0x420_0000));
        assert_eq!(runtime_end(&header, u64::MAX), None);

        let fixed = setup_header {
            relocatable_kernel: 0,
            ..header
        };
        assert_eq!(runtime_end(&fixed, 0x110_0000), Some(0x400_0000));
        let unaligned = setup_header {
            kernel_alignment: 0,
            ..header
        };
        assert_eq!(runtime_end(&unaligned, HIGH_START), None);
    }

    #[test]
    fn an_initramfs_is_above_the_kernel() {
        assert_eq!(below(0x10_000, 0x1001, 0), Some(0xe000));
        assert_eq!(below(0x10_000, 0x1001, 0xe000), Some(0xe000));
        // It would only fit if it did not begin with a page.
        assert_eq!(below(0x10_000, 0x1001, 0xe001), None);
        assert_eq!(below(0x10_000, 0x10_001, 0), None);
    }
}
