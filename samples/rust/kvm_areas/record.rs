// SPDX-License-Identifier: GPL-2.0-only
//! What the VMM finds in memory after the guest has died.
//!
//! The record is a console: it holds the end of the kernel log at any time, so that it is there
//! after a triple fault too, of which the guest is not told. After a panic it also says why.

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed,
        Release, //
    },
    types::Opaque, //
};

use crate::{
    area::{
        Area,
        Shared, //
    },
    layout::{
        self,
        LOG_SIZE, //
    },
    notifier::{
        Notified,
        Notifier,
        Panic, //
    },
    now, //
};

pub(crate) type Contents = layout::Record<Atomic<u64>, Atomic<i8>>;

// SAFETY: Integers are valid whatever they are.
unsafe impl Shared for Contents {
    const TYPE: u32 = layout::RECORD;
}

/// A record that is kept until it is dropped.
pub(crate) struct Record(Pin<KBox<Notifier<Panic, Console>>>);

impl Record {
    pub(crate) fn start(area: Area<Contents>) -> Result<Self> {
        let console = Console::new(area);
        Ok(Self(KBox::pin_init(Notifier::new(console), GFP_KERNEL)?))
    }

    pub(crate) fn area(&self) -> &Area<Contents> {
        &self.0.area
    }
}

/// A console that writes to the record.
///
/// # Invariants
///
/// `console` is registered from the end of the initialisation to the drop.
#[pin_data(PinnedDrop)]
struct Console {
    area: Area<Contents>,
    #[pin]
    console: Opaque<bindings::console>,
}

// SAFETY: `console` is the kernel's, and any thread may take it off the list.
unsafe impl Send for Console {}
// SAFETY: A shared reference gives access to `area` only, which is `Sync`: `console` is the kernel's,
// and nothing refers to it.
unsafe impl Sync for Console {}

impl Console {
    fn new(area: Area<Contents>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            area,
            console <- Opaque::try_ffi_init(|console: *mut bindings::console| {
                let mut name = [0; 16];
                name[..4].copy_from_slice(&b"area".map(|c| c as c_char));
                // SAFETY: The field is valid for writes. It is pinned, `area` precedes it in the
                // initialisation, and the drop takes the console off the list.
                unsafe {
                    console.write(bindings::console {
                        name,
                        write: Some(Self::write),
                        // With the log so far, from any processor at any time.
                        flags: (bindings::cons_flags_CON_PRINTBUFFER
                            | bindings::cons_flags_CON_ENABLED
                            | bindings::cons_flags_CON_ANYTIME) as c_short,
                        index: -1,
                        ..pin_init::zeroed()
                    });
                    bindings::register_console(console);
                }
                Ok::<(), Error>(())
            }),
        })
    }

    /// Called with the console lock held, or, in a panic, on the last processor that runs.
    ///
    /// # Safety
    ///
    /// `console` must be that of a `Self` that is registered, and `text` have `len` bytes.
    unsafe extern "C" fn write(console: *mut bindings::console, text: *const c_char, len: c_uint) {
        // SAFETY: The caller guarantees that `console` is that of a `Self` that is registered. `area`
        // was initialised before the console was registered, and a drop unregisters the console
        // first.
        let area = unsafe {
            let this = kernel::container_of!(Opaque::cast_from(console), Self, console);
            &*(*this).area
        };
        // SAFETY: The caller guarantees that `text` has `len` bytes.
        let text = unsafe { core::slice::from_raw_parts(text.cast::<i8>(), len as usize) };
        let mut logged = area.logged.load(Relaxed);
        for &byte in text {
            if let Some(at) = area.log.get((logged % LOG_SIZE as u64) as usize) {
                at.store(byte, Relaxed);
            }
            logged = logged.wrapping_add(1);
        }
        area.logged.store(logged, Release);
    }
}

impl Notified<Panic> for Console {
    fn notify(&self, reason: Option<NonNull<c_void>>) {
        if let Some(reason) = reason {
            // SAFETY: This chain's data is the formatted reason for the panic.
            let reason = unsafe { CStr::from_char_ptr(reason.as_ptr().cast_const().cast()) };
            // The last byte stays 0.
            let room = self
                .area
                .reason
                .split_last()
                .map_or(&[][..], |(_, room)| room);
            for (at, &byte) in room.iter().zip(reason.to_bytes()) {
                at.store(byte as i8, Relaxed);
            }
        }
        self.area.time.store(now(), Relaxed);
        self.area.state.store(layout::PANICKED, Release);
    }
}

#[pinned_drop]
impl PinnedDrop for Console {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type's invariants, `console` is registered.
        unsafe { bindings::unregister_console(self.console.get()) };
    }
}
