// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Address spaces of vCPUs.

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{
    GmapError, Memory, Part, Region, Stats, VcpuAddressSpace, VcpuFdGmapExt, VmFdMemoryExt,
    SEGMENT_SIZE,
};

use crate::guest::page;

/// A VM whose vCPUs have address spaces.
fn vm() -> Result<VmFd, Box<dyn StdError>> {
    let vm = Kvm::new()?.create_vm()?;
    assert!(vm.max_vcpu_address_spaces() >= 256);
    vm.enable_vcpu_address_spaces()?;
    Ok(vm)
}

/// In real mode: adds 1 to the word at bx, tells port 1, and begins again.
const PROGRAM: [u8; 6] = [0xff, 0x07, 0xe6, 0x01, 0xeb, 0xfa];
/// Where the program is, and where its words are: the second segment.
const CODE: u64 = 0x1000;
const DATA_SEGMENT: u16 = 0xffff;

/// A vCPU that runs the program on the word at 1 MiB.
fn vcpu(vm: &VmFd, id: u64) -> Result<VcpuFd, Box<dyn StdError>> {
    let vcpu = vm.create_vcpu(id)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.base = u64::from(DATA_SEGMENT) << 4;
    sregs.ds.selector = DATA_SEGMENT;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rbx: 0x10,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu)
}

fn program() -> Result<Arc<Memory>, std::io::Error> {
    let memory = Arc::new(Memory::new(1)?);
    assert!(memory.write(CODE, &PROGRAM));
    Ok(memory)
}

fn word(memory: &Memory) -> u64 {
    memory.word(0).map_or(0, |w| w.load(Ordering::Relaxed))
}

/// Runs to the next `out`. The pager gets what is missing.
fn run(
    space: &VcpuAddressSpace,
    vcpu: &mut VcpuFd,
    mut pager: impl FnMut(u64) -> Option<Part>,
) -> Result<Option<u64>, Box<dyn StdError>> {
    let mut answered = None;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(1, _) => return Ok(answered),
            VcpuExit::S390Ucontrol => {
                answered = space.answer(vcpu, &mut pager)?;
                assert!(answered.is_some(), "the pager has nothing");
            }
            exit => return Err(format!("{exit:?}").into()),
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn each_vcpu_has_its_own_memory() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let code = program()?;
    let mut worlds = (0..3)
        .map(|id| -> Result<_, Box<dyn StdError>> {
            let vcpu = vcpu(&vm, id)?;
            let space = VcpuAddressSpace::new(&vcpu)?;
            space.map(0, Part::all(code.clone())?)?;
            Ok((vcpu, space, Arc::new(Memory::new(1)?)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for (runs, (vcpu, space, data)) in (1u64..).zip(&mut worlds) {
        for i in 0..runs {
            let answered = run(space, vcpu, |gpa| {
                assert_eq!(gpa, SEGMENT_SIZE);
                Part::all(data.clone()).ok()
            })?;
            assert_eq!(answered, (i == 0).then_some(SEGMENT_SIZE));
        }
    }
    for (runs, (_, _, data)) in (1..).zip(&worlds) {
        assert_eq!(word(data), runs);
    }
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn memory_lives_as_long_as_it_is_mapped() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let mut vcpu = vcpu(&vm, 0)?;
    let space = VcpuAddressSpace::new(&vcpu)?;
    let (first, second) = (Arc::new(Memory::new(2)?), Arc::new(Memory::new(1)?));
    let code = program()?;

    space.map(0, Part::all(code)?)?;
    space.map(SEGMENT_SIZE, Part::all(first.clone())?)?;
    assert_eq!(Arc::strong_count(&first), 2);
    run(&space, &mut vcpu, |_| None)?;
    assert_eq!(word(&first), 1);
    space.make_present(2 * SEGMENT_SIZE)?;

    // Other memory in place of its first segment.
    space.map(SEGMENT_SIZE, Part::all(second.clone())?)?;
    assert_eq!(
        (Arc::strong_count(&first), Arc::strong_count(&second)),
        (2, 2)
    );
    run(&space, &mut vcpu, |_| None)?;
    assert_eq!((word(&first), word(&second)), (1, 1));
    let mapped = space
        .mapped_at(2 * SEGMENT_SIZE + 0x1234)
        .ok_or("nothing")?;
    assert_eq!(
        (mapped.offset(), mapped.size()),
        (SEGMENT_SIZE, SEGMENT_SIZE)
    );
    drop(mapped);

    space.unmap(2 * SEGMENT_SIZE, SEGMENT_SIZE)?;
    assert_eq!(Arc::strong_count(&first), 1);
    assert_eq!(
        space.make_present(2 * SEGMENT_SIZE),
        Err(GmapError::NotMapped)
    );
    assert!(space.mapped_at(2 * SEGMENT_SIZE).is_none());

    // The vCPU outlives its record, without any memory.
    drop(space);
    assert_eq!(Arc::strong_count(&second), 1);
    assert!(matches!(vcpu.run()?, VcpuExit::S390Ucontrol));
    assert_eq!(vcpu.missing_page(), Some(CODE));
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn another_thread_maps_while_the_vcpu_runs() -> Result<(), Box<dyn StdError>> {
    const RUNS: u64 = 200;
    let vm = vm()?;
    let mut vcpu = vcpu(&vm, 0)?;
    let space = VcpuAddressSpace::new(&vcpu)?;
    let data = [Arc::new(Memory::new(1)?), Arc::new(Memory::new(1)?)];
    space.map(0, Part::all(program()?)?)?;
    space.map(SEGMENT_SIZE, Part::all(data[0].clone())?)?;
    thread::scope(|scope| {
        let mapper = scope.spawn(|| -> Result<(), String> {
            for memory in data.iter().cycle().take(100) {
                let part = Part::all(memory.clone()).map_err(|e| e.to_string())?;
                space.map(SEGMENT_SIZE, part).map_err(|e| e.to_string())?;
            }
            Ok(())
        });
        for _ in 0..RUNS {
            run(&space, &mut vcpu, |_| None)?;
        }
        mapper.join().map_err(|_| "the mapper panicked")??;
        Ok::<_, Box<dyn StdError>>(())
    })?;
    assert_eq!(word(&data[0]) + word(&data[1]), RUNS);
    Ok(())
}

#[test]
#[ignore = "needs /dev/kvm of a kernel with the ioctl"]
fn errors_of_address_spaces_have_their_documented_meaning() -> Result<(), Box<dyn StdError>> {
    let vm = vm()?;
    let vcpu = vcpu(&vm, 0)?;
    let space = VcpuAddressSpace::new(&vcpu)?;
    let part = Part::all(Arc::new(Memory::new(1)?))?;
    let swaps = vm.stat("memslot_swaps")?;

    for gpa in [0x1000, 1 << 19, 0u64.wrapping_sub(SEGMENT_SIZE)] {
        let refused = space.map(gpa, part.clone());
        assert!(
            matches!(refused, Err(GmapError::Argument(_))),
            "{refused:?}"
        );
        let refused = space.unmap(gpa, SEGMENT_SIZE);
        assert!(
            matches!(refused, Err(GmapError::Argument(_))),
            "{refused:?}"
        );
    }
    assert_eq!(space.map(1 << 53, part.clone()), Err(GmapError::Invalid));
    assert_eq!(space.unmap(1 << 53, SEGMENT_SIZE), Err(GmapError::Invalid));
    assert_eq!(space.unmap(0, SEGMENT_SIZE), Ok(()));
    assert_eq!(vm.stat("memslot_swaps")?, swaps);

    // Such a VM has no memslots, and one with memslots no address spaces.
    // SAFETY: the page stays mapped, and nothing else uses it.
    assert!(unsafe { vm.set_user_memory_region(page(0, 0)?.into()) }.is_err());
    let vm = Kvm::new()?.create_vm()?;
    let region: Region = page(0, 0)?;
    // SAFETY: as above.
    unsafe { vm.set_user_memory_region(region.into()) }?;
    assert_eq!(vm.enable_vcpu_address_spaces(), Err(GmapError::Invalid));
    let ordinary = vm.create_vcpu(0)?;
    assert_eq!(
        VcpuAddressSpace::new(&ordinary).map(drop),
        Err(GmapError::Invalid)
    );
    Ok(())
}
