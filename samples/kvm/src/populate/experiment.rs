// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Runs a guest that touches all of its memory, with and without populated memory.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{
    Access, Flags, Mapping, Region, RegionList, Slot, Stats, VmFdMemoryExt, PAGE_SIZE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::{
    populate::{
        guest::{self, LOW, LOW_SIZE, MAX_SIZE, MEMORY},
        parallel::{ensure_can_populate, populate},
        report::{self, Outcome},
    },
    vcpu::new_vcpu,
};

/// Runs a guest that touches `size` bytes of memory, and another one whose memory is
/// populated before it runs; with `source`, the memory has contents. Prints a table.
/// Fails if the second guest took a page fault, or if a guest read wrong contents.
pub fn compare(kvm: &Kvm, vcpus: u64, size: u64, source: bool) -> Result<()> {
    ensure_can_populate(&kvm.create_vm().context("KVM_CREATE_VM failed")?)?;
    let pages = size / PAGE_SIZE;
    ensure!(
        size % PAGE_SIZE == 0 && (vcpus..=MAX_SIZE / PAGE_SIZE).contains(&pages),
        "--size must be a multiple of {PAGE_SIZE}, at least a page for each vCPU, at most 64G"
    );
    let image = source.then(|| image(pages)).transpose()?;
    let outcomes = [false, true]
        .map(|populated| run(kvm, vcpus, size, populated, image.as_ref()))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    print!("{}", report::table(&outcomes));
    for outcome in outcomes {
        ensure!(outcome.wrong.is_none(), "a guest read the wrong contents");
        ensure!(
            outcome.populated.is_none() || outcome.faults == 0,
            "the guest took page faults on memory that was populated"
        );
    }
    Ok(())
}

/// The contents for the guest's memory, in other memory.
fn image(pages: u64) -> Result<GuestMemoryMmap> {
    let image = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (pages * PAGE_SIZE) as usize)])
        .context("no memory for the source")?;
    for page in 0..pages {
        image.write_obj(guest::contents(page), GuestAddress(page * PAGE_SIZE))?;
    }
    Ok(image)
}

fn run(
    kvm: &Kvm,
    vcpus: u64,
    size: u64,
    populated: bool,
    image: Option<&GuestMemoryMmap>,
) -> Result<Outcome> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
    let memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(LOW), LOW_SIZE as usize),
        (GuestAddress(MEMORY), size as usize),
    ])
    .context("cannot map memory for the guest")?;
    guest::load(&memory, size).context("cannot write the guest's program")?;
    create_slots(&vm, &memory, size)?;

    let pages = size / PAGE_SIZE;
    let mut fds = (0..vcpus)
        .map(|id| {
            let entry = guest::entry(guest::share(id, vcpus, pages));
            new_vcpu(kvm, &vm, id, &entry)
        })
        .collect::<Result<Vec<_>>>()?;

    let populated = if populated {
        let low = Mapping::new(LOW, LOW_SIZE, Access::WRITE)?;
        let mut high = Mapping::new(MEMORY, size, Access::WRITE)?;
        if let Some(image) = image {
            let source = image.get_host_address(GuestAddress(0))? as u64;
            // SAFETY: the image is mapped until this returns, and nothing holds
            // references into it.
            high = unsafe { high.with_source(source) }?;
        }
        Some(populate(&mut fds, &[low, high])?)
    } else {
        if let Some(image) = image {
            copy(image, &memory, size)?;
        }
        None
    };

    let (faults, exits) = (total(&fds, "pf_taken")?, total(&fds, "exits")?);
    let touching = touch(&mut fds)?;
    let mut wrong = None;
    for (id, fd) in (0..).zip(&fds) {
        let sum = fd.get_regs().context("KVM_GET_REGS failed")?.r12;
        if sum != guest::expected(guest::share(id, vcpus, pages), image.is_some()) {
            wrong = wrong.or(Some(id));
        }
    }
    Ok(Outcome {
        populated,
        touching,
        faults: total(&fds, "pf_taken")? - faults,
        exits: total(&fds, "exits")? - exits,
        wrong,
    })
}

fn create_slots(vm: &VmFd, memory: &GuestMemoryMmap, size: u64) -> Result<()> {
    let mut slots = RegionList::new();
    for (id, gpa, memory_size) in [(0, LOW, LOW_SIZE), (1, MEMORY, size)] {
        slots.create(Region {
            slot: Slot::new(id),
            flags: Flags::empty(),
            guest_phys_addr: gpa,
            memory_size,
            userspace_addr: memory.get_host_address(GuestAddress(gpa))? as u64,
        })?;
    }
    // SAFETY: the memory is mapped for longer than the vCPUs run, and nothing
    // holds references into it.
    unsafe { vm.set_user_memory_regions(&slots) }.context("KVM_SET_USER_MEMORY_REGION_LIST failed")
}

/// Copies the contents, as a VMM does that cannot populate.
fn copy(image: &GuestMemoryMmap, memory: &GuestMemoryMmap, size: u64) -> Result<()> {
    let mut page = [0; PAGE_SIZE as usize];
    for offset in (0..size).step_by(page.len()) {
        image.read_slice(&mut page, GuestAddress(offset))?;
        memory.write_slice(&page, GuestAddress(MEMORY + offset))?;
    }
    Ok(())
}

/// The sum of a statistic over all vCPUs.
fn total(vcpus: &[VcpuFd], stat: &str) -> Result<u64> {
    let mut total = 0;
    for vcpu in vcpus {
        total += vcpu
            .stat(stat)
            .context("KVM_GET_STATS_FD failed")?
            .with_context(|| format!("KVM does not count '{stat}'"))?;
    }
    Ok(total)
}

/// Lets all vCPUs run until they halt. Returns the time from the start of the first
/// thread to the end of the last. The threads take the time themselves, as this
/// thread may be scheduled late.
fn touch(vcpus: &mut [VcpuFd]) -> Result<Duration> {
    let barrier = Barrier::new(vcpus.len());
    thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    loop {
                        match vcpu.run() {
                            Ok(VcpuExit::Hlt) => return Ok((start, Instant::now())),
                            Ok(exit) => bail!("the guest stopped with {exit:?}"),
                            Err(e) if e.errno() == libc::EINTR => {}
                            Err(e) => return Err(e).context("KVM_RUN failed"),
                        }
                    }
                })
            })
            .collect();
        let mut times = Vec::new();
        for thread in threads {
            times.push(
                thread
                    .join()
                    .map_err(|_| anyhow!("a vCPU thread panicked"))??,
            );
        }
        let start = times.iter().map(|&(start, _)| start).min();
        let end = times.iter().map(|&(_, end)| end).max();
        let (start, end) = start.zip(end).context("no vCPUs")?;
        Ok(end - start)
    })
}
