// SPDX-License-Identifier: GPL-2.0-only
//! A value that is notified of events of the kernel for as long as it exists.

use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A list of those that are notified of one kind of event.
///
/// # Safety
///
/// After `unregister` has returned, the kernel must not use the block again.
pub(crate) unsafe trait Chain {
    /// Appends `block` to the list.
    ///
    /// # Safety
    ///
    /// `block` must be initialised and stay where it is until it is unregistered.
    unsafe fn register(block: *mut bindings::notifier_block) -> c_int;

    /// Takes `block` off the list, and waits until nobody uses it.
    ///
    /// # Safety
    ///
    /// `block` must be on the list.
    unsafe fn unregister(block: *mut bindings::notifier_block);
}

/// The kernel is going down or starts another one by kexec. Notified in process context.
pub(crate) enum Reboot {}

// SAFETY: Unregistering takes the chain's semaphore, which calls of the block hold.
unsafe impl Chain for Reboot {
    unsafe fn register(block: *mut bindings::notifier_block) -> c_int {
        // SAFETY: The caller guarantees that `block` is initialised and stays where it is until it
        // is unregistered.
        unsafe { bindings::register_reboot_notifier(block) }
    }

    unsafe fn unregister(block: *mut bindings::notifier_block) {
        // SAFETY: The caller guarantees that `block` is on the list.
        unsafe { bindings::unregister_reboot_notifier(block) };
    }
}

/// The kernel panics. Notified in any context; other processors are stopped.
pub(crate) enum Panic {}

// SAFETY: Unregistering waits for RCU readers, and calls of the block are such.
unsafe impl Chain for Panic {
    unsafe fn register(block: *mut bindings::notifier_block) -> c_int {
        let chain = &raw mut bindings::panic_notifier_list;
        // SAFETY: The list is static. The caller guarantees that `block` is initialised and stays
        // where it is until it is unregistered.
        unsafe { bindings::atomic_notifier_chain_register(chain, block) }
    }

    unsafe fn unregister(block: *mut bindings::notifier_block) {
        let chain = &raw mut bindings::panic_notifier_list;
        // SAFETY: The list is static. The caller guarantees that `block` is on it.
        unsafe { bindings::atomic_notifier_chain_unregister(chain, block) };
    }
}

/// What a value does when it is notified.
pub(crate) trait Notified<C: Chain>: Sync {
    /// `data` is what the chain says that it is.
    fn notify(&self, data: Option<NonNull<c_void>>);
}

/// A `T` that is on the list of `C`.
///
/// # Invariants
///
/// `block` is on the list of `C` from the end of the initialisation to the drop.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<C: Chain, T: Notified<C>> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    #[pin]
    value: T,
    _chain: PhantomData<C>,
}

// SAFETY: `block` is the kernel's, and any thread may take it off the list.
unsafe impl<C: Chain, T: Notified<C> + Send> Send for Notifier<C, T> {}
// SAFETY: A shared reference gives access to `value` only, which is `Sync`: `block` is the kernel's,
// and nothing refers to it.
unsafe impl<C: Chain, T: Notified<C> + Sync> Sync for Notifier<C, T> {}

impl<C: Chain, T: Notified<C>> Notifier<C, T> {
    /// Puts `value` on the list.
    pub(crate) fn new(value: impl PinInit<T, Error>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            value <- value,
            block <- Opaque::try_ffi_init(|block: *mut bindings::notifier_block| {
                // SAFETY: The field is valid for writes.
                unsafe {
                    block.write(bindings::notifier_block {
                        notifier_call: Some(Self::call),
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: The value is pinned, and the drop takes the block off the list.
                // `value` is initialised, so the block can be called.
                to_result(unsafe { C::register(block) })
            }),
            _chain: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `block` must be that of a `Self` that is on the list.
    unsafe extern "C" fn call(
        block: *mut bindings::notifier_block,
        _event: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: The caller guarantees that `block` is that of a `Self` on the list. `value` was
        // initialised before the block was registered, and a drop unregisters the block first.
        let value = unsafe {
            let this = kernel::container_of!(Opaque::cast_from(block), Self, block);
            &(*this).value
        };
        value.notify(NonNull::new(data));
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<C: Chain, T: Notified<C>> PinnedDrop for Notifier<C, T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type's invariants, `block` is on the list.
        unsafe { C::unregister(self.block.get()) };
    }
}

impl<C: Chain, T: Notified<C>> Deref for Notifier<C, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
