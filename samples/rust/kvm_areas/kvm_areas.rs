// SPDX-License-Identifier: GPL-2.0-only
//! A guest of KVM that shares memory with its VMM.
//!
//! Linux in the VM registers areas and updates them; the VMM reads them, and no update leaves the
//! guest.
//!
//! | file | holds |
//! |---|---|
//! | `area.rs` | [`Area`](area::Area), which is what a driver of yours would use |
//! | `notifier.rs` | a value that is told of reboots and panics |
//! | `layout.rs` | what is in the areas; the VMM compiles this file too |
//! | `heartbeat.rs` | a heartbeat |
//! | `record.rs` | what remains of a guest that has died |
//! | `pressure.rs` | how much memory is left |
//! | `steal.rs` | steal time, which KVM itself serves |
//! | `mmio.rs` | what the heartbeat is compared with |
//!
//! Without areas, or if the VMM refuses one, the module says so and does without.
//! `/sys/kernel/debug/kvm_areas/state` has what the areas hold.

mod area;
mod heartbeat;
mod layout;
mod mmio;
mod notifier;
mod pressure;
mod record;
mod steal;

use kernel::{
    debugfs::Scope,
    fmt,
    interrupt::local_interrupt_disable,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::Relaxed,
        SpinLock, //
    },
    time::{
        Delta,
        NSEC_PER_MSEC, //
    },
    uaccess::UserSliceReader, //
};

use crate::{
    area::{
        Area,
        RegisterError,
        Shared, //
    },
    heartbeat::Heartbeat,
    mmio::Watchdog,
    pressure::Pressure,
    record::Record,
    steal::Steal, //
};

module! {
    type: Module,
    name: "kvm_areas",
    authors: ["Maintainers of KVM's guest-memory core"],
    description: "Memory areas shared with KVM",
    license: "GPL",
    params: {
        period_ms: u32 {
            default: 100,
            description: "Milliseconds between two heartbeats",
        },
        mmio_watchdog: u64 {
            default: 0,
            description: "Address of a register that each heartbeat also writes to, for comparison",
        },
        steal: bool {
            default: false,
            description: "Register steal time, which the kernel must not do itself",
        },
    },
}

/// Nanoseconds since boot; in any context.
fn now() -> u64 {
    // SAFETY: It may be called anywhere.
    unsafe { kernel::bindings::ktime_get_boot_fast_ns() }
}

struct Module {
    _state: Option<Pin<KBox<Scope<State>>>>,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        if !area::available() {
            pr_info!("there are no memory areas: nothing is shared\n");
            return Ok(Module { _state: None });
        }
        let state = Scope::dir(State::new(), c"kvm_areas", |state, dir| {
            dir.read_callback_file(c"state", state, &State::show);
            dir.write_only_callback_file(c"hang", state, &State::hang);
        });
        Ok(Module {
            _state: Some(KBox::pin_init(state, GFP_KERNEL)?),
        })
    }
}

/// Makes do without an area that the VMM does not want.
fn wanted<T>(what: &str, registered: Result<T, RegisterError>) -> Result<Option<T>> {
    match registered {
        Ok(area) => Ok(Some(area)),
        Err(RegisterError::Refused(why)) => {
            pr_info!("no {what}: {why}\n");
            Ok(None)
        }
        Err(RegisterError::Failed(e)) => {
            pr_err!("cannot register the {what}: {e:?}\n");
            Err(e)
        }
    }
}

/// Everything that is shared. The record is dropped last: it must be there if anything goes wrong.
#[pin_data]
struct State {
    steal: Option<Steal>,
    heartbeat: Heartbeat,
    record: Option<Record>,
    #[pin]
    busy: SpinLock<()>,
}

impl State {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            record: wanted("record", Area::register())?.map(Record::start).transpose()?,
            heartbeat: Self::heartbeat()?,
            steal: if module_parameters::steal.value() {
                wanted("steal time", Steal::register())?
            } else {
                None
            },
            busy <- new_spinlock!(()),
        })
    }

    fn heartbeat() -> Result<Heartbeat> {
        let period = module_parameters::period_ms.value();
        if period == 0 {
            pr_err!("period_ms is 0\n");
            return Err(EINVAL);
        }
        let area = wanted("heartbeat", Area::register())?;
        let pressure = wanted("memory pressure", Area::register())?.map(Pressure);
        let watchdog = match module_parameters::mmio_watchdog.value() {
            0 => None,
            gpa => Some(Watchdog::new(gpa)?),
        };
        Heartbeat::start(Delta::from_millis(period.into()), area, pressure, watchdog)
    }

    /// Reading `state`.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(record) = &self.record {
            let area = record.area();
            line(f, "record", area)?;
            writeln!(f, "  logged {}", area.logged.load(Relaxed))?;
        }
        let heart = self.heartbeat.heart();
        if let Some(area) = &heart.area {
            line(f, "heartbeat", area)?;
            writeln!(
                f,
                "  timer {} task {}",
                area.timer_beats.load(Relaxed),
                area.task_beats.load(Relaxed)
            )?;
        }
        if let Some(Pressure(area)) = &heart.pressure {
            line(f, "memory pressure", area)?;
            writeln!(
                f,
                "  total {} free {} available {}",
                area.total.load(Relaxed),
                area.free.load(Relaxed),
                area.available.load(Relaxed)
            )?;
        }
        if let Some(steal) = &self.steal {
            line(f, "steal time", &steal.0)?;
            writeln!(f, "  {} ns", steal.nanoseconds())?;
        }
        Ok(())
    }

    /// Writing "tasks MS" or "interrupts MS" to `hang` keeps tasks, or interrupts too, from this
    /// processor for so long, to show what a VMM sees of that. One writer at a time can.
    fn hang(&self, text: &mut UserSliceReader) -> Result {
        let mut buf = [0; 32];
        let text = {
            let len = text.len();
            let buf = buf.get_mut(..len).ok_or(EINVAL)?;
            text.read_slice(buf)?;
            core::str::from_utf8(buf).map_err(|_| EINVAL)?
        };
        let mut words = text.split_ascii_whitespace();
        let what = words.next().ok_or(EINVAL)?;
        let time: u64 = words.next().ok_or(EINVAL)?.parse().map_err(|_| EINVAL)?;
        if words.next().is_some() || time > MAX_HANG_MS {
            return Err(EINVAL);
        }
        let _interrupts = match what {
            "tasks" => None,
            "interrupts" => Some(local_interrupt_disable()),
            _ => return Err(EINVAL),
        };
        // No other task runs here while a spinlock is held. A second writer must not wait for it:
        // its processor would hang for as long, without interrupts, and longer than allowed.
        let _tasks = self.busy.try_lock().ok_or(EBUSY)?;
        let end = now().saturating_add(time * NSEC_PER_MSEC as u64);
        while now() < end {
            kernel::processor::cpu_relax();
        }
        Ok(())
    }
}

/// Less than what the kernel takes for a lockup.
const MAX_HANG_MS: u64 = 5_000;

/// What is the same of all areas.
fn line<T: Shared>(f: &mut fmt::Formatter<'_>, what: &str, area: &Area<T>) -> fmt::Result {
    writeln!(
        f,
        "{what}: type {:#x}, {} bytes at {:#x}, {}",
        T::TYPE,
        size_of::<T>(),
        area.gpa(),
        if area.registered() {
            "registered"
        } else {
            "not registered"
        }
    )
}
