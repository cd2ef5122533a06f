// SPDX-License-Identifier: GPL-2.0-only

//! The three phases of a batch: check, prepare, commit.
//!
//! * *check* ([`super::check`]) is pure. It decides what the entries mean, or finds the first one
//!   that would fail.
//! * *prepare* ([`Prepared::new`]) allocates. Nothing is visible yet, and dropping [`Prepared`]
//!   undoes it.
//! * *commit* ([`Prepared::commit`]) has three steps. *Invalidate* replaces every slot that is deleted
//!   or moved with an INVALID copy, by one swap, and takes from the guest what goes. Page faults on
//!   INVALID slots retry, while KVM's own accesses continue through the copies. A batch in which
//!   nothing goes skips this step. *Publish* makes the final slots the active ones, by one swap.
//!   *Finish* updates the VM's counts, calls the architecture, and frees.
//!
//! # Why reading through an INVALID slot is safe
//!
//! A reader that accesses guest memory holds `kvm->srcu` from the look-up of the slot to the last
//! access, or looks it up again if the generation has changed. The INVALID copy maps the same memory
//! as the old slot. The second swap waits until no reader uses an INVALID copy. So nobody writes to
//! memory that only an old slot mapped after the batch has returned, and all earlier writes count as
//! made before the batch.

use super::{
    changes::{
        Changes,
        Prepared, //
    },
    check::{
        self,
        Origin,
        Scratch, //
    },
    few::Few,
    last_log::StartedLogs,
    locks::SlotsLocked,
    memfd::Memfds,
    rank_set::RankSet,
    types::{
        Entry,
        Spaces, //
    },
    view::ActiveSlots, //
};

use kernel::{
    bindings::kvm_memory_report,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// Number of entries from which an index of all slots costs less than looking up each entry's slot
/// in the hash table. The exact value is uncritical: near it, both are fast.
const INDEX_FROM: usize = 256;

/// Checks a batch and carries it out. `scratch` is working memory for `entries`.
///
/// Borrows `slots` mutably, because it frees slots: the caller cannot keep slots that it has looked
/// up before.
///
/// Returns the error of the first entry that would have failed, or one of preparing the batch. The
/// slots then are what they were, with one exception: `EFAULT` where last dirty bits could not be
/// copied to userspace after all.
pub(super) fn run(
    slots: &mut SlotsLocked<'_>,
    entries: &[Entry],
    origin: Origin,
    scratch: Scratch<'_>,
) -> Result {
    // Reading the clock takes as long as much of a single update.
    let start = slots
        .traces_batches()
        .then(|| (Instant::<Monotonic>::now(), slots.swaps()));
    let mut report = kvm_memory_report {
        entries: entries.len() as u32,
        failed: -1,
        ..Default::default()
    };
    let result = carry_out(slots, entries, origin, scratch, &mut report);
    if let Some((start, swaps)) = start {
        report.swaps = slots.swaps().wrapping_sub(swaps) as u32;
        report.duration_ns = start.elapsed().as_nanos() as u64;
        report.error = result.err().map_or(0, |error| error.to_errno());
        slots.trace_batch(&report);
    }
    result
}

/// The phases of [`run`]. Sets in `report` what is known about the batch.
fn carry_out(
    slots: &SlotsLocked<'_>,
    entries: &[Entry],
    origin: Origin,
    scratch: Scratch<'_>,
    report: &mut kvm_memory_report,
) -> Result {
    let mut memfds = Memfds::new();
    memfds.look_up(slots, entries, origin)?;
    let mut by_file = Few::from_elem(0, memfds.len())?;
    let words = RankSet::words(memfds.len());
    let mut file_ranks = Few::from_elem(0, words)?;
    let scratch = Scratch {
        by_file: &mut by_file,
        file_ranks: &mut file_ranks,
        ..scratch
    };
    let mut changes = Changes::new();
    let (prepared, started) = {
        // Both are dropped before the first step that frees slots.
        let indexed = entries.iter().filter(|_| entries.len() >= INDEX_FROM);
        let indexed = Spaces::of(indexed.map(|entry| entry.slot_id().as_id));
        let active = ActiveSlots::new(slots, &memfds, indexed)?;
        let plan = check::check(&active, entries, origin, scratch).map_err(|refused| {
            report.failed = refused.index as i32;
            Error::from(refused.error)
        })?;
        let started = StartedLogs::new(&plan).map_err(|(entry, error)| {
            report.failed = entry as i32;
            error
        })?;
        let mut net_changes = plan.net_changes().peekable();
        if net_changes.peek().is_none() {
            return started.copy(slots);
        }
        let prepared = Prepared::new(
            &mut changes,
            &active,
            &plan,
            net_changes,
            origin == Origin::List,
        )?;
        (prepared, started)
    };
    prepared.report(report);
    prepared.commit(&started)
}
