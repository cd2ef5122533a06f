// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The state of a machine, for another process on the same host.

use anyhow::{anyhow, ensure, Context, Result};
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
    CpuId, Msrs, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;
use vm_superio::SerialState;

use crate::linux::{
    console::{uart, Output},
    machine::{interrupt, lock, new_vm, Devices, Machine, Stopped, Vcpu},
};

/// Everything but memory and what is in [`Devices`].
#[derive(Serialize, Deserialize)]
pub struct State {
    vm: Vm,
    vcpu: VcpuState,
    uart: Uart,
}

#[derive(Serialize, Deserialize)]
struct Vm {
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

#[derive(Serialize, Deserialize)]
struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

/// [`SerialState`], which has no `Serialize`.
#[derive(Serialize, Deserialize)]
struct Uart {
    registers: [u8; 9],
    in_buffer: Vec<u8>,
}

impl State {
    /// The state of a machine whose vCPU does not run.
    pub fn save<D>(kvm: &Kvm, machine: &Stopped<D>) -> Result<State> {
        Ok(State {
            // Before the clock stops, and the timers with it.
            vcpu: VcpuState::save(kvm, &machine.vcpu.fd)?,
            vm: Vm::save(&machine.vm)?,
            uart: Uart::save(&lock(&machine.vcpu.uart).state()),
        })
    }

    /// A machine in this state, which runs.
    pub fn resume<D: Devices>(
        &self,
        kvm: &Kvm,
        memory: GuestMemoryMmap,
        output: Output,
        devices: D,
    ) -> Result<Machine<D>> {
        let (vm, fd) = new_vm(kvm, &memory, true)?;
        // Before the MSRs: when the one for the wall clock is written, KVM computes the time at
        // which the VM's clock was 0, and writes that to the guest's memory.
        self.vm.restore_clock(&vm)?;
        self.vcpu.restore(&fd)?;
        self.vm.restore_devices(&vm)?;
        let uart = uart(interrupt(&vm)?, output, Some(&self.uart.state()))?;
        Machine::start(memory, vm, Vcpu::new(fd, uart, devices))
    }
}

impl Vm {
    fn save(vm: &VmFd) -> Result<Vm> {
        let irqchips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).map(|()| chip)
        });
        Ok(Vm {
            irqchips: irqchips
                .into_iter()
                .collect::<Result<_, _>>()
                .context("KVM_GET_IRQCHIP failed")?,
            pit: vm.get_pit2().context("KVM_GET_PIT2 failed")?,
            clock: vm.get_clock().context("KVM_GET_CLOCK failed")?,
        })
    }

    fn restore_devices(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip).context("KVM_SET_IRQCHIP failed")?;
        }
        vm.set_pit2(&self.pit).context("KVM_SET_PIT2 failed")
    }

    /// The guest's clock goes on where it was; the pause is not seen in it.
    fn restore_clock(&self, vm: &VmFd) -> Result<()> {
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).context("KVM_SET_CLOCK failed")
    }
}

impl VcpuState {
    fn save(kvm: &Kvm, fd: &VcpuFd) -> Result<VcpuState> {
        Ok(VcpuState {
            mp_state: fd.get_mp_state().context("KVM_GET_MP_STATE failed")?,
            cpuid: fd
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .context("KVM_GET_CPUID2 failed")?
                .as_slice()
                .to_vec(),
            tsc_khz: fd.get_tsc_khz().context("KVM_GET_TSC_KHZ failed")?,
            regs: fd.get_regs().context("KVM_GET_REGS failed")?,
            sregs: fd.get_sregs().context("KVM_GET_SREGS failed")?,
            xsave: fd.get_xsave().context("KVM_GET_XSAVE failed")?,
            xcrs: fd.get_xcrs().context("KVM_GET_XCRS failed")?,
            debugregs: fd.get_debug_regs().context("KVM_GET_DEBUGREGS failed")?,
            lapic: fd.get_lapic().context("KVM_GET_LAPIC failed")?,
            msrs: msrs(kvm, fd)?,
            events: fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS failed")?,
        })
    }

    fn restore(&self, fd: &VcpuFd) -> Result<()> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|e| anyhow!("CPUID: {e:?}"))?;
        fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2 failed")?;
        fd.set_tsc_khz(self.tsc_khz)
            .context("KVM_SET_TSC_KHZ failed")?;
        fd.set_sregs(&self.sregs).context("KVM_SET_SREGS failed")?;
        fd.set_regs(&self.regs).context("KVM_SET_REGS failed")?;
        // SAFETY: xsave features that need more than this struct are not enabled.
        unsafe { fd.set_xsave(&self.xsave) }.context("KVM_SET_XSAVE failed")?;
        fd.set_xcrs(&self.xcrs).context("KVM_SET_XCRS failed")?;
        fd.set_debug_regs(&self.debugregs)
            .context("KVM_SET_DEBUGREGS failed")?;
        // The timer's deadline is an MSR and needs the mode of the timer, which is in
        // the local APIC.
        fd.set_lapic(&self.lapic).context("KVM_SET_LAPIC failed")?;
        for entry in &self.msrs {
            let msr = Msrs::from_entries(&[*entry]).map_err(|e| anyhow!("MSRs: {e:?}"))?;
            let set = fd.set_msrs(&msr).context("KVM_SET_MSRS failed")?;
            ensure!(set == 1, "KVM does not take the MSR {:#x}", entry.index);
        }
        fd.set_vcpu_events(&self.events)
            .context("KVM_SET_VCPU_EVENTS failed")?;
        fd.set_mp_state(self.mp_state)
            .context("KVM_SET_MP_STATE failed")
    }
}

/// All MSRs that the vCPU has. Among them are those of the areas that KVM serves.
fn msrs(kvm: &Kvm, fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let list = kvm
        .get_msr_index_list()
        .context("KVM_GET_MSR_INDEX_LIST failed")?;
    let mut found = Vec::new();
    for &index in list.as_slice() {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msr = Msrs::from_entries(&[entry]).map_err(|e| anyhow!("MSRs: {e:?}"))?;
        // 0 for one that KVM has and this vCPU does not.
        if fd.get_msrs(&mut msr).context("KVM_GET_MSRS failed")? == 1 {
            found.extend_from_slice(msr.as_slice());
        }
    }
    Ok(found)
}

impl Uart {
    fn save(state: &SerialState) -> Uart {
        Uart {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            in_buffer: state.in_buffer.clone(),
        }
    }

    fn state(&self) -> SerialState {
        let [baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control, modem_status, scratch] =
            self.registers;
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: self.in_buffer.clone(),
        }
    }
}
