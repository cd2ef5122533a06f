// SPDX-License-Identifier: GPL-2.0-only

//! Carrying dirty bits from the slots that a batch deletes or moves to those that it adds.

use super::{
    list::List,
    slot::Slot,
    types::Mapping, //
};

use crate::types::{
    GfnRange,
    PAGE_SHIFT, //
};

use kernel::bitmap::Bitmap;

/// Carries dirty bits to `new` from the slots in `before` that this batch deletes or moves, for the
/// pages that both map at the same gfn and the same host address.
///
/// `before` is an inactive list that still has the slots from before the last swap. No reader sees
/// it any more, so that no bit is set in their bitmaps after it was carried.
pub(super) fn carry(before: List<'_>, new: Slot<'_>) {
    let to = new.mapping();
    if new.dirty_bitmap().is_null() {
        return;
    }
    let mut rest = to.gfns;
    while let Some(old) = before.first_in(rest) {
        let from = old.mapping();
        let Some(shared) = from.gfns.intersection(rest) else {
            return;
        };
        let same_host = hva_of_frame_0(from) == hva_of_frame_0(to);
        if old.is_invalid() && same_host && !old.dirty_bitmap().is_null() {
            // SAFETY: Both bitmaps were found not to be null. Both slots contain `shared`, the
            // intersection of their frames.
            unsafe { or_bits(old, new, shared) };
        }
        rest.start = shared.end;
    }
}

/// Returns the host address that frame 0 would have if the mapping extended to it. Two mappings put
/// the frames that they share at the same addresses if the results are equal, and only then.
fn hva_of_frame_0(mapping: Mapping) -> u64 {
    let bytes = mapping.gfns.start.0 << PAGE_SHIFT;
    mapping.hva.0.wrapping_sub(bytes)
}

/// Sets the bits for `gfns` in the bitmap of `to` that are set in the bitmap of `from`. vCPUs may
/// set bits of `to` concurrently.
///
/// # Safety
///
/// Both slots have a dirty bitmap, and contain `gfns`.
unsafe fn or_bits(from: Slot<'_>, to: Slot<'_>, gfns: GfnRange) {
    let npages = (gfns.end.0 - gfns.start.0) as usize;
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

    // All bits are set already if the VM uses KVM_DIRTY_LOG_INITIALLY_SET.
    if target.next_zero_bit(target_start).is_none() {
        return;
    }
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
                SlotFlags,
                SlotId, //
            }, //
        },
        types::{
            Gfn,
            Hva, //
        }, //
    };

    use kernel::prelude::*;

    /// Makes a slot that maps `gfns`, at host addresses that put frame 0 at `hva_of_frame_0`, and
    /// logs to `bitmap`.
    fn logging(gfns: (u64, u64), hva_of_frame_0: u64, bitmap: &mut [usize]) -> Result<SlotBox> {
        let mapping = Mapping {
            gfns: GfnRange {
                start: Gfn(gfns.0),
                end: Gfn(gfns.1),
            },
            hva: Hva(hva_of_frame_0.wrapping_add(gfns.0 << PAGE_SHIFT)),
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
        let from = logging((100, 200), 0x10000, &mut old)?;
        let to = logging((120, 200), 0x10000, &mut new)?;
        let (from, to) = (from.slot(), to.slot());
        assert_eq!(hva_of_frame_0(from.mapping()), hva_of_frame_0(to.mapping()));

        let shared = from.mapping().gfns.intersection(to.mapping().gfns);
        // SAFETY: `logging` gave both slots a bitmap with a bit for each frame. Both contain the
        // intersection of their frames.
        unsafe { or_bits(from, to, shared.ok_or(EINVAL)?) };
        let dirty = |frame: usize| new[(frame - 120) / 64] & (1 << ((frame - 120) % 64)) != 0;
        for frame in 120..200 {
            assert_eq!(dirty(frame), [120, 183, 184, 199].contains(&frame));
        }
        Ok(())
    }
}
