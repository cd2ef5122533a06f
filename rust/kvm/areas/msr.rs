// SPDX-License-Identifier: GPL-2.0-only

//! The functions that C calls for the MSRs of memory areas.
//!
//! The C side is `include/linux/kvm_memory_core.h`; its callers are in `arch/x86/kvm/msrs.c`.

use super::{
    command::{
        Answered,
        Command,
        Outcome,
        Vcpu, //
    },
    descriptor::{
        Answer,
        Area,
        Range,
        DESC_SIZE,
        MAX_SIZE, //
    },
    types::{
        FIRST_VMM_TYPE,
        KVM_TYPES,
        MSR_ENABLED,
        STEAL_TIME_ALIGN, //
    }, //
};

use core::{
    ffi::c_int,
    marker::PhantomData,
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        atomic_load,
        Relaxed, //
    },
    types::NotThreadSafe, //
};

// The pure part and the uAPI header say the same.
const _: () = {
    type Descriptor = bindings::kvm_memory_area;
    assert!(DESC_SIZE == size_of::<Descriptor>());
    assert!(offset_of!(Descriptor, base) == 0);
    assert!(offset_of!(Descriptor, size) == 8);
    assert!(offset_of!(Descriptor, type_) == 12);
    assert!(offset_of!(Descriptor, result) == 16);
    assert!(offset_of!(Descriptor, pad) == 17);
    assert!(MAX_SIZE == bindings::KVM_MEM_AREA_MAX_SIZE);
    assert!(FIRST_VMM_TYPE == bindings::KVM_MEM_AREA_TYPE_VMM);
    assert!(Answer::Ok as u32 == bindings::KVM_MEM_AREA_OK);
    assert!(Answer::UnknownType as u32 == bindings::KVM_MEM_AREA_UNKNOWN_TYPE);
    assert!(Answer::BadAddress as u32 == bindings::KVM_MEM_AREA_BAD_ADDRESS);
    assert!(Answer::BadSize as u32 == bindings::KVM_MEM_AREA_BAD_SIZE);
    assert!(Answer::BadAlignment as u32 == bindings::KVM_MEM_AREA_BAD_ALIGNMENT);
    assert!(Answer::BadPad as u32 == bindings::KVM_MEM_AREA_BAD_PAD);
    assert!(Answer::NotRegistered as u32 == bindings::KVM_MEM_AREA_NOT_REGISTERED);
    assert!(Answer::Denied as u32 == bindings::KVM_MEM_AREA_DENIED);
    assert!(MSR_ENABLED == bindings::KVM_MSR_ENABLED as u64);
    assert!(STEAL_TIME_ALIGN == 1 << (bindings::KVM_STEAL_ALIGNMENT_BITS + 1));
    assert!(KVM_TYPES.len() == 3);
    assert!(KVM_TYPES[0].is(
        bindings::KVM_MEM_AREA_TYPE_WALL_CLOCK,
        bindings::MSR_KVM_WALL_CLOCK_NEW,
        size_of::<bindings::pvclock_wall_clock>()
    ));
    assert!(KVM_TYPES[1].is(
        bindings::KVM_MEM_AREA_TYPE_SYSTEM_TIME,
        bindings::MSR_KVM_SYSTEM_TIME_NEW,
        size_of::<bindings::pvclock_vcpu_time_info>()
    ));
    assert!(KVM_TYPES[2].is(
        bindings::KVM_MEM_AREA_TYPE_STEAL_TIME,
        bindings::MSR_KVM_STEAL_TIME,
        size_of::<bindings::kvm_steal_time>()
    ));
};

/// A vCPU that executes guest code on behalf of the current task, between two entries of the guest.
///
/// # Invariants
///
/// During `'a`, `vcpu` points to an initialised vCPU that is not freed, and that the current task
/// has loaded. The task holds the vCPU's mutex and is in a read section of `kvm->srcu`.
struct RunningVcpu<'a> {
    vcpu: NonNull<bindings::kvm_vcpu>,
    _vcpu: PhantomData<&'a ()>,
    _task: NotThreadSafe,
}

impl RunningVcpu<'_> {
    /// Wraps the pointer that C passed in. Returns [`None`] for a null pointer, and for a vCPU that
    /// is being destroyed.
    ///
    /// # Safety
    ///
    /// `vcpu` is null, or during the lifetime of the result points to an initialised vCPU that is
    /// not freed, and that only the current task, which has loaded it, accesses. If the vCPU has
    /// pinned memslots, they stay pinned as long, and the task holds the vCPU's mutex.
    unsafe fn from_raw(vcpu: *mut bindings::kvm_vcpu) -> Option<Self> {
        let vcpu = NonNull::new(vcpu)?;
        // SAFETY: The caller guarantees that the vCPU is initialised, and the current task's.
        let is_running = unsafe { bindings::kvm_mem_area_is_running(vcpu.as_ptr()) };
        // INVARIANT: If `is_running`, the vCPU has pinned memslots, which it does only in a read
        // section of `kvm->srcu`. The caller guarantees that they stay pinned, that the task has
        // loaded the vCPU and holds its mutex, and that the vCPU is initialised and not freed.
        is_running.then_some(Self {
            vcpu,
            _vcpu: PhantomData,
            _task: NotThreadSafe,
        })
    }

    fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.vcpu.as_ptr()
    }

    /// Remembers what the VMM will be asked.
    fn set_op(&mut self, op: bindings::kvm_x86_msr_op) {
        // SAFETY: By the type invariant the vCPU is allocated, and the current task holds its mutex,
        // without which nobody uses the field.
        unsafe { (*self.as_ptr()).arch.mem_area_op = op };
    }

    /// Returns what the VMM has last been asked.
    fn op(&self) -> bindings::kvm_x86_msr_op {
        // SAFETY: By the type invariant the vCPU is allocated, and the current task holds its mutex,
        // without which nobody uses the field.
        unsafe { (*self.as_ptr()).arch.mem_area_op }
    }

    /// Returns the page that the VMM shares, and may write to at any time.
    fn run(&self) -> *mut bindings::kvm_run {
        // SAFETY: By the type invariant the vCPU is allocated. `run` never changes.
        unsafe { (*self.as_ptr()).run }
    }
}

impl Vcpu for RunningVcpu<'_> {
    fn read_descriptor(&mut self, desc: u64) -> Option<[u8; DESC_SIZE]> {
        let mut bytes = [0; DESC_SIZE];
        // SAFETY: By the type invariant the vCPU is loaded and may look up memslots. `bytes` is as
        // large as the descriptor, and the function writes only bytes.
        unsafe { bindings::kvm_mem_area_read_desc(self.as_ptr(), desc, bytes.as_mut_ptr().cast()) }
            .then_some(bytes)
    }

    fn write_result(&mut self, desc: u64, result: u8) -> bool {
        // SAFETY: By the type invariant the vCPU is loaded and may look up memslots.
        unsafe { bindings::kvm_mem_area_write_result(self.as_ptr(), desc, result) }
    }

    fn is_memory(&self, range: Range) -> bool {
        // SAFETY: By the type invariant the vCPU is loaded and may look up memslots. A `Range` is
        // not empty and does not wrap.
        unsafe { bindings::kvm_mem_area_is_memory(self.as_ptr(), range.base(), range.size()) }
    }

    fn can_write(&self, range: Range) -> bool {
        // SAFETY: By the type invariant the vCPU is loaded and may look up memslots. A `Range` is
        // not empty and does not wrap.
        unsafe { bindings::kvm_mem_area_can_write(self.as_ptr(), range.base(), range.size()) }
    }

    fn can_map(&self, range: Range) -> bool {
        // SAFETY: By the type invariant the vCPU is loaded and may look up memslots. A `Range` is
        // not empty and does not wrap.
        unsafe { bindings::kvm_mem_area_can_map(self.as_ptr(), range.base(), range.size()) }
    }

    fn read_msr(&self, msr: u32) -> Option<u64> {
        let mut value = 0;
        // SAFETY: By the type invariant the vCPU is loaded. `value` may be written to.
        unsafe { bindings::kvm_mem_area_msr_read(self.as_ptr(), msr, &mut value) }.then_some(value)
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        // SAFETY: By the type invariant the vCPU is loaded, in a read section of `kvm->srcu`, as
        // when the guest writes the MSR.
        unsafe { bindings::kvm_mem_area_msr_write(self.as_ptr(), msr, value) }
    }

    fn vmm_serves(&self) -> bool {
        // SAFETY: By the type invariant the vCPU is allocated, and so is its VM.
        let serves = unsafe { &raw mut (*(*self.as_ptr()).kvm).arch.mem_areas_in_userspace };
        // SAFETY: `serves` points to a field of the VM. Where other threads may use it, all accesses
        // are atomic.
        unsafe { atomic_load(serves, Relaxed) }
    }
}

/// Returns what KVM's MSR functions return for an outcome.
fn to_msr_result(outcome: Outcome) -> c_int {
    let result = match outcome {
        Outcome::Done => bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_DONE,
        Outcome::Fault => bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_FAULT,
        Outcome::Ask(_) => bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_ASK,
    };
    result as c_int
}

/// Implements a write of `MSR_KVM_REGISTER_MEM_AREA` or `MSR_KVM_UNREGISTER_MEM_AREA`. Returns one of
/// `enum kvm_mem_area_msr`.
///
/// # Safety
///
/// `vcpu` points to an initialised vCPU that is not freed during this call, and that only the current
/// task, which has loaded it, accesses. If the vCPU has pinned memslots, they stay pinned during this
/// call, and the task holds the vCPU's mutex. `msr` points to an access of one
/// of these MSRs.
#[export]
pub unsafe extern "C" fn kvm_mem_area_set_msr(
    vcpu: *mut bindings::kvm_vcpu,
    msr: *const bindings::msr_data,
) -> c_int {
    // SAFETY: The caller guarantees that `msr` points to an access.
    let msr = unsafe { &*msr };
    // SAFETY: The caller guarantees that the vCPU is initialised, and the current task's.
    if !unsafe { has_feature(vcpu) } {
        return bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_UNSUPPORTED as c_int;
    }
    // A command is no state that could be restored. Code of its own keeps ignore_msrs out.
    if msr.host_initiated {
        return to_msr_result(Outcome::Fault);
    }
    // SAFETY: The caller guarantees that the vCPU is initialised and not freed during this call, which
    // the result does not outlive; that only the current task, which has loaded it, accesses it; and
    // that if memslots are pinned, they stay so and the task holds the vCPU's mutex.
    let Some(mut vcpu) = (unsafe { RunningVcpu::from_raw(vcpu) }) else {
        // The vCPU leaves L2 because it is destroyed.
        return to_msr_result(Outcome::Fault);
    };
    let command = match msr.index {
        bindings::MSR_KVM_REGISTER_MEM_AREA => Command::Register,
        _ => Command::Unregister,
    };
    let outcome = command.run(msr.data, &mut vcpu);
    if let Outcome::Ask(area) = outcome {
        // L1's lists of MSRs cannot ask, so nothing uses what they store here. They are loaded around
        // L2, and an exit that is pending belongs to L1: VMX has L1 intercept WRMSR of these in L2.
        vcpu.set_op(question(msr, area));
    }
    to_msr_result(outcome)
}

/// Returns what the VMM is asked, with the answer of a VMM that does not know of areas.
fn question(msr: &bindings::msr_data, area: Option<Area>) -> bindings::kvm_x86_msr_op {
    bindings::kvm_x86_msr_op {
        msr_data: msr.data,
        base: area.map_or(0, |area| area.range.base()),
        size: area.map_or(0, |area| area.range.size()),
        type_: area.map_or(0, |area| area.kind),
        index: msr.index,
        error: 0,
        result: Answer::UnknownType as u8,
        pad: [0; 2],
    }
}

/// Implements a read of these MSRs. Returns one of `enum kvm_mem_area_msr`.
///
/// # Safety
///
/// `vcpu` points to an initialised vCPU that nobody but the current task accesses.
#[export]
pub unsafe extern "C" fn kvm_mem_area_get_msr(vcpu: *mut bindings::kvm_vcpu) -> c_int {
    // SAFETY: The caller guarantees that the vCPU is initialised, and the current task's.
    let result = if unsafe { has_feature(vcpu) } {
        bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_FAULT
    } else {
        bindings::kvm_mem_area_msr_KVM_MEM_AREA_MSR_UNSUPPORTED
    };
    result as c_int
}

/// Makes `kvm_run` ask the VMM to carry out the command for which `kvm_mem_area_set_msr()` has just
/// returned `KVM_MEM_AREA_MSR_ASK`.
///
/// # Safety
///
/// `vcpu` points to an initialised vCPU that is not freed during this call, and that only the current
/// task, which has loaded it, accesses. If the vCPU has pinned memslots, they stay pinned during this
/// call, and the task holds the vCPU's mutex.
#[export]
pub unsafe extern "C" fn kvm_mem_area_exit(vcpu: *mut bindings::kvm_vcpu) {
    // SAFETY: The caller guarantees that the vCPU is initialised and not freed during this call, which
    // the result does not outlive; that only the current task, which has loaded it, accesses it; and
    // that if memslots are pinned, they stay so and the task holds the vCPU's mutex.
    let Some(vcpu) = (unsafe { RunningVcpu::from_raw(vcpu) }) else {
        return;
    };
    let run = vcpu.run();
    // SAFETY: `run` points to the vCPU's page. The VMM may write to it at the same time, so the
    // accesses are volatile; nothing depends on what they store.
    unsafe {
        (&raw mut (*run).exit_reason).write_volatile(bindings::KVM_EXIT_X86_MSR_OP);
        (&raw mut (*run).__bindgen_anon_1.msr_op).write_volatile(vcpu.op());
    }
}

/// Completes that command by the VMM's answer. Returns `KVM_MEM_AREA_MSR_DONE` or
/// `KVM_MEM_AREA_MSR_FAULT`.
///
/// # Safety
///
/// `vcpu` points to an initialised vCPU that is not freed during this call, and that only the current
/// task, which has loaded it, accesses. If the vCPU has pinned memslots, they stay pinned during this
/// call, and the task holds the vCPU's mutex.
#[export]
pub unsafe extern "C" fn kvm_mem_area_complete(vcpu: *mut bindings::kvm_vcpu) -> c_int {
    // SAFETY: The caller guarantees that the vCPU is initialised and not freed during this call, which
    // the result does not outlive; that only the current task, which has loaded it, accesses it; and
    // that if memslots are pinned, they stay so and the task holds the vCPU's mutex.
    let Some(mut vcpu) = (unsafe { RunningVcpu::from_raw(vcpu) }) else {
        return to_msr_result(Outcome::Fault);
    };
    // Of all that the VMM may have changed in its page, only the answer counts.
    let op = vcpu.op();
    let run = vcpu.run();
    // SAFETY: `run` points to the vCPU's page, which the VMM may write to: hence volatile. Each
    // field is read once, and any value of it is valid.
    let (error, result) = unsafe {
        (
            (&raw const (*run).__bindgen_anon_1.msr_op.error).read_volatile(),
            (&raw const (*run).__bindgen_anon_1.msr_op.result).read_volatile(),
        )
    };
    let is_all = op.index == bindings::MSR_KVM_UNREGISTER_MEM_AREA && op.msr_data == 0;
    let answered = Answered {
        desc: (!is_all).then_some(op.msr_data),
        error: error != 0,
        result,
    };
    to_msr_result(answered.complete(&mut vcpu))
}

/// Returns whether the VMM lets the guest use the MSRs.
///
/// Unlike guest_pv_has(), this does not depend on `KVM_CAP_ENFORCE_PV_FEATURE_CPUID`: a VM whose VMM
/// knows nothing of areas must not change.
///
/// # Safety
///
/// `vcpu` points to an initialised vCPU that nobody but the current task accesses.
unsafe fn has_feature(vcpu: *mut bindings::kvm_vcpu) -> bool {
    // SAFETY: The caller guarantees that the vCPU is initialised, and that nobody changes the
    // field meanwhile.
    let features = unsafe { (*vcpu).arch.pv_cpuid.features };
    features & (1 << bindings::KVM_FEATURE_MEM_AREA) != 0
}
