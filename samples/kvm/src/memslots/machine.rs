// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A VM that runs the guest, and the three ways to update its memslots.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_memory_uapi::{
    Access, Counter, Flags, Mapping, Region, RegionList, Slot, Stats, VmFdMemoryExt,
};
use kvm_vcpu_threads::Threads;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::{
    memslots::{
        exits::{run_until_end, End},
        guest::{self, Device, Replay, Variant},
        plan::Window,
    },
    populate::parallel::populate,
    vcpu::new_vcpu,
};

/// Slots that no plan uses.
const REPORT_SLOT: Slot = Slot::new(2);
const ASIDE_SLOT: Slot = Slot::new(3);

/// A guest that has not halted for so long after the order to stop is stuck.
const HALT_TIMEOUT: Duration = Duration::from_secs(10);

/// A value for the vCPUs in the window, and the same for the bystander.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides<T> {
    pub window: T,
    pub bystander: T,
}

impl<T> Sides<T> {
    /// The value for the side of vCPU `id`.
    fn side(&mut self, id: u64) -> &mut T {
        if id == guest::BYSTANDER {
            &mut self.bystander
        } else {
            &mut self.window
        }
    }
}

/// KVM's counter of the page faults that it resolves by a mapping. It is not `pf_taken`,
/// which also has faults on the device, and those that KVM tries again because memslots
/// change.
const PAGE_FAULTS: &str = "pf_fixed";

/// A VM with the guest's program in it and its vCPUs running.
pub struct Machine {
    /// Dropped first: the vCPUs need the rest. A thread whose guest reached the end of
    /// its program returns what the guest computed wrongly, if anything.
    threads: Threads<Result<Option<String>>>,
    /// Of each thread's vCPU, in the order of [`ids`].
    faults: Vec<Counter>,
    memory: GuestMemoryMmap,
    window: Window,
    tsc_khz: u32,
    vm: VmFd,
}

/// The ids of a guest's vCPUs: `vcpus` in the window, then the bystander.
pub fn ids(vcpus: u64) -> impl Iterator<Item = u64> {
    (0..vcpus).chain([guest::BYSTANDER])
}

impl Machine {
    /// Starts a guest with `vcpus` vCPUs in the window, and the bystander. With
    /// `populated`, its memory is populated before it runs.
    pub fn start(kvm: &Kvm, vcpus: u64, variant: Variant, populated: bool) -> Result<Machine> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(guest::WINDOW), guest::WINDOW_FULL as usize),
            (GuestAddress(guest::ASIDE), guest::ASIDE_SIZE as usize),
            (GuestAddress(guest::REPORT), guest::REPORT_SIZE as usize),
        ])
        .context("cannot map memory for the guest")?;
        guest::load(&memory).context("cannot write the guest's program")?;

        let hva = |gpa| -> Result<u64> { Ok(memory.get_host_address(GuestAddress(gpa))? as u64) };
        let window = Window {
            gpa: guest::WINDOW,
            alias_gpa: guest::ALIAS,
            hva: hva(guest::WINDOW)?,
            working: guest::WINDOW_WORKING,
            full: guest::WINDOW_FULL,
        };
        let fixed = |slot, guest_phys_addr, memory_size| -> Result<Region> {
            Ok(Region {
                slot,
                flags: Flags::empty(),
                guest_phys_addr,
                memory_size,
                userspace_addr: hva(guest_phys_addr)?,
            })
        };
        let report = fixed(REPORT_SLOT, guest::REPORT, guest::REPORT_SIZE)?;
        let aside = fixed(ASIDE_SLOT, guest::ASIDE, guest::ASIDE_SIZE)?;

        let mut machine = Machine {
            threads: Threads::new(),
            faults: Vec::new(),
            memory,
            window,
            tsc_khz: 0,
            vm,
        };
        let mut slots = RegionList::new();
        slots
            .create(window.initial())?
            .create(report)?
            .create(aside)?;
        machine.set_one_by_one(&slots)?;
        let mut fds = ids(vcpus)
            .map(|id| {
                new_vcpu(kvm, &machine.vm, id, &guest::entry(id, variant))
                    .with_context(|| format!("cannot make vCPU {id}"))
            })
            .collect::<Result<Vec<_>>>()?;
        if populated {
            let mappings = slots
                .entries()
                .iter()
                .map(|slot| Mapping::new(slot.guest_phys_addr, slot.memory_size, Access::WRITE))
                .collect::<Result<Vec<_>, _>>()?;
            populate(&mut fds, &mappings)?;
        }
        for (id, fd) in ids(vcpus).zip(fds) {
            machine
                .start_vcpu(fd, id, variant)
                .with_context(|| format!("cannot start vCPU {id}"))?;
        }
        Ok(machine)
    }

    fn start_vcpu(&mut self, fd: VcpuFd, id: u64, variant: Variant) -> Result<()> {
        let faults = fd.counter(PAGE_FAULTS).context("KVM_GET_STATS_FD failed")?;
        self.faults
            .push(faults.with_context(|| format!("KVM does not count '{PAGE_FAULTS}'"))?);
        self.tsc_khz = fd.get_tsc_khz().context("KVM_GET_TSC_KHZ failed")?;
        let memory = self.memory.clone();
        self.threads.start(id, fd, move |fd, permit| {
            let mut device = Device::default();
            match run_until_end(fd, &mut device, &permit) {
                Some(End::Halted) => {
                    // Whoever waits for the guest's end does not wait for the replay.
                    drop(permit);
                    return compare(id, variant, fd, &device, &memory);
                }
                Some(End::Died(how)) => permit.fail(format!("{}: {how}", guest::name(id))),
                None => {}
            }
            Ok(None)
        })
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    pub fn window(&self) -> Window {
        self.window
    }

    /// How the guest died, if it did.
    pub fn death(&self) -> Option<String> {
        self.threads.failure()
    }

    /// The ids of the vCPUs.
    fn ids(&self) -> impl Iterator<Item = u64> {
        ids(self.faults.len().saturating_sub(1) as u64)
    }

    /// The rip of a vCPU, by its position in [`ids`]. Stops all vCPUs for good.
    pub fn locate(&mut self, vcpu: usize) -> Result<u64> {
        let fd = self.threads.take(vcpu)?;
        Ok(fd.get_regs().context("KVM_GET_REGS failed")?.rip)
    }

    /// The longest time between two steps of a vCPU since the last call, as the
    /// vCPU measured it.
    pub fn take_longest_gap(&self) -> Result<Sides<Duration>> {
        let mut longest = Sides::<Duration>::default();
        for vcpu in self.ids() {
            let gap = guest::longest_gap(vcpu);
            let cycles: u64 = self.memory.load(gap, Ordering::Relaxed)?;
            self.memory.store(0u64, gap, Ordering::Relaxed)?;
            let nanoseconds = u128::from(cycles) * 1_000_000 / u128::from(self.tsc_khz.max(1));
            let side = longest.side(vcpu);
            *side = Duration::from_nanos(nanoseconds as u64).max(*side);
        }
        Ok(longest)
    }

    /// Page faults of the guest that KVM has resolved by a mapping.
    pub fn faults(&self) -> Result<Sides<u64>> {
        let mut sum = Sides::<u64>::default();
        for (vcpu, faults) in self.ids().zip(&self.faults) {
            *sum.side(vcpu) += faults.read()?;
        }
        Ok(sum)
    }

    /// Applies the list with one `KVM_SET_USER_MEMORY_REGION` per entry.
    pub fn set_one_by_one(&self, list: &RegionList) -> Result<()> {
        for (index, region) in list.single_updates().enumerate() {
            // SAFETY: lists name memory of `self.memory` only, which stays mapped
            // while a vCPU runs, and nothing holds references into it.
            unsafe { self.vm.set_user_memory_region(region) }
                .with_context(|| format!("KVM_SET_USER_MEMORY_REGION of entry {index} failed"))?;
        }
        Ok(())
    }

    /// Does the same while all vCPUs are paused.
    pub fn set_one_by_one_paused(&self, list: &RegionList) -> Result<()> {
        self.threads.pause();
        let result = self.set_one_by_one(list);
        self.threads.resume();
        result
    }

    /// Applies the list with one `KVM_SET_USER_MEMORY_REGION_LIST`.
    pub fn set_list(&self, list: &RegionList) -> Result<()> {
        // SAFETY: as in `set_one_by_one`.
        unsafe { self.vm.set_user_memory_regions(list) }
            .context("KVM_SET_USER_MEMORY_REGION_LIST failed")
    }

    /// Lets the guest reach the end of its program, and compares what it has
    /// computed with a replay. Returns what is wrong, if anything.
    pub fn finish(self) -> Result<Option<String>> {
        for vcpu in self.ids() {
            self.memory
                .store(1u64, guest::stop(vcpu), Ordering::Relaxed)?;
        }
        if !self.threads.wait_for_end(HALT_TIMEOUT) {
            return Ok(Some(
                "the guest does not reach the end of its program".to_owned(),
            ));
        }
        let death = self.threads.failure();
        let mut wrong = None;
        for found in self.threads.join()? {
            wrong = wrong.or(found?);
        }
        Ok(death.or(wrong))
    }
}

fn compare(
    id: u64,
    variant: Variant,
    fd: &VcpuFd,
    device: &Device,
    memory: &GuestMemoryMmap,
) -> Result<Option<String>> {
    let steps: u64 = memory.load(guest::steps(id), Ordering::Relaxed)?;
    let mut replay = Replay::new(id, variant);
    for _ in 0..steps {
        replay.step();
    }
    let r12 = fd.get_regs().context("KVM_GET_REGS failed")?.r12;
    Ok(replay.compare(id, r12, device, memory)?)
}
