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
    error::to_result,
    fmt,
    prelude::*,
    sync::atomic::{
        Acquire,
        AtomicFlag,
        Full,
        Release, //
    },
    types::Opaque, //
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

/// Whether the hypervisor has areas.
pub(crate) fn available() -> bool {
    const HYPERVISOR: u32 = 1 << 31;

    // SAFETY: All processors that 64-bit Linux runs on have CPUID and the leaf 1.
    let leaf = |function| unsafe { __cpuid(function) };
    if leaf(1).ecx & HYPERVISOR == 0 {
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

/// The hypervisor's answer to a command, if it is not that the command has been carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(u8);

impl Refusal {
    /// Whether the area is none of the hypervisor's, so that its memory can be used otherwise.
    fn not_registered(self) -> bool {
        u32::from(self.0) == bindings::KVM_MEM_AREA_NOT_REGISTERED
    }

    /// Whether the descriptor does not say what has become of the command.
    fn no_answer(self) -> bool {
        u32::from(self.0) == bindings::KVM_MEM_AREA_NO_ANSWER
    }
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

    /// Registers an area of zeroes for one processor, if the type is one of those that each
    /// processor has its own area of.
    pub(crate) fn register_on(cpu: u32) -> Result<Self, RegisterError> {
        let area = Area(KBox::pin_init(
            Notifier::new(Registration::new(cpu)),
            GFP_KERNEL,
        )?);
        // SAFETY: This is the only call.
        unsafe { area.0.register() }?;
        Ok(area)
    }

    /// Whether the hypervisor has it: until the kernel goes down.
    pub(crate) fn registered(&self) -> bool {
        self.0.registered.load(Acquire)
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
struct Descriptor(Opaque<bindings::kvm_memory_area>);

/// # Invariants
///
/// - The hypervisor does not have the area if `forgotten` is set.
/// - Whoever clears `registered` owns `descriptor`. Before it is set, `register` does.
#[pin_data(PinnedDrop)]
struct Registration<T: Shared> {
    descriptor: Descriptor,
    page: ManuallyDrop<KBox<Page<T>>>,
    cpu: u32,
    registered: AtomicFlag,
    forgotten: AtomicFlag,
    /// The kernel is going down.
    down: AtomicFlag,
}

// SAFETY: The hypervisor does not know which thread gives a command.
unsafe impl<T: Shared> Send for Registration<T> {}
// SAFETY: `descriptor` is used as its invariant says, everything else is `Sync`.
unsafe impl<T: Shared> Sync for Registration<T> {}

impl<T: Shared> Registration<T> {
    fn new(cpu: u32) -> impl PinInit<Self, Error> {
        const {
            assert!(size_of::<T>() > 0);
            assert!(size_of::<T>() <= bindings::KVM_MEM_AREA_MAX_SIZE as usize);
            assert!(align_of::<Descriptor>() == bindings::KVM_MEM_AREA_DESC_ALIGN as usize);
            assert!(!core::mem::needs_drop::<T>());
        }
        try_pin_init!(Self {
            descriptor: Descriptor(Opaque::new(bindings::kvm_memory_area::default())),
            page: {
                let page = KBox::<Page<T>>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
                // SAFETY: The memory is zeroed, which `Shared` says is a valid `T`.
                ManuallyDrop::new(unsafe { page.assume_init() })
            },
            cpu,
            registered: AtomicFlag::new(false),
            // INVARIANT: The hypervisor does not know of the area yet.
            forgotten: AtomicFlag::new(true),
            down: AtomicFlag::new(false),
        })
    }

    fn gpa(&self) -> u64 {
        let page: *const Page<T> = &raw const **self.page;
        // SAFETY: The address is in the kernel's mapping of its memory.
        unsafe { bindings::slow_virt_to_phys(page.cast_mut().cast()) }
    }

    /// # Safety
    ///
    /// Must be called once.
    unsafe fn register(&self) -> Result<(), RegisterError> {
        self.forgotten.store(false, Release);
        // SAFETY: `registered` is not set, and nobody else calls this function.
        let answer = unsafe { self.command(bindings::MSR_KVM_REGISTER_MEM_AREA) };
        let (error, is_known) = match answer {
            Ok(Ok(())) => {
                self.registered.xchg(true, Full);
                // Or the notification came before there was anything to unregister. Of the two
                // exchanges the later one sees the other.
                if self.down.xchg(false, Full) {
                    self.unregister();
                }
                return Ok(());
            }
            Ok(Err(refusal)) => (RegisterError::Refused(refusal), !refusal.no_answer()),
            // #GP also means that the answer had no place, after the command was carried out.
            Err(e) => (RegisterError::Failed(e), false),
        };
        if is_known {
            // INVARIANT: An area that is refused is not registered.
            self.forgotten.store(true, Release);
        } else {
            // SAFETY: As above.
            unsafe { self.take_back() };
        }
        Err(error)
    }

    /// Ends the registration, if there is one.
    fn unregister(&self) {
        if !self.registered.xchg(false, Full) {
            return;
        }
        // SAFETY: The exchange has made us the owner of the descriptor.
        unsafe { self.take_back() };
    }

    /// Has the hypervisor forget the area, whether it has it or not.
    ///
    /// # Safety
    ///
    /// The caller must own `descriptor`.
    unsafe fn take_back(&self) {
        // SAFETY: By the caller's contract.
        match unsafe { self.command(bindings::MSR_KVM_UNREGISTER_MEM_AREA) } {
            Ok(Ok(())) => self.forgotten.store(true, Release),
            Ok(Err(refusal)) if refusal.not_registered() => self.forgotten.store(true, Release),
            Ok(Err(refusal)) => pr_warn!("area {:#x} stays registered: {refusal}\n", T::TYPE),
            Err(e) => pr_warn!("area {:#x} stays registered: {e:?}\n", T::TYPE),
        }
    }

    /// Gives the hypervisor a command and returns its answer; an error if it does not take
    /// commands.
    ///
    /// # Safety
    ///
    /// The caller must own `descriptor`.
    unsafe fn command(&self, msr: u32) -> Result<Result<(), Refusal>> {
        let descriptor = self.descriptor.0.get();
        // SAFETY: The caller owns the descriptor. The hypervisor reads and writes it during the
        // WRMSR only, and these accesses are volatile.
        unsafe {
            descriptor.write_volatile(bindings::kvm_memory_area {
                base: self.gpa(),
                size: size_of::<T>() as u32,
                type_: T::TYPE,
                result: bindings::KVM_MEM_AREA_NO_ANSWER as u8,
                pad: [0; 7],
            });
            let gpa = bindings::slow_virt_to_phys(descriptor.cast());
            to_result(bindings::wrmsrq_safe_on_cpu(self.cpu, msr, gpa))?;
            Ok(match (&raw const (*descriptor).result).read_volatile() {
                0 => Ok(()),
                result => Err(Refusal(result)),
            })
        }
    }
}

impl<T: Shared> Notified<Reboot> for Registration<T> {
    fn notify(&self, _data: Option<NonNull<c_void>>) {
        self.down.xchg(true, Full);
        self.unregister();
    }
}

#[pinned_drop]
impl<T: Shared> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        self.unregister();
        // The hypervisor may write to an area that it has not given up. Its memory is lost.
        if self.forgotten.load(Acquire) {
            // SAFETY: Nothing uses the field after this.
            unsafe { ManuallyDrop::drop(self.project().page) };
        }
    }
}
