// SPDX-License-Identifier: GPL-2.0-only

//! A memslot update from its entries to the end: check, prepare, commit.
//!
//! * *check* ([`super::check`]) is pure: it finds out what the entries mean, or the first that
//!   would fail.
//! * *prepare* ([`Prepared::new`]) allocates. Nothing is visible yet; dropping [`Prepared`] undoes
//!   it.
//! * *commit* puts an INVALID copy in the place of every slot that goes away or moves (one swap),
//!   and flushes their mappings ([`Prepared::invalidate`]); makes the final slots the active ones
//!   (one swap, [`Invalidated::publish`]); and counts, tells the architecture, and frees
//!   ([`Published::finish`]). From the first swap on page faults on INVALID slots retry, and KVM's
//!   own accesses go on through the copies. Without such a slot there is no first swap.
//!
//! [`Invalidated::publish`]: super::changes::Invalidated::publish
//! [`Published::finish`]: super::changes::Published::finish
//!
//! # Why reading through an INVALID slot is safe
//!
//! A reader that accesses guest memory holds `kvm->srcu` from looking up the slot to the last
//! access, or looks it up again if the generation changed. The INVALID copy names the same memory
//! as the slot did. When the second swap has waited, no reader that found an INVALID copy is left,
//! so nothing can be written to memory that only an old slot named once the batch is over; all such
//! writes count as made before it.

use super::changes::Prepared;
use super::check;
use super::check::Origin;
use super::check::Scratch;
use super::locked::Slots;
use super::locked::SlotsLocked;
use super::new_slot::GuestMemfd;
use super::types::Entry;
use kernel::prelude::*;

/// Length of a list from which on an index of all slots costs less than looking its slots up one by
/// one. Where exactly does not matter: both are fast there.
const INDEX_FROM: usize = 256;

/// Has a batch checked and carried out.
///
/// Slots that the caller looked up before cannot be used after it, for it frees slots: it borrows
/// `slots` mutably.
pub(super) fn run(
    slots: &mut SlotsLocked<'_>,
    entries: &[Entry],
    origin: Origin,
    memfd: Option<GuestMemfd>,
    scratch: Scratch<'_>,
) -> Result {
    let swaps = slots.swaps();
    let mut changes = 0;
    let result = carry_out(slots, entries, origin, memfd, scratch, &mut changes);
    let swaps = slots.swaps().wrapping_sub(swaps);
    slots.trace_batch(entries.len(), changes, swaps, result);
    result
}

/// `changes` receives the number of changes once it is known.
fn carry_out(
    slots: &SlotsLocked<'_>,
    entries: &[Entry],
    origin: Origin,
    memfd: Option<GuestMemfd>,
    scratch: Scratch<'_>,
    changes: &mut usize,
) -> Result {
    let prepared = {
        // Neither outlives this block: what follows frees slots.
        let slots = Slots::new(slots, entries.len() >= INDEX_FROM)?;
        let plan = check::check(&slots, entries, origin, scratch)
            .map_err(|refused| Error::from(refused.error))?;
        if plan.net_changes().next().is_none() {
            return Ok(());
        }
        Prepared::new(&slots, &plan, memfd)?
    };
    *changes = prepared.len();
    prepared.invalidate()?.publish().finish();
    Ok(())
}
