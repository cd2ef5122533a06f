// SPDX-License-Identifier: GPL-2.0-only
//! A heartbeat that the VMM reads from memory: no beat leaves the guest.
//!
//! A timer beats in interrupt context and queues a work item that beats as well. Where the first
//! counter moves and the second one does not, something keeps the processor from its tasks. Where
//! neither moves, interrupts are off, or the vCPU does not run.

use kernel::{
    bindings, impl_has_hr_timer,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    time::{
        hrtimer::{
            ArcHrTimerHandle,
            HrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart,
            RelativeMode, //
        },
        Delta,
        Monotonic, //
    },
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

use crate::{
    area::{
        Area,
        Shared, //
    },
    layout,
    mmio::Watchdog,
    now,
    pressure::Pressure, //
};

pub(crate) type Contents = layout::Heartbeat<Atomic<u64>>;

// SAFETY: An integer is valid whatever it is.
unsafe impl Shared for Contents {
    const TYPE: u32 = layout::HEARTBEAT;
}

/// What beats.
#[pin_data]
pub(crate) struct Heart {
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    work: Work<Self>,
    period: Delta,
    pub(crate) area: Option<Area<Contents>>,
    pub(crate) pressure: Option<Pressure>,
    watchdog: Option<Watchdog>,
}

/// A heart that beats until this is dropped.
pub(crate) struct Heartbeat {
    timer: Option<ArcHrTimerHandle<Heart>>,
    heart: Arc<Heart>,
}

impl Heartbeat {
    /// Each beat also updates `pressure` and pets `watchdog`.
    pub(crate) fn start(
        period: Delta,
        area: Option<Area<Contents>>,
        pressure: Option<Pressure>,
        watchdog: Option<Watchdog>,
    ) -> Result<Self> {
        if let Some(area) = &area {
            area.period.store(period.as_nanos() as u64, Relaxed);
        }
        let heart = Arc::pin_init(
            pin_init!(Heart {
                timer <- HrTimer::new(),
                work <- new_work!("kvm_areas::Heart"),
                period,
                area,
                pressure,
                watchdog,
            }),
            GFP_KERNEL,
        )?;
        Ok(Self {
            timer: Some(heart.clone().start(period)),
            heart,
        })
    }

    pub(crate) fn heart(&self) -> &Heart {
        &self.heart
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // The timer queues the work, so it must end first.
        self.timer = None;
        // SAFETY: The work item is initialised, and `self.heart` keeps it. After this no code of
        // this module runs for it.
        unsafe { bindings::flush_work(Work::raw_get(&raw const self.heart.work)) };
    }
}

impl HrTimerCallback for Heart {
    type Pointer<'a> = Arc<Self>;

    fn run(
        this: ArcBorrow<'_, Self>,
        mut context: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        if let Some(area) = &this.area {
            area.timer_time.store(now(), Relaxed);
            area.timer_beats
                .store(area.timer_beats.load(Relaxed).wrapping_add(1), Relaxed);
        }
        if let Some(watchdog) = &this.watchdog {
            watchdog.pet();
        }
        // Fails if the last beat is still queued: tasks do not get to run.
        let _ = workqueue::system().enqueue(Arc::from(this));
        context.forward_now(this.period);
        HrTimerRestart::Restart
    }
}

impl WorkItem for Heart {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(area) = &this.area {
            area.task_time.store(now(), Relaxed);
            area.task_beats
                .store(area.task_beats.load(Relaxed).wrapping_add(1), Relaxed);
        }
        if let Some(pressure) = &this.pressure {
            pressure.update();
        }
    }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Heart {
        mode: RelativeMode<Monotonic>, field: self.timer
    }
}

impl_has_work! {
    impl HasWork<Self> for Heart { self.work }
}
