// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! One measurement: guest memory is populated, in one of several ways.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_bindings::{kvm_regs, KVMIO};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{Access, Flags, Mapping, Region, Slot, Stats, VcpuFdMemoryExt, PAGE_SIZE};

const MIB: u64 = 1 << 20;
const HUGE: u64 = 2 * MIB;

/// The size that everything is measured with; others are for some of it only.
/// A source needs the same again, so what the machine must have free is what
/// the largest guest has, 2 GiB, and [`SPARE`].
const SMALL: u64 = 256 * MIB;
const SPARE: u64 = 256 * MIB;

/// How much of the memory a guest writes to afterwards. One that takes faults
/// then takes long; what `KVM_MAP_MEMORY` has populated is checked to the end.
pub const CHECKED: u64 = 64 * MIB;

/// Between two memslot updates that are made while memory is populated.
const PAUSE: Duration = Duration::from_millis(2);

/// What populates the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The guest: it writes to every page.
    Guest,
    PreFault,
    /// With `WRITE`.
    Map,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::Guest, Method::PreFault, Method::Map];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Guest => "guest writes",
            Method::PreFault => "KVM_PRE_FAULT_MEMORY",
            Method::Map => "KVM_MAP_MEMORY",
        })
    }
}

/// What the memory is before, and what happens meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nobody has touched the memory yet.
    Fresh,
    /// The VMM has written to all of it.
    Present,
    /// Nobody has touched it yet, and it is to have the contents of a buffer:
    /// by `source`, or else by a copy of the VMM's beforehand.
    Source,
    /// As [`Kind::Present`], while another thread updates another memslot.
    Updates,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Fresh, Kind::Present, Kind::Source, Kind::Updates];

    pub fn methods(self) -> &'static [Method] {
        match self {
            Kind::Fresh | Kind::Present => &Method::ALL,
            Kind::Source | Kind::Updates => &[Method::PreFault, Method::Map],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Fresh => "fresh memory",
            Kind::Present => "memory that is present",
            Kind::Source => "memory with contents from a buffer",
            Kind::Updates => "memory that is present, under memslot updates",
        })
    }
}

/// What is populated, by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Whether the memory consists of pages of 2 MiB.
    pub huge: bool,
    /// Each has a thread and its part of the memory.
    pub vcpus: u8,
    /// Bytes.
    pub size: u64,
}

impl Shape {
    pub fn mib(self) -> u64 {
        self.size / MIB
    }

    pub fn page_size(self) -> &'static str {
        if self.huge {
            "2 MiB"
        } else {
            "4 KiB"
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mib, pages, vcpus) = (self.mib(), self.page_size(), self.vcpus);
        write!(f, "{mib} MiB in pages of {pages}, {vcpus} vCPUs")
    }
}

/// All that is measured. Every size with one vCPU, every number of vCPUs with
/// one size.
pub fn cases(quick: bool) -> Vec<(Kind, Shape)> {
    let shape = |huge, vcpus, mib| Shape {
        huge,
        vcpus,
        size: mib * MIB,
    };
    let shapes: Vec<_> = if quick {
        let shapes = [(false, 1), (false, 2), (true, 1)];
        shapes.map(|(huge, vcpus)| shape(huge, vcpus, 64)).into()
    } else {
        [false, true]
            .into_iter()
            .flat_map(|huge| {
                [(1, 64), (1, 256), (1, 2048), (2, 256), (4, 256)]
                    .map(|(vcpus, mib)| shape(huge, vcpus, mib))
            })
            .collect()
    };
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        for &shape in &shapes {
            let small = shape.size == SMALL || quick;
            if matches!(kind, Kind::Fresh | Kind::Present) || small {
                cases.push((kind, shape));
            }
        }
    }
    cases
}

/// Makes sure that there is memory for all of `cases`, and touches what there
/// is: where this machine is virtual itself, it may only then get it, and that
/// would be measured with the first that uses it.
pub fn warm_up(cases: &[(Kind, Shape)]) -> Result<()> {
    let most = cases.iter().map(|&(kind, shape)| match kind {
        Kind::Source => 2 * shape.size,
        _ => shape.size,
    });
    let needed = most.max().unwrap_or(0) + SPARE;
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

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Until all was populated, a copy of contents included.
    pub time: Duration,
    /// Page faults of a guest that writes to every page of [`CHECKED`] bytes
    /// afterwards.
    pub faults: u64,
    /// Memslot updates that got through meanwhile.
    pub updates: u32,
    /// How long the longest of them took.
    pub longest: Duration,
}

/// Anonymous memory at an address that huge pages can start at.
struct Memory {
    map: *mut libc::c_void,
    len: usize,
    addr: u64,
    size: u64,
}

impl Memory {
    fn new(size: u64, huge: bool) -> Result<Self> {
        let len = (size + HUGE) as usize;
        // SAFETY: a new mapping, where the kernel likes it.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        let memory = Memory {
            map,
            len,
            addr: (map as u64).next_multiple_of(HUGE),
            size,
        };
        let advice = if huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        // SAFETY: all of the mapping is this process's own.
        if unsafe { libc::madvise(map, len, advice) } != 0 {
            return Err(io::Error::last_os_error()).context("madvise");
        }
        Ok(memory)
    }

    /// Writes to every page.
    fn write(&self) {
        for offset in (0..self.size).step_by(PAGE_SIZE as usize) {
            // SAFETY: inside the mapping, which nobody else uses yet.
            unsafe { ((self.addr + offset) as *mut u64).write(offset + 1) };
        }
    }

    fn copy_from(&self, from: &Memory, offset: u64, size: u64) {
        assert!(offset + size <= self.size && offset + size <= from.size);
        // SAFETY: inside two different mappings; the thread that copies is the
        // only one that uses this part of them.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (from.addr + offset) as *const u8,
                (self.addr + offset) as *mut u8,
                size as usize,
            );
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody uses the mapping any more: `Guest` drops its VM first.
        unsafe { libc::munmap(self.map, self.len) };
    }
}

// SAFETY: what the threads do with the memory, each in its part, does not
// depend on which thread has mapped it.
unsafe impl Sync for Memory {}

/// Where the guest has its program, and memory that it can write to in vain.
const LOW: u64 = 0;
const SCRATCH: u64 = 0x800;
/// Where it has the memory that is populated.
const HIGH: u64 = 256 * MIB;
/// Where the slot is that is updated.
const OTHER: u64 = 16 * MIB;
const OTHER_SLOT: u16 = 2;

/// 32-bit code: `1: movl %esi, (%esi); addl $4096, %esi; cmpl %edi, %esi; jb 1b; hlt`.
const PROGRAM: [u8; 13] = [
    0x89, 0x36, 0x81, 0xc6, 0, 0x10, 0, 0, 0x39, 0xfe, 0x72, 0xf4, 0xf4,
];

/// A VM with its memory, and vCPUs that have run already.
struct Guest {
    vcpus: Vec<VcpuFd>,
    vm: VmFd,
    high: Memory,
    low: Memory,
}

fn region(slot: u16, gpa: u64, size: u64, memory: &Memory) -> Region {
    Region {
        slot: Slot::new(slot),
        flags: Flags::empty(),
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: memory.addr,
    }
}

impl Guest {
    fn new(kvm: &Kvm, shape: Shape) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let high = Memory::new(shape.size, shape.huge)?;
        let low = Memory::new(PAGE_SIZE, false)?;
        for (offset, byte) in PROGRAM.into_iter().enumerate() {
            // SAFETY: inside the page, which nobody else uses yet.
            unsafe { (low.addr as *mut u8).add(offset).write(byte) };
        }
        for region in [
            region(0, LOW, PAGE_SIZE, &low),
            region(1, HIGH, shape.size, &high),
            region(OTHER_SLOT, OTHER, PAGE_SIZE, &low),
        ] {
            // SAFETY: the memory stays mapped for as long as the VM is there,
            // and nobody relies on its contents.
            unsafe { vm.set_user_memory_region(region.into()) }
                .context("KVM_SET_USER_MEMORY_REGION")?;
        }
        let mut vcpus = Vec::new();
        for id in 0..shape.vcpus {
            let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
            let mut sregs = vcpu.get_sregs()?;
            // Protected mode with flat segments, without paging.
            sregs.cr0 = (1 << 4) | 1; // ET, PE
            for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.ss] {
                segment.base = 0;
                segment.limit = u32::MAX;
                segment.g = 1;
                segment.db = 1;
            }
            sregs.cs.selector = 8;
            vcpu.set_sregs(&sregs)?;
            vcpus.push(vcpu);
        }
        let mut guest = Guest {
            vcpus,
            vm,
            high,
            low,
        };
        // The page faults on the program itself are not to be counted.
        on_each(&mut guest.vcpus, 0, |vcpu, _, _| touch(vcpu, SCRATCH, 0))?;
        Ok(guest)
    }

    /// The guest writes to every page of the first `size` bytes, its vCPUs one
    /// after the other: two that take zero pages away at the same time make each
    /// other fault again and again.
    fn write_in_turn(&mut self, size: u64) -> Result<()> {
        let part = self.high.size / self.vcpus.len() as u64;
        for (vcpu, start) in self.vcpus.iter_mut().zip((0..size).step_by(part as usize)) {
            touch(vcpu, HIGH + start, part.min(size - start))?;
        }
        Ok(())
    }

    fn faults(&self) -> Result<u64> {
        let mut faults = 0;
        for vcpu in &self.vcpus {
            let stat = vcpu.stat("pf_taken").context("KVM_GET_STATS_FD")?;
            faults += stat.context("KVM does not count 'pf_taken'")?;
        }
        Ok(faults)
    }

    /// Populates the memory while another thread updates a memslot that is not
    /// populated: also how many updates it made, and the longest time one took.
    fn populate_under_updates(&mut self, method: Method) -> Result<(Duration, u32, Duration)> {
        let other = region(OTHER_SLOT, OTHER, PAGE_SIZE, &self.low);
        let vm = &self.vm;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let updater = scope.spawn(|| -> Result<_> {
                let (mut updates, mut longest) = (0, Duration::ZERO);
                let mut flags = Flags::empty();
                while !done.load(Ordering::Relaxed) {
                    flags.toggle(Flags::LOG_DIRTY_PAGES);
                    let update = Region { flags, ..other }.into();
                    let start = Instant::now();
                    // SAFETY: as when the slot was created.
                    unsafe { vm.set_user_memory_region(update) }
                        .context("KVM_SET_USER_MEMORY_REGION")?;
                    longest = longest.max(start.elapsed());
                    updates += 1;
                    thread::sleep(PAUSE);
                }
                Ok((updates, longest))
            });
            let time = populate(&mut self.vcpus, &self.high, method, None);
            done.store(true, Ordering::Relaxed);
            let updates = updater
                .join()
                .map_err(|_| anyhow!("the thread that updates memslots panicked"))?;
            let (updates, longest) = updates?;
            Ok((time?, updates, longest))
        })
    }
}

/// Has all vCPUs, in threads of their own, do something to their part of
/// memory: its offset and size. Returns the time from when the first begins
/// until the last is done, by their own clocks: this thread may be late.
fn on_each(
    vcpus: &mut [VcpuFd],
    size: u64,
    work: impl Fn(&mut VcpuFd, u64, u64) -> Result<()> + Sync,
) -> Result<Duration> {
    let part = size / vcpus.len() as u64;
    let barrier = Barrier::new(vcpus.len());
    let (work, barrier) = (&work, &barrier);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(vcpus)
            .map(|(i, vcpu)| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(vcpu, i * part, part)?;
                    Ok::<_, anyhow::Error>((start, Instant::now()))
                })
            })
            .collect();
        let mut times = Vec::new();
        for thread in threads {
            times.push(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        let start = times.iter().map(|&(start, _)| start).min();
        let end = times.iter().map(|&(_, end)| end).max();
        let (start, end) = start.zip(end).context("no vCPUs")?;
        Ok(end - start)
    })
}

fn populate(
    vcpus: &mut [VcpuFd],
    memory: &Memory,
    method: Method,
    source: Option<&Memory>,
) -> Result<Duration> {
    on_each(vcpus, memory.size, |vcpu, offset, size| match method {
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
                // SAFETY: the source stays mapped, and nobody changes it.
                mapping = unsafe { mapping.with_source(source.addr + offset) }?;
            }
            vcpu.map_memory(&mut mapping).context("KVM_MAP_MEMORY")
        }
    })
}

/// The guest writes to every page of `size` bytes from `gpa` on, one at least.
fn touch(vcpu: &mut VcpuFd, gpa: u64, size: u64) -> Result<()> {
    vcpu.set_regs(&kvm_regs {
        rip: LOW,
        rsi: gpa,
        rdi: gpa + size,
        rflags: 2,
        ..Default::default()
    })?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(exit) => bail!("the guest stopped with {exit:?}"),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e).context("KVM_RUN"),
        }
    }
    let end = vcpu.get_regs()?.rsi;
    ensure!(
        end == gpa + size.max(PAGE_SIZE),
        "the guest halted at {end:#x}"
    );
    Ok(())
}

/// `struct kvm_pre_fault_memory`.
#[repr(C)]
struct PreFaultMemory {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`
const KVM_PRE_FAULT_MEMORY: libc::c_ulong = 0xc040_00d5 | ((KVMIO as libc::c_ulong) << 8);

fn pre_fault(vcpu: &mut VcpuFd, gpa: u64, size: u64) -> Result<()> {
    let mut range = PreFaultMemory {
        gpa,
        size,
        flags: 0,
        padding: [0; 5],
    };
    while range.size > 0 {
        // SAFETY: the kernel reads and writes one struct of this type.
        let ret = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_PRE_FAULT_MEMORY, &mut range) };
        if ret != 0 {
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => {}
                _ => return Err(e).context("KVM_PRE_FAULT_MEMORY"),
            }
        }
    }
    Ok(())
}

/// Populates the memory of a new guest, and has the guest write to it.
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
        guest.populate_under_updates(method)?
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
