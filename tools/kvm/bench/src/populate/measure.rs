// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! One measurement: populate the memory of a guest, then let it write there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};
use kvm_bindings::{kvm_pre_fault_memory, KVMIO};
use kvm_ioctls::{Kvm, VcpuFd};
use kvm_memory_uapi::{Access, Flags, Mapping, Region, VcpuFdMemoryExt};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::populate::case::{Kind, Method, Shape, MIB};
use crate::populate::guest::{on_each, touch, Guest, HIGH};
use crate::populate::memory::Memory;

/// Bytes to which a guest writes afterwards, as one that takes page faults is
/// slow. After `KVM_MAP_MEMORY` the guest writes to all of its memory.
pub const CHECKED: u64 = 64 * MIB;

/// Pause between two memslot updates.
const PAUSE: Duration = Duration::from_millis(2);

// kvm-bindings has the struct, but no numbers of ioctls.
ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// The result of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Time to populate all of the memory, the copy of contents included.
    pub time: Duration,
    /// Page faults that the guest then takes when it writes to every page of
    /// [`CHECKED`] bytes.
    pub faults: u64,
    /// Memslot updates during that time.
    pub updates: u32,
    /// Time of the longest update.
    pub longest: Duration,
}

/// Populates the memory of a new guest, and lets the guest write to it.
pub fn measure(kvm: &Kvm, kind: Kind, shape: Shape, method: Method) -> Result<Sample> {
    let mut guest = Guest::new(kvm, shape)?;
    let source = match kind {
        Kind::Source => Some(Memory::new(shape.size, shape.huge)?),
        _ => None,
    };
    if let Some(source) = &source {
        source.write();
    }
    if matches!(kind, Kind::Present | Kind::Updates) {
        guest.high.write();
    }

    let (time, updates, longest) = if kind == Kind::Updates {
        populate_under_updates(&mut guest, method)?
    } else {
        let (vcpus, memory) = (&mut guest.vcpus, &guest.high);
        let time = populate(vcpus, memory, method, source.as_ref())?;
        (time, 0, Duration::ZERO)
    };
    let before = guest.faults()?;
    let checked = match method {
        Method::Map => shape.size,
        Method::Guest | Method::PreFault => shape.size.min(CHECKED),
    };
    guest.write_in_turn(checked)?;
    let faults = guest.faults()? - before;
    ensure!(
        method != Method::Map || faults == 0,
        "the guest took {faults} page faults on memory that KVM_MAP_MEMORY has populated"
    );
    Ok(Sample {
        time,
        faults,
        updates,
        longest,
    })
}

/// Populates the memory while another thread updates a memslot that is not
/// populated. Also returns the number of updates, and the longest time of one.
fn populate_under_updates(guest: &mut Guest, method: Method) -> Result<(Duration, u32, Duration)> {
    let other = guest.other();
    let vm = &guest.vm;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let updater = scope.spawn(|| -> Result<_> {
            let (mut updates, mut longest) = (0, Duration::ZERO);
            let mut flags = Flags::empty();
            while !done.load(Ordering::Relaxed) {
                flags.toggle(Flags::LOG_DIRTY_PAGES);
                let update = Region { flags, ..other }.into();
                let start = Instant::now();
                // SAFETY: the memory stays mapped, as when the guest was
                // created.
                unsafe { vm.set_user_memory_region(update) }
                    .context("KVM_SET_USER_MEMORY_REGION")?;
                longest = longest.max(start.elapsed());
                updates += 1;
                thread::sleep(PAUSE);
            }
            Ok((updates, longest))
        });
        let time = populate(&mut guest.vcpus, &guest.high, method, None);
        done.store(true, Ordering::Relaxed);
        let updates = updater
            .join()
            .map_err(|_| anyhow!("the thread that updates memslots panicked"))?;
        let (updates, longest) = updates?;
        Ok((time?, updates, longest))
    })
}

/// Populates all of `memory`, which the guest has at [`HIGH`], with the contents of
/// `source` if there is one.
fn populate(
    vcpus: &mut [VcpuFd],
    memory: &Memory,
    method: Method,
    source: Option<&Memory>,
) -> Result<Duration> {
    on_each(vcpus, memory.size(), |vcpu, offset, size| match method {
        Method::Guest => touch(vcpu, HIGH + offset, size),
        Method::PreFault => {
            if let Some(source) = source {
                memory.copy_from(source, offset, size);
            }
            pre_fault(vcpu, HIGH + offset, size)
        }
        Method::Map => {
            let mut mapping = Mapping::new(HIGH + offset, size, Access::WRITE)?;
            if let Some(source) = source {
                // SAFETY: the source stays mapped, and nothing changes it.
                mapping = unsafe { mapping.with_source(source.addr() + offset) }?;
            }
            vcpu.populate(&mut mapping).context("KVM_MAP_MEMORY")
        }
    })
}

/// Populates `size` bytes from `gpa` on by `KVM_PRE_FAULT_MEMORY`.
pub fn pre_fault(vcpu: &mut VcpuFd, gpa: u64, size: u64) -> Result<()> {
    let mut range = kvm_pre_fault_memory {
        gpa,
        size,
        ..Default::default()
    };
    while range.size > 0 {
        // SAFETY: the kernel reads and writes one struct of this type.
        if unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut range) } != 0 {
            let e = errno::Error::last();
            if !matches!(e.errno(), libc::EAGAIN | libc::EINTR) {
                return Err(e).context("KVM_PRE_FAULT_MEMORY");
            }
        }
    }
    Ok(())
}
