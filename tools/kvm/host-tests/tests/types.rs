// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Tests of `rust/kvm/types.rs`.

use kvm_memory_host_tests::types::{Gfn, GfnRange};

#[test]
fn a_range_cannot_wrap_around_and_intersects() {
    let range = |start, end| GfnRange {
        start: Gfn(start),
        end: Gfn(end),
    };
    assert_eq!(GfnRange::new(Gfn(3), 4), Some(range(3, 7)));
    assert_eq!(
        GfnRange::new(Gfn(u64::MAX), 0),
        Some(range(u64::MAX, u64::MAX))
    );
    assert_eq!(GfnRange::new(Gfn(u64::MAX), 1), None);
    assert_eq!(range(3, 7).intersection(range(5, 9)), Some(range(5, 7)));
    assert_eq!(range(3, 7).intersection(range(4, 5)), Some(range(4, 5)));
    assert_eq!(range(3, 7).intersection(range(7, 9)), None);
    assert_eq!(range(7, 9).intersection(range(3, 7)), None);
    assert_eq!(range(3, 7).intersection(range(5, 5)), None);
}
