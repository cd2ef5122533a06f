// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A PC with one vCPU, which is enough of a machine for Linux: KVM's interrupt
//! controllers and timer, a serial port, and the reset line of the keyboard
//! controller.

use std::{
    fs::File,
    os::fd::FromRawFd,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure, Context, Result};
use kvm_bindings::{
    kvm_pit_config, kvm_userspace_memory_region, CpuId, KVM_MAX_CPUID_ENTRIES,
    KVM_PIT_SPEAKER_DUMMY,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memory_uapi::{
    offer_areas, Answer, Counter, Request, Stats, VcpuFdAreaExt, VmFdMemoryExt, MSR_OP_EXIT,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    kick::{kick, ImmediateExit},
    linux::{
        boot,
        console::{self, uart, Output, Uart},
    },
};

/// The keyboard controller's command port, and the command that resets the PC.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The data port of the PC's real-time clock.
const CMOS_DATA: u16 = 0x71;

/// Three pages that KVM needs on Intel, and one more; no guest has memory there.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// What the machine has beside the PC's devices.
pub trait Devices: Send + 'static {
    /// The guest wrote to an address without memory.
    fn mmio_write(&mut self, gpa: u64, bytes: &[u8]);

    /// The guest registers or unregisters an area.
    fn area(&mut self, request: Request) -> Answer;
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It has reset the machine, which is how it is switched off.
    Reset,
    /// A triple fault.
    TripleFault,
    Failed(String),
}

/// What to boot.
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initramfs: Vec<u8>,
    pub command_line: String,
    pub memory: u64,
    /// Whether the guest is offered memory areas.
    pub areas: bool,
}

/// A machine whose vCPU runs. Dropping it stops the vCPU.
pub struct Machine<D> {
    thread: Option<JoinHandle<(Vcpu<D>, Option<End>)>>,
    immediate_exit: ImmediateExit,
    stop: Arc<AtomicBool>,
    ended: Receiver<()>,
    output: Output,
    uart: Arc<Mutex<Uart>>,
    exits: Counter,
    mmio_exits: Counter,
    vm: Option<VmFd>,
    memory: GuestMemoryMmap,
}

/// A vCPU with the devices that its exits reach.
pub struct Vcpu<D> {
    pub fd: VcpuFd,
    /// Shared with the thread that types.
    pub uart: Arc<Mutex<Uart>>,
    devices: D,
}

/// A machine whose vCPU does not run any more.
pub struct Stopped<D> {
    pub vcpu: Vcpu<D>,
    /// `None` if it was stopped before the guest ended.
    pub end: Option<End>,
    pub vm: VmFd,
    pub memory: GuestMemoryMmap,
}

/// Guest memory from address 0 on, in a file that another process can map.
pub fn memory(file: File, size: u64) -> Result<GuestMemoryMmap> {
    let range = (
        GuestAddress(0),
        usize::try_from(size)?,
        Some(FileOffset::new(file, 0)),
    );
    GuestMemoryMmap::from_ranges_with_files([range]).context("cannot map the guest's memory")
}

/// A file without a name, of this size.
pub fn memfd(size: u64) -> Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("memfd_create failed");
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).context("no memory for the guest")?;
    Ok(file)
}

/// A VM with this memory and the devices that KVM has, and its vCPU, both in the
/// state after power-on. With `areas`, this VMM serves memory areas.
pub fn new_vm(kvm: &Kvm, memory: &GuestMemoryMmap, areas: bool) -> Result<(VmFd, VcpuFd)> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
    if areas {
        ensure!(
            vm.can_serve_areas(),
            "this kernel does not have KVM_CAP_REGISTER_MEM_AREA; \
             load KVM modules that were built with CONFIG_KVM_RUST_MEMORY=y"
        );
        vm.serve_areas(true)
            .context("KVM_USERSPACE_REGISTER_MEM_AREA failed")?;
    }
    vm.set_identity_map_address(IDENTITY_MAP)
        .context("KVM_SET_IDENTITY_MAP_ADDR failed")?;
    vm.set_tss_address(TSS).context("KVM_SET_TSS_ADDR failed")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP failed")?;
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })
    .context("KVM_CREATE_PIT2 failed")?;
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(region.start_addr())? as u64,
        };
        // SAFETY: `Machine` and `Stopped` keep the memory mapped for as long as
        // they have the VM, and nothing holds references into it.
        unsafe { vm.set_user_memory_region(region) }
            .context("KVM_SET_USER_MEMORY_REGION failed")?;
    }
    let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU failed")?;
    Ok((vm, vcpu))
}

/// What KVM can emulate, for a machine with one processor. A guest with `areas` has steal
/// time by an area only: Linux uses the MSR where it finds the bit for it.
fn cpuid(kvm: &Kvm, areas: bool) -> Result<CpuId> {
    const TSC_DEADLINE: u32 = 1 << 24;
    const APIC_ID: u32 = 0xff << 24;
    const LOGICAL_PROCESSORS: u32 = 0xff << 16;
    const KVM_FEATURES: u32 = 0x4000_0001;
    const STEAL_TIME: u32 = 1 << 5;

    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID failed")?;
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ebx &= !(APIC_ID | LOGICAL_PROCESSORS);
                leaf.ebx |= 1 << 16;
                if kvm.check_extension(Cap::TscDeadlineTimer) {
                    leaf.ecx |= TSC_DEADLINE;
                }
            }
            // x2APIC ids.
            0xb | 0x1f => leaf.edx = 0,
            0x8000_001e => leaf.eax = 0,
            KVM_FEATURES if areas => leaf.eax &= !STEAL_TIME,
            _ => {}
        }
    }
    if areas {
        ensure!(offer_areas(&mut cpuid), "KVM has no leaf for its features");
    }
    Ok(cpuid)
}

impl<D: Devices> Machine<D> {
    /// Boots Linux. What the guest writes to its console goes to `output`.
    pub fn boot(kvm: &Kvm, boot: Boot<'_>, output: Output, devices: D) -> Result<Machine<D>> {
        let memory = memory(memfd(boot.memory)?, boot.memory)?;
        let entry = boot::load(&memory, boot.kernel, &boot.initramfs, &boot.command_line)?;
        let (vm, fd) = new_vm(kvm, &memory, boot.areas)?;
        fd.set_cpuid2(&cpuid(kvm, boot.areas)?)
            .context("KVM_SET_CPUID2 failed")?;
        boot::enter(&fd, entry)?;
        let uart = uart(interrupt(&vm)?, output, None)?;
        Machine::start(memory, vm, Vcpu::new(fd, uart, devices))
    }

    /// Lets the vCPU of a VM run.
    pub fn start(memory: GuestMemoryMmap, vm: VmFd, mut vcpu: Vcpu<D>) -> Result<Machine<D>> {
        let immediate_exit = ImmediateExit::of(&vcpu.fd)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (end_to, ended) = mpsc::channel();
        let counter = |name| {
            let found = vcpu.fd.counter(name);
            found
                .context("cannot open the vCPU's statistics")?
                .with_context(|| format!("KVM has no statistic {name}"))
        };
        let (exits, mmio_exits) = (counter("exits")?, counter("mmio_exits")?);
        let output = lock(&vcpu.uart).writer().clone();
        let uart = vcpu.uart.clone();
        let order = stop.clone();
        let exit = immediate_exit.clone();
        let thread = thread::Builder::new()
            .name("vcpu0".to_owned())
            .spawn(move || {
                let end = vcpu.run(&exit, &order);
                // Nobody listens if the machine is being stopped.
                let _ = end_to.send(());
                (vcpu, end)
            })
            .context("cannot create a thread")?;
        Ok(Machine {
            thread: Some(thread),
            immediate_exit,
            stop,
            ended,
            output,
            uart,
            exits,
            mmio_exits,
            vm: Some(vm),
            memory,
        })
    }
}

impl<D> Machine<D> {
    /// Sends text to the guest's console, and waits until the guest has taken it.
    pub fn type_in(&self, text: &str) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let deadline = Instant::now() + TIMEOUT;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let mut uart = lock(&self.uart);
            if uart.fifo_capacity() > 0 {
                // None of them while the driver has the port in loopback mode, to test it.
                let taken = uart
                    .enqueue_raw_bytes(rest)
                    .map_err(|e| anyhow!("the serial port: {e}"))?;
                rest = &rest[taken..];
            }
            drop(uart);
            ensure!(
                Instant::now() < deadline,
                "the guest does not read its console"
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The guest's console.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// How often the vCPU has left the guest, and how often for MMIO.
    pub fn exits(&self) -> Result<(u64, u64)> {
        let read = |counter: &Counter| counter.read().context("cannot read the vCPU's statistics");
        Ok((read(&self.exits)?, read(&self.mmio_exits)?))
    }

    /// Whether the guest has ended; waits for that at most so long.
    pub fn ended_within(&self, time: Duration) -> bool {
        match self.ended.recv_timeout(time) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        }
    }

    /// Waits until the guest ends by itself.
    pub fn wait(mut self, timeout: Duration) -> Result<Stopped<D>> {
        ensure!(
            self.ended_within(timeout),
            "the guest did not end in {timeout:?}, but wrote:\n{}",
            self.output.text()
        );
        self.join()
    }

    /// Stops the vCPU. No exit of the guest is left unfinished.
    pub fn stop(mut self) -> Result<Stopped<D>> {
        self.order_stop();
        self.join()
    }

    fn join(&mut self) -> Result<Stopped<D>> {
        let thread = self.thread.take().context("the vCPU is stopped already")?;
        let (vcpu, end) = thread
            .join()
            .map_err(|_| anyhow!("the vCPU thread panicked"))?;
        Ok(Stopped {
            vcpu,
            end,
            vm: self.vm.take().context("the VM is gone already")?,
            memory: self.memory.clone(),
        })
    }

    fn order_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // The thread reads the order after it has cleared this byte, so either the
        // thread sees the order or KVM_RUN sees the byte.
        self.immediate_exit.set(true);
        if let Some(thread) = &self.thread {
            kick(thread);
        }
    }
}

impl<D> Drop for Machine<D> {
    fn drop(&mut self) {
        self.order_stop();
        if let Some(thread) = self.thread.take() {
            // The thread itself has reported a panic.
            let _ = thread.join();
        }
    }
}

impl<D: Devices> Vcpu<D> {
    pub fn new(fd: VcpuFd, uart: Uart, devices: D) -> Vcpu<D> {
        Vcpu {
            fd,
            uart: Arc::new(Mutex::new(uart)),
            devices,
        }
    }

    /// Runs the guest until it ends; `None` if the order to stop came first.
    fn run(&mut self, immediate_exit: &ImmediateExit, stop: &AtomicBool) -> Option<End> {
        loop {
            immediate_exit.set(false);
            // KVM finishes the last exit before it looks at this byte.
            let stopping = stop.load(Ordering::SeqCst);
            if stopping {
                immediate_exit.set(true);
            }
            match self.step() {
                Step::Continue => {}
                Step::Interrupted if stopping => return None,
                Step::Interrupted => {}
                Step::End(end) => return Some(end),
            }
        }
    }

    fn step(&mut self) -> Step {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, bytes)) if console::PORTS.contains(&port) => {
                let mut uart = lock(&self.uart);
                for &byte in bytes {
                    if let Err(e) = uart.write((port - console::PORTS.start) as u8, byte) {
                        return Step::End(End::Failed(format!("the serial port: {e}")));
                    }
                }
            }
            Ok(VcpuExit::IoIn(port, bytes)) if console::PORTS.contains(&port) => {
                let mut uart = lock(&self.uart);
                for byte in bytes {
                    *byte = uart.read((port - console::PORTS.start) as u8);
                }
            }
            Ok(VcpuExit::IoOut(KEYBOARD_COMMAND, [KEYBOARD_RESET])) => {
                return Step::End(End::Reset)
            }
            // The keyboard controller is ready; the clock is not updating.
            Ok(VcpuExit::IoIn(KEYBOARD_COMMAND | CMOS_DATA, bytes)) => bytes.fill(0),
            // A bus with nothing on it.
            Ok(VcpuExit::IoIn(_, bytes) | VcpuExit::MmioRead(_, bytes)) => bytes.fill(0xff),
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(VcpuExit::MmioWrite(gpa, bytes)) => self.devices.mmio_write(gpa, bytes),
            Ok(VcpuExit::Unsupported(MSR_OP_EXIT)) => {
                self.fd.serve_area(|request| self.devices.area(request));
            }
            Ok(VcpuExit::Shutdown) => return Step::End(End::TripleFault),
            Err(e) if e.errno() == libc::EINTR => return Step::Interrupted,
            Ok(exit) => {
                let end = format!("unexpected exit {exit:?}");
                return Step::End(End::Failed(self.at(end)));
            }
            Err(e) => return Step::End(End::Failed(self.at(format!("KVM_RUN: {e}")))),
        }
        Step::Continue
    }

    /// Adds where the guest is.
    fn at(&self, what: String) -> String {
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        format!("{what} at rip {rip:#x}")
    }
}

/// A UART that a panic left in some state is as good as another one.
pub fn lock(uart: &Mutex<Uart>) -> MutexGuard<'_, Uart> {
    uart.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Step {
    Continue,
    Interrupted,
    End(End),
}

/// The interrupt line of the serial port.
pub fn interrupt(vm: &VmFd) -> Result<EventFd> {
    let event = EventFd::new(libc::EFD_NONBLOCK).context("eventfd failed")?;
    vm.register_irqfd(&event, console::GSI)
        .context("KVM_IRQFD failed")?;
    Ok(event)
}
