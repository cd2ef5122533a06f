// SPDX-License-Identifier: GPL-2.0-only

//! Carrying dirty bits from the slots that a batch removes to those that it adds.

use super::slot::Slot;

use crate::types::GfnRange;

use kernel::bitmap::Bitmap;

/// Carries the dirty bits of `gfns`, which both slots map, from `old` to `new`, as far as both log.
///
/// No reader sees `old` any more, so that no bit is set in its bitmap after it was carried. vCPUs may
/// set bits of `new` concurrently.
pub(super) fn carry(old: Slot<'_>, new: Slot<'_>, gfns: GfnRange) {
    let shared = |slot: Slot<'_>| slot.mapping().gfns.contains(gfns);
    let logs = |slot: Slot<'_>| !slot.dirty_bitmap().is_null();
    if [old, new]
        .into_iter()
        .all(|slot| shared(slot) && logs(slot))
    {
        // SAFETY: Both slots contain `gfns`, and the pointers to their bitmaps are not null.
        unsafe { or_bits(old, new, gfns) };
    }
}

/// Sets the bits for `gfns` in the bitmap of `to` that are set in the bitmap of `from`. vCPUs may
/// set bits of `to` concurrently.
///
/// # Safety
///
/// Both slots have a dirty bitmap, and contain `gfns`.
unsafe fn or_bits(from: Slot<'_>, to: Slot<'_>, gfns: GfnRange) {
    let npages = gfns.npages() as usize;
    /// Returns the bitmap up to the end of `gfns`, and the number of the bit of their first frame.
    ///
    /// # Safety
    ///
    /// The slot has a dirty bitmap, and contains `gfns`, which are `npages` frames.
    unsafe fn bits(slot: Slot<'_>, gfns: GfnRange, npages: usize) -> (&Bitmap, usize) {
        let start = (gfns.start.0 - slot.mapping().gfns.start.0) as usize;
        // SAFETY: The caller guarantees that the slot has a bitmap and contains `gfns`. The bitmap
        // has a bit for each page of the slot, at most i32::MAX of them. It is freed with the slot,
        // which `slot` borrows. Everybody else accesses bits atomically.
        let bitmap = unsafe { Bitmap::from_raw(slot.dirty_bitmap(), start + npages) };
        (bitmap, start)
    }
    // SAFETY: The caller guarantees that both slots have a bitmap and contain `gfns`.
    let ((source, source_start), (target, target_start)) =
        unsafe { (bits(from, gfns, npages), bits(to, gfns, npages)) };

    let mut page = 0;
    while page < npages {
        let Some(bit) = source.next_bit(source_start + page) else {
            break;
        };
        page = bit - source_start;
        target.set_bit_atomic(target_start + page);
        page += 1;
    }
}

#[kernel::macros::kunit_tests(kvm_memory_dirty)]
mod tests {
    use super::*;

    use crate::{
        memslots::{
            slot::SlotBox,
            types::{
                Mapping,
                SlotFlags,
                SlotId, //
            }, //
        },
        types::{
            Gfn,
            Hva,
            PAGE_SHIFT, //
        }, //
    };

    use kernel::prelude::*;

    /// Makes a slot that maps `gfns` and logs to `bitmap`.
    fn logging(gfns: (u64, u64), bitmap: &mut [usize]) -> Result<SlotBox> {
        let mapping = Mapping {
            gfns: GfnRange {
                start: Gfn(gfns.0),
                end: Gfn(gfns.1),
            },
            hva: Hva(gfns.0 << PAGE_SHIFT),
            flags: SlotFlags::LOG_DIRTY,
        };
        let mut slot = SlotBox::new(SlotId { as_id: 0, id: 0 }, mapping)?;
        // SAFETY: Only the test uses the slot, and the bitmap outlives the test's last use of it.
        unsafe { (*slot.as_mut_ptr()).dirty_bitmap = bitmap.as_mut_ptr().cast() };
        Ok(slot)
    }

    #[test]
    fn dirty_bits_go_to_the_same_frames() -> Result {
        // A slot of frames 100..200 is split, so that 120..200 are a slot of their own. The dirty
        // frames are at the edges of the new slot and of the words of its bitmap.
        let (mut old, mut new) = ([0usize; 2], [0usize; 2]);
        for frame in [100, 119, 120, 183, 184, 199] {
            let bit = frame - 100;
            old[bit / 64] |= 1 << (bit % 64);
        }
        let from = logging((100, 200), &mut old)?;
        let to = logging((120, 200), &mut new)?;
        let (from, to) = (from.slot(), to.slot());
        let shared = from.mapping().gfns.intersection(to.mapping().gfns);
        carry(from, to, shared.ok_or(EINVAL)?);
        let dirty = |frame: usize| new[(frame - 120) / 64] & (1 << ((frame - 120) % 64)) != 0;
        for frame in 120..200 {
            assert_eq!(dirty(frame), [120, 183, 184, 199].contains(&frame));
        }
        Ok(())
    }
}
