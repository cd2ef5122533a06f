// SPDX-License-Identifier: GPL-2.0-only

//! Dirty bits that go from the slots that a batch takes away to those that it brings.

use super::list::List;
use super::slot::Slot;
use super::types::Mapping;
use crate::types::GfnRange;
use crate::types::PAGE_SHIFT;
use kernel::bitmap::Bitmap;

/// Sets the bits in the dirty bitmap of `new` for pages that a slot of `before` logged, which this
/// batch deleted or moved, and that `new` has at the same gfn and the same host address.
///
/// No reader sees `before` any more, so that all bits are there.
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
            or_bits(old, new, shared);
        }
        rest.start = shared.end;
    }
}

/// Where frame 0 would be if the mapping reached there: equal for mappings that agree on the frames
/// that they share.
fn hva_of_frame_0(mapping: Mapping) -> u64 {
    let bytes = mapping.gfns.start.0 << PAGE_SHIFT;
    mapping.hva.0.wrapping_sub(bytes)
}

/// Sets the bits for `gfns` in the bitmap of `to` that are set in the bitmap of `from`. Both slots
/// have a bitmap, and contain `gfns`.
fn or_bits(from: Slot<'_>, to: Slot<'_>, gfns: GfnRange) {
    let npages = (gfns.end.0 - gfns.start.0) as usize;
    // The bitmap up to the last of `gfns`, and the bit of the first.
    fn bits(slot: Slot<'_>, gfns: GfnRange, npages: usize) -> (&Bitmap, usize) {
        let start = (gfns.start.0 - slot.mapping().gfns.start.0) as usize;
        // SAFETY: The slot has a bitmap of a bit a page, at most i32::MAX of them, and contains
        // `gfns`. Bitmaps are freed with their slots only, which stay allocated while `slot`
        // borrows them, and all others change bits atomically.
        let bitmap = unsafe { Bitmap::from_raw(slot.dirty_bitmap(), start + npages) };
        (bitmap, start)
    }
    let (source, source_start) = bits(from, gfns, npages);
    let (target, target_start) = bits(to, gfns, npages);

    // A log that starts with all bits set has nothing to gain.
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
    use crate::memslots::slot::SlotBox;
    use crate::memslots::types::SlotFlags;
    use crate::memslots::types::SlotId;
    use crate::types::Gfn;
    use crate::types::Hva;
    use kernel::prelude::*;

    /// A slot on `gfns` with host memory such that frame 0 would be at `hva_of_frame_0`, whose
    /// dirty bitmap is `bitmap`.
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
        // SAFETY: The slot is private to the test, which the bitmap outlives.
        unsafe { (*slot.as_mut_ptr()).dirty_bitmap = bitmap.as_mut_ptr().cast() };
        Ok(slot)
    }

    #[test]
    fn dirty_bits_go_to_the_same_frames() -> Result {
        // Frames 100..200 are split: 120..200 become a slot of their own. Pages 100, 119, 120, 183,
        // 184 and 199 are dirty.
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
        or_bits(from, to, shared.ok_or(EINVAL)?);
        let dirty = |frame: usize| new[(frame - 120) / 64] & (1 << ((frame - 120) % 64)) != 0;
        for frame in 120..200 {
            assert_eq!(dirty(frame), [120, 183, 184, 199].contains(&frame));
        }
        Ok(())
    }
}
