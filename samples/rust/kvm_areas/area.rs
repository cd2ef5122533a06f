// SPDX-License-Identifier: GPL-2.0-only
//! Memory that the guest shares with the hypervisor.
//!
//! [`Area`] is all that a driver needs: it is registered when it is made, its contents are a `T`,
//! and dropping it ends the registration. A reboot or a kexec ends it as well, so that the
//! hypervisor never has an address in memory that belongs to another kernel.
//!
//! The protocol is in Documentation/virt/kvm/memory/areas.rst.
//!
//! C header: [`include/uapi/linux/kvm_memory_area.h`](srctree/include/uapi/linux/kvm_memory_area.h)

use core::{
    arch::x86_64::__cpuid,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::__GFP_ZERO,
    bindings,
    fmt,
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

use crate::notifier::{
    Notified,
    Notifier,
    Reboot, //
};

/// What an area can hold.
///
/// # Safety
///
/// The hypervisor may write to the area at any time, and any contents must be a valid `Self`, all
/// zeroes included. `Self` must not need to be dropped.
pub(crate) unsafe trait Shared: Send + Sync {
    /// The type of the area: what the hypervisor takes the contents for.
    const TYPE: u32;
}

/// Whether the hypervisor has areas, and can read what is in them.
pub(crate) fn available() -> bool {
    const HYPERVISOR: u32 = 1 << 31;

    // SAFETY: All processors that 64-bit Linux runs on have CPUID. It takes any leaf, and writes to
    // registers only.
    let leaf = |function| unsafe { __cpuid(function) };
    if is_encrypted() || leaf(1).ecx & HYPERVISOR == 0 {
        return false;
    }
    // The leaves of other interfaces that the hypervisor has may come first.
    (0x4000_0000..0x4001_0000u32)
        .step_by(0x100)
        .find(|&base| {
            let id = leaf(base);
            [id.ebx, id.ecx, id.edx]
                .map(u32::to_le_bytes)
                .as_flattened()
                == b"KVMKVMKVM\0\0\0"
        })
        .is_some_and(|base| {
            let last = leaf(base).eax;
            let features = base | bindings::KVM_CPUID_FEATURES;
            // Old versions of KVM say 0, and have the leaf.
            (last == 0 || last >= features)
                && leaf(features).eax & (1 << bindings::KVM_FEATURE_MEM_AREA) != 0
        })
}

/// Whether the hypervisor cannot read the guest's memory unless the guest decrypts it first.
#[cfg(CONFIG_ARCH_HAS_CC_PLATFORM)]
fn is_encrypted() -> bool {
    // SAFETY: It may be called anywhere.
    unsafe { bindings::cc_platform_has(bindings::cc_attr_CC_ATTR_GUEST_MEM_ENCRYPT) }
}

/// A kernel that cannot run in encrypted memory.
#[cfg(not(CONFIG_ARCH_HAS_CC_PLATFORM))]
fn is_encrypted() -> bool {
    false
}

/// The hypervisor's answer to a command, if it is not that the command has been carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(u8);

impl Refusal {
    /// The area is none of the hypervisor's, so that its memory can be used otherwise.
    const NOT_REGISTERED: Self = Self(bindings::KVM_MEM_AREA_NOT_REGISTERED as u8);
    /// Nobody says what has become of the command.
    const NO_ANSWER: Self = Self(bindings::KVM_MEM_AREA_NO_ANSWER as u8);
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match u32::from(self.0) {
            bindings::KVM_MEM_AREA_UNKNOWN_TYPE => "the hypervisor does not know the type",
            bindings::KVM_MEM_AREA_BAD_ADDRESS => "the address is bad",
            bindings::KVM_MEM_AREA_BAD_SIZE => "the size is bad",
            bindings::KVM_MEM_AREA_BAD_ALIGNMENT => "the alignment is bad",
            bindings::KVM_MEM_AREA_BAD_PAD => "the padding is not 0",
            bindings::KVM_MEM_AREA_NOT_REGISTERED => "the area is not registered",
            bindings::KVM_MEM_AREA_DENIED => "the hypervisor does not allow the type",
            bindings::KVM_MEM_AREA_NO_ANSWER => "the hypervisor does not answer",
            _ => return write!(f, "the hypervisor answers {:#x}", self.0),
        })
    }
}

/// Why an area could not be registered.
pub(crate) enum RegisterError {
    /// The hypervisor does not want it. The guest can do without.
    Refused(Refusal),
    Failed(Error),
}

impl From<Error> for RegisterError {
    fn from(e: Error) -> Self {
        RegisterError::Failed(e)
    }
}

impl From<kernel::alloc::AllocError> for RegisterError {
    fn from(e: kernel::alloc::AllocError) -> Self {
        RegisterError::Failed(e.into())
    }
}

/// A `T` that is registered with the hypervisor.
///
/// # Examples
///
/// ```ignore
/// #[repr(C)]
/// struct Progress {
///     done: Atomic<u64>,
/// }
///
/// // SAFETY: An integer is valid whatever it is.
/// unsafe impl Shared for Progress {
///     const TYPE: u32 = 0x8000_0042;
/// }
///
/// match Area::<Progress>::register() {
///     Ok(progress) => progress.done.store(1, Relaxed), // The VMM can read it now.
///     Err(RegisterError::Refused(why)) => pr_info!("nobody watches the progress: {why}\n"),
///     Err(RegisterError::Failed(e)) => return Err(e),
/// }
/// ```
pub(crate) struct Area<T: Shared>(Pin<KBox<Notifier<Reboot, Registration<T>>>>);

impl<T: Shared> Area<T> {
    /// Registers an area of zeroes.
    pub(crate) fn register() -> Result<Self, RegisterError> {
        // The hypervisor has one registration for all processors. The first one cannot be taken
        // offline.
        Self::register_on(0)
    }

    /// Registers an area of zeroes for one processor, which stays online, if the type is one of
    /// those that each processor has its own area of.
    pub(crate) fn register_on(cpu: u32) -> Result<Self, RegisterError> {
        let area = Area(KBox::pin_init(
            Notifier::new(Registration::new(cpu)),
            GFP_KERNEL,
        )?);
        area.0.register()?;
        Ok(area)
    }

    /// Whether the hypervisor has it: until the kernel goes down.
    pub(crate) fn registered(&self) -> bool {
        self.0.status.lock().phase == Phase::Registered
    }

    /// Its guest physical address.
    pub(crate) fn gpa(&self) -> u64 {
        self.0.gpa()
    }
}

impl<T: Shared> Deref for Area<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.page.0
    }
}

/// Memory from its first byte to the end of a page, so that nothing else is shared by accident.
#[repr(C, align(4096))]
struct Page<T>(T);

#[repr(C, align(32))]
struct Descriptor(bindings::kvm_memory_area);

/// Whether the hypervisor has an area.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Registered,
    /// It may have it: it has not said, or does not give it up.
    Unknown,
}

/// What guest and hypervisor have told each other.
struct Status {
    descriptor: Descriptor,
    phase: Phase,
    /// The kernel has said that it goes down.
    down: bool,
}

/// # Invariants
///
/// While `status` is not locked, the hypervisor does not have the area if the phase is
/// [`Phase::Free`].
#[pin_data(PinnedDrop)]
struct Registration<T: Shared> {
    page: ManuallyDrop<KBox<Page<T>>>,
    cpu: u32,
    /// Held during commands, so that a kernel that goes down waits for them.
    #[pin]
    status: Mutex<Status>,
}

impl<T: Shared> Registration<T> {
    fn new(cpu: u32) -> impl PinInit<Self, Error> {
        const {
            assert!(size_of::<T>() > 0);
            assert!(size_of::<T>() <= bindings::KVM_MEM_AREA_MAX_SIZE as usize);
            assert!(align_of::<Descriptor>() == bindings::KVM_MEM_AREA_DESC_ALIGN as usize);
            assert!(!core::mem::needs_drop::<T>());
        }
        // INVARIANT: The hypervisor does not know of the area yet.
        try_pin_init!(Self {
            page: {
                let page = KBox::<Page<T>>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
                // SAFETY: The memory is zeroed, which `Shared` says is a valid `T`.
                ManuallyDrop::new(unsafe { page.assume_init() })
            },
            cpu,
            status <- new_mutex!(Status {
                descriptor: Descriptor(bindings::kvm_memory_area::default()),
                phase: Phase::Free,
                down: false,
            }),
        })
    }

    fn gpa(&self) -> u64 {
        let page: *const Page<T> = &raw const **self.page;
        // SAFETY: The address is in the kernel's mapping of its memory.
        unsafe { bindings::slow_virt_to_phys(page.cast_mut().cast()) }
    }

    /// Gives the area to the hypervisor, unless the kernel goes down.
    ///
    /// A kernel that goes down notifies, then sets `system_state`, and stops the other processors
    /// last. If the notification comes
    ///
    /// - before this function has the lock, `down` is set, and no command is given;
    /// - while it has the lock, the notification waits, and then takes the area back;
    /// - never, because the list was notified before the area was on it, then `system_state` is
    ///   set next. It is found set before the command, or after it.
    ///
    /// One order is left: the first look at `system_state` falls between the last notification and
    /// the store right after it, and so does the second one, or it never comes. Syscore operations
    /// would rule that out, because they are called after the store, but have no binding.
    fn register(&self) -> Result<(), RegisterError> {
        let mut status = self.status.lock();
        if status.down || going_down() {
            return Err(ESHUTDOWN.into());
        }
        status.phase = Phase::Unknown;
        let answer = self.command(&mut status, bindings::MSR_KVM_REGISTER_MEM_AREA);
        match answer {
            Ok(()) if going_down() => {
                self.take_back(&mut status)?;
                return Err(ESHUTDOWN.into());
            }
            Ok(()) => status.phase = Phase::Registered,
            // It may have been carried out. An area that is given up again is as good as refused.
            Err(Refusal::NO_ANSWER) => self.take_back(&mut status)?,
            // INVARIANT: An area that is refused is not registered.
            Err(_) => status.phase = Phase::Free,
        }
        answer.map_err(RegisterError::Refused)
    }

    /// Ends the registration, if there is one.
    fn unregister(&self, status: &mut Status) {
        if status.phase == Phase::Registered {
            // A failure has been logged, and the phase says what it means for the memory.
            let _ = self.take_back(status);
        }
    }

    /// Has the hypervisor forget the area, whether it has it or not.
    fn take_back(&self, status: &mut Status) -> Result {
        match self.command(status, bindings::MSR_KVM_UNREGISTER_MEM_AREA) {
            Ok(()) | Err(Refusal::NOT_REGISTERED) => {
                // INVARIANT: The hypervisor has just said so.
                status.phase = Phase::Free;
                Ok(())
            }
            Err(refusal) => {
                pr_warn!("area {:#x} stays registered: {refusal}\n", T::TYPE);
                status.phase = Phase::Unknown;
                Err(EIO)
            }
        }
    }

    /// Gives the hypervisor a command and returns its answer.
    fn command(&self, status: &mut Status, msr: u32) -> Result<(), Refusal> {
        let descriptor = &raw mut status.descriptor.0;
        // SAFETY: The pointer is that of a mutable reference. The hypervisor reads and writes the
        // descriptor during the WRMSR only, and these accesses are volatile.
        let answer = unsafe {
            descriptor.write_volatile(bindings::kvm_memory_area {
                base: self.gpa(),
                size: size_of::<T>() as u32,
                type_: T::TYPE,
                result: Refusal::NO_ANSWER.0,
                pad: [0; 7],
            });
            let gpa = bindings::slow_virt_to_phys(descriptor.cast());
            // #GP also means that the answer had no place, after the command was carried out.
            match bindings::wrmsrq_safe_on_cpu(self.cpu, msr, gpa) {
                0 => (&raw const (*descriptor).result).read_volatile(),
                _ => Refusal::NO_ANSWER.0,
            }
        };
        match answer {
            0 => Ok(()),
            refusal => Err(Refusal(refusal)),
        }
    }
}

/// Whether the kernel is past the notifications on its way down.
fn going_down() -> bool {
    // SAFETY: It is an integer of the kernel's, which any processor may read at any time.
    let state = unsafe { (&raw const bindings::system_state).read_volatile() };
    state > bindings::system_states_SYSTEM_RUNNING
}

impl<T: Shared> Notified<Reboot> for Registration<T> {
    fn notify(&self, _data: Option<NonNull<c_void>>) {
        let mut status = self.status.lock();
        status.down = true;
        self.unregister(&mut status);
    }
}

#[pinned_drop]
impl<T: Shared> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        let mut status = self.status.lock();
        self.unregister(&mut status);
        let is_free = status.phase == Phase::Free;
        drop(status);
        // The hypervisor may write to an area that it has not given up. Its memory is lost.
        if is_free {
            // SAFETY: Nothing uses the field after this.
            unsafe { ManuallyDrop::drop(self.project().page) };
        }
    }
}
