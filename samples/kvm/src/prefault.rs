// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Guest memory that is populated before the guest runs, by all of its vCPUs at
//! once, and what that spares a guest.

use std::{
    arch::global_asm,
    fmt::Write,
    slice,
    sync::{Barrier, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail, ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{
    Access, Flags, Mapping, Region, RegionList, Slot, Stats, VcpuFdMemoryExt, VmFdMemoryExt,
    PAGE_SIZE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{guest::Entry, machine::new_vcpu};

/// What a vCPU takes at a time at most: enough for many huge pages, little enough for
/// all vCPUs to end at about the same time.
const PART: u64 = 8 << 20;

/// Lines of progress are at least so far apart.
const BETWEEN_LINES: Duration = Duration::from_millis(500);

/// Memory that has been populated, and the time it took.
pub struct Populated {
    pub pages: u64,
    pub time: Duration,
}

/// Populates all of `mappings`, each vCPU from a thread of its own, and shows
/// how far it is.
pub fn populate(vcpus: &mut [VcpuFd], mappings: &[Mapping]) -> Result<Populated> {
    let pages: u64 = mappings.iter().map(Mapping::pages).sum();
    let share = pages.div_ceil(vcpus.len().max(1) as u64) * PAGE_SIZE;
    let parts = Mutex::new(parts(mappings, share.min(PART)));
    let progress = Progress::new(pages);
    let start = Instant::now();
    thread::scope(|scope| {
        let (parts, progress) = (&parts, &progress);
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| {
                scope.spawn(move || {
                    let result = take_parts(vcpu, parts, progress);
                    if result.is_err() {
                        lock(parts).clear();
                    }
                    result
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a thread that populates memory panicked"))?
        })
    })?;
    let time = start.elapsed();
    progress.end();
    Ok(Populated { pages, time })
}

fn parts(mappings: &[Mapping], size: u64) -> Vec<Mapping> {
    let mut parts = Vec::new();
    for &mapping in mappings {
        let mut rest = mapping;
        while let Some((part, behind)) = rest.split_at(size) {
            parts.push(part);
            rest = behind;
        }
        parts.push(rest);
    }
    // They are taken from the end.
    parts.reverse();
    parts
}

fn take_parts(vcpu: &mut VcpuFd, parts: &Mutex<Vec<Mapping>>, progress: &Progress) -> Result<()> {
    loop {
        let Some(mut part) = lock(parts).pop() else {
            return Ok(());
        };
        let mut done = 0;
        let error = vcpu
            .map_memory_steps(&mut part)
            .find_map(|step| match step {
                Ok(step) => {
                    progress.add(step.done - done);
                    done = step.done;
                    None
                }
                Err(error) => Some(error),
            });
        if let Some(error) = error {
            let gpa = part.guest_phys_addr();
            return Err(error).with_context(|| format!("cannot populate the page at {gpa:#x}"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves what it locks half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bar on the terminal; lines where stderr is something else.
struct Progress {
    bar: ProgressBar,
    start: Instant,
    /// When the last line was written.
    line: Mutex<Instant>,
}

impl Progress {
    fn new(pages: u64) -> Self {
        let bar = ProgressBar::new(pages);
        let template = "populating [{wide_bar}] {pos} of {len} pages, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let start = Instant::now();
        Progress {
            bar,
            start,
            line: Mutex::new(start),
        }
    }

    fn add(&self, pages: u64) {
        self.bar.inc(pages);
        if self.bar.is_hidden() {
            let mut line = lock(&self.line);
            if line.elapsed() >= BETWEEN_LINES {
                *line = Instant::now();
                self.print();
            }
        }
    }

    fn print(&self) {
        eprintln!(
            "populating: {} of {} pages, {:.1} s",
            self.bar.position(),
            self.bar.length().unwrap_or(0),
            self.start.elapsed().as_secs_f64(),
        );
    }

    fn end(&self) {
        self.bar.finish_and_clear();
        if self.bar.is_hidden() {
            self.print();
        }
    }
}

// The guest: each vCPU increments a word of every page of its part of the
// memory, and mixes what it found into a sum. It does so in one access: a write
// that comes after a read takes the zero page away again, and vCPUs that do that
// to each other's faults make a guest without populated memory look far worse.

/// Page tables and program.
const LOW: u64 = 0;
const LOW_SIZE: u64 = TABLES + (1 + MAX_SIZE / GIB) * PAGE_SIZE;
const PROGRAM: u64 = LOW;
const PML4: u64 = PAGE_SIZE;
const PDPT: u64 = 2 * PAGE_SIZE;
/// Page directories: of the first GiB, then of those of [`MEMORY`].
const TABLES: u64 = 3 * PAGE_SIZE;
/// The memory to touch.
const MEMORY: u64 = 4 * GIB;
const GIB: u64 = 1 << 30;
/// Its largest size: as many page directories as one PDPT takes behind [`MEMORY`].
pub const MAX_SIZE: u64 = 64 * GIB;

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

fn load(memory: &GuestMemoryMmap, size: u64) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let entry = |table, index, value| {
        memory.write_obj(value | PRESENT_WRITABLE, GuestAddress(table + index * 8))
    };

    memory.write_slice(program(), GuestAddress(PROGRAM))?;
    entry(PML4, 0, PDPT)?;
    let behind = MEMORY / GIB..(MEMORY + size).div_ceil(GIB);
    for (gib, table) in [0].into_iter().chain(behind).zip((TABLES..).step_by(4096)) {
        entry(PDPT, gib, table)?;
        for index in 0..512 {
            entry(table, index, (gib * GIB + (index << 21)) | LARGE)?;
        }
    }
    Ok(())
}

/// What stands at the start of page `n` if the memory has contents.
fn contents(n: u64) -> u64 {
    (n + 1).wrapping_mul(MULTIPLIER)
}

/// The pages that vCPU `id` touches.
fn share(id: u64, vcpus: u64, pages: u64) -> std::ops::Range<u64> {
    id * pages / vcpus..(id + 1) * pages / vcpus
}

/// The sum that a vCPU comes to.
fn expected(pages: std::ops::Range<u64>, filled: bool) -> u64 {
    pages.fold(1, |sum: u64, page| {
        let word = if filled { contents(page) } else { 0 };
        sum.wrapping_mul(MULTIPLIER).wrapping_add(word)
    })
}

/// What a guest was spared, or not.
struct Outcome {
    /// `None` of the guest whose memory was not populated.
    populated: Option<Populated>,
    touching: Duration,
    /// Page faults that KVM saw to while the guest touched its memory.
    faults: u64,
    /// Exits in that time.
    exits: u64,
    /// A vCPU that read something else than it should have.
    wrong: Option<u64>,
}

/// Runs a guest that touches `size` bytes of memory as it is, and another one
/// after populating it, with contents if `source`. Fails if that one took a page
/// fault or found other contents.
pub fn compare(kvm: &Kvm, vcpus: u64, size: u64, source: bool) -> Result<()> {
    let pages = size / PAGE_SIZE;
    ensure!(
        size % PAGE_SIZE == 0 && (vcpus..=MAX_SIZE / PAGE_SIZE).contains(&pages),
        "--size must be a multiple of {PAGE_SIZE}, a page for each vCPU at least and 64G at most"
    );
    let image = source.then(|| image(pages)).transpose()?;
    let outcomes = [false, true]
        .map(|populated| run(kvm, vcpus, size, populated, image.as_ref()))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    print!("{}", table(&outcomes));
    for outcome in outcomes {
        ensure!(outcome.wrong.is_none(), "a guest read the wrong contents");
        ensure!(
            outcome.populated.is_none() || outcome.faults == 0,
            "the guest took page faults on memory that was populated"
        );
    }
    Ok(())
}

/// The contents of guest memory, in memory of its own.
fn image(pages: u64) -> Result<GuestMemoryMmap> {
    let image = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (pages * PAGE_SIZE) as usize)])
        .context("no memory for the source")?;
    for page in 0..pages {
        image.write_obj(contents(page), GuestAddress(page * PAGE_SIZE))?;
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
    load(&memory, size).context("cannot write the guest's program")?;
    create_slots(&vm, &memory, size)?;

    let pages = size / PAGE_SIZE;
    let mut fds = (0..vcpus)
        .map(|id| {
            let share = share(id, vcpus, pages);
            let entry = Entry {
                page_table: PML4,
                rip: PROGRAM,
                rsp: 0,
                r10: MEMORY + share.start * PAGE_SIZE,
                r11: MEMORY + share.end * PAGE_SIZE,
                r12: 1,
                r14: 0,
                r15: MULTIPLIER,
            };
            new_vcpu(kvm, &vm, id, &entry)
        })
        .collect::<Result<Vec<_>>>()?;

    let populated = if populated {
        let low = Mapping::new(LOW, LOW_SIZE, Access::WRITE)?;
        let mut high = Mapping::new(MEMORY, size, Access::WRITE)?;
        if let Some(image) = image {
            let source = image.get_host_address(GuestAddress(0))? as u64;
            // SAFETY: the image is mapped until this returns, and nobody holds
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
        if sum != expected(share(id, vcpus, pages), image.is_some()) {
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
    // SAFETY: the memory is mapped for longer than the vCPUs run, and nobody
    // holds references into it.
    unsafe { vm.set_user_memory_regions(&slots) }.context("KVM_SET_USER_MEMORY_REGION_LIST failed")
}

/// What a VMM does that cannot populate.
fn copy(image: &GuestMemoryMmap, memory: &GuestMemoryMmap, size: u64) -> Result<()> {
    let mut page = [0; PAGE_SIZE as usize];
    for offset in (0..size).step_by(page.len()) {
        image.read_slice(&mut page, GuestAddress(offset))?;
        memory.write_slice(&page, GuestAddress(MEMORY + offset))?;
    }
    Ok(())
}

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

/// Lets all vCPUs run until they halt. Returns the time from when the first
/// begins until the last has, by their own clocks: this thread may be late.
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

fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "                ------ populating ------   ---------- the guest touches all ----------\n\
         guest memory     seconds         pages/s   seconds   page faults     exits   contents\n",
    );
    for outcome in outcomes {
        let (name, time, rate) = match &outcome.populated {
            None => ("not populated", "-".to_owned(), "-".to_owned()),
            Some(populated) => {
                let seconds = populated.time.as_secs_f64();
                let rate = populated.pages as f64 / seconds;
                ("populated", format!("{seconds:.3}"), format!("{rate:.0}"))
            }
        };
        let contents = match outcome.wrong {
            None => "right".to_owned(),
            Some(vcpu) => format!("WRONG on vCPU {vcpu}"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{name:<15} {time:>8} {rate:>15} {:>9.3} {:>13} {:>9}   {contents}",
            outcome.touching.as_secs_f64(),
            outcome.faults,
            outcome.exits,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_complete() {
        let mapping = |gpa, size| Mapping::new(gpa, size, Access::WRITE).expect("valid");
        let mappings = [mapping(0, 0x3000), mapping(GIB, 2 * PART + 0x1000)];
        let mut parts = parts(&mappings, PART);
        let mut next = || {
            let part = parts.pop()?;
            Some((part.guest_phys_addr(), part.memory_size()))
        };
        assert_eq!(next(), Some((0, 0x3000)));
        assert_eq!(next(), Some((GIB, PART)));
        assert_eq!(next(), Some((GIB + PART, PART)));
        assert_eq!(next(), Some((GIB + 2 * PART, 0x1000)));
        assert_eq!(next(), None);
    }

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

    #[test]
    fn table_says_what_was_spared() {
        let outcome = |populated, faults| Outcome {
            populated,
            touching: Duration::from_millis(1500),
            faults,
            exits: faults + 2,
            wrong: (faults == 0).then_some(1),
        };
        let time = Duration::from_millis(500);
        let populated = Some(Populated { pages: 300, time });
        let table = table(&[outcome(None, 300), outcome(populated, 0)]);
        let words = |line| -> Vec<&str> {
            let line: &str = table.lines().nth(line).expect("a line");
            line.split_whitespace().collect()
        };
        assert_eq!(
            words(2),
            ["not", "populated", "-", "-", "1.500", "300", "302", "right"]
        );
        assert_eq!(
            words(3)[..6],
            ["populated", "0.500", "600", "1.500", "0", "2"]
        );
        assert!(table.contains("WRONG on vCPU 1"));
    }
}
