// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The committed bindings are the ABI, and are what bindgen makes of the header.

use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;

use kvm_bindings::{kvm_userspace_memory_region, KVMIO};
use kvm_memory_uapi::bindings::*;

#[test]
fn entry_starts_with_the_struct_of_the_single_ioctl() {
    type Entry = kvm_userspace_memory_region_entry;
    type Single = kvm_userspace_memory_region;

    assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (64, 8));
    for (entry, single, expected) in [
        (offset_of!(Entry, slot), offset_of!(Single, slot), 0),
        (offset_of!(Entry, flags), offset_of!(Single, flags), 4),
        (
            offset_of!(Entry, guest_phys_addr),
            offset_of!(Single, guest_phys_addr),
            8,
        ),
        (
            offset_of!(Entry, memory_size),
            offset_of!(Single, memory_size),
            16,
        ),
        (
            offset_of!(Entry, userspace_addr),
            offset_of!(Single, userspace_addr),
            24,
        ),
    ] {
        assert_eq!((entry, single), (expected, expected));
    }
    assert_eq!(size_of::<Single>(), offset_of!(Entry, invalidate_slot));
    assert_eq!(offset_of!(Entry, pad1), 33);
    assert_eq!(offset_of!(Entry, guest_memfd), 36);
    assert_eq!(offset_of!(Entry, guest_memfd_offset), 40);
    assert_eq!(offset_of!(Entry, dirty_bitmap), 48);
    assert_eq!(offset_of!(Entry, pad2), 56);
}

#[test]
fn list_is_a_header_of_eight_bytes() {
    type List = kvm_userspace_memory_region_list;

    assert_eq!((size_of::<List>(), align_of::<List>()), (8, 8));
    assert_eq!(offset_of!(List, nent), 0);
    assert_eq!(offset_of!(List, flags), 4);
    assert_eq!(offset_of!(List, entries), 8);
}

#[test]
fn mapping_is_four_words() {
    type Mapping = kvm_memory_mapping;

    assert_eq!((size_of::<Mapping>(), align_of::<Mapping>()), (32, 8));
    assert_eq!(offset_of!(Mapping, base_gfn), 0);
    assert_eq!(offset_of!(Mapping, nr_pages), 8);
    assert_eq!(offset_of!(Mapping, flags), 16);
    assert_eq!(offset_of!(Mapping, source), 24);
}

#[test]
fn address_space_mapping_is_three_words() {
    type Mapping = kvm_s390_ucas_mapping;

    assert_eq!((size_of::<Mapping>(), align_of::<Mapping>()), (24, 8));
    assert_eq!(offset_of!(Mapping, user_addr), 0);
    assert_eq!(offset_of!(Mapping, vcpu_addr), 8);
    assert_eq!(offset_of!(Mapping, length), 16);
}

#[test]
fn a_descriptor_has_24_bytes_and_an_exit_32() {
    type Desc = kvm_memory_area;
    type Op = kvm_x86_msr_op;

    assert_eq!((size_of::<Desc>(), size_of::<Op>()), (24, 32));
    assert_eq!(offset_of!(Desc, size), 8);
    assert_eq!(offset_of!(Desc, type_), 12);
    assert_eq!(offset_of!(Desc, result), 16);
    assert_eq!(offset_of!(Desc, pad), 17);
    assert_eq!(offset_of!(Op, msr_data), 0);
    assert_eq!(offset_of!(Op, base), 8);
    assert_eq!(offset_of!(Op, size), 16);
    assert_eq!(offset_of!(Op, type_), 20);
    assert_eq!(offset_of!(Op, index), 24);
    assert_eq!(offset_of!(Op, error), 28);
    assert_eq!(offset_of!(Op, result), 29);
}

#[test]
fn numbers_are_those_of_the_abi() {
    const IOC_WRITE: u32 = 1;
    const IOC_READ: u32 = 2;
    let size = size_of::<kvm_userspace_memory_region_list>() as u32;

    assert_eq!(KVM_SET_USER_MEMORY_REGION_LIST, 0x4008_AE49);
    assert_eq!(
        KVM_SET_USER_MEMORY_REGION_LIST,
        (IOC_WRITE << 30) | (size << 16) | (KVMIO << 8) | 0x49
    );
    assert_eq!(KVM_CAP_USER_MEMORY_REGION_LIST, 0x10001);

    let size = size_of::<kvm_memory_mapping>() as u32;
    assert_eq!(KVM_MAP_MEMORY, 0xC020_AED5);
    assert_eq!(
        KVM_MAP_MEMORY,
        ((IOC_READ | IOC_WRITE) << 30) | (size << 16) | (KVMIO << 8) | 0xd5
    );
    assert_eq!(KVM_CAP_MAP_MEMORY, 0x10002);

    let size = size_of::<kvm_area_info>() as u32;
    assert_eq!(KVM_USERSPACE_REGISTER_MEM_AREA, 0x4004_AEA8);
    assert_eq!(
        KVM_USERSPACE_REGISTER_MEM_AREA,
        (IOC_WRITE << 30) | (size << 16) | (KVMIO << 8) | 0xa8
    );
    assert_eq!(KVM_CAP_REGISTER_MEM_AREA, 0x10003);
    assert_eq!(KVM_EXIT_X86_MSR_OP, 0x10001);
    assert_eq!(MSR_KVM_REGISTER_MEM_AREA, 0x4b56_4d80);
    assert_eq!(MSR_KVM_UNREGISTER_MEM_AREA, 0x4b56_4d81);
    assert_eq!(KVM_FEATURE_MEM_AREA, 23);
    let flags = [
        KVM_MEMORY_MAPPING_FLAG_WRITE,
        KVM_MEMORY_MAPPING_FLAG_EXEC,
        KVM_MEMORY_MAPPING_FLAG_USER,
        KVM_MEMORY_MAPPING_FLAG_PRIVATE,
    ];
    assert_eq!(flags, [1, 2, 4, 8]);
}

#[test]
fn bindings_are_what_bindgen_makes_of_the_header() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bindings.rs");
    let status = Command::new(here.join("bindgen.sh")).arg(&made).status()?;
    assert!(
        status.success(),
        "bindgen.sh failed: it needs bindgen 0.71, rustfmt and the kernel's uAPI headers"
    );
    assert_eq!(
        std::fs::read_to_string(made)?,
        std::fs::read_to_string(here.join("src/bindings.rs"))?,
        "src/bindings.rs is not what bindgen.sh makes of linux/kvm_memory.h: run bindgen.sh"
    );
    Ok(())
}
