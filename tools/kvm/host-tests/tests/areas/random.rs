// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Random commands, checked against the oracle: arbitrary bytes, and bytes close to the rules.

use kvm_memory_host_tests::areas::command::{Command, Outcome};
use kvm_memory_host_tests::areas::descriptor::{Range, DESC_SIZE, MAX_SIZE};
use proptest::prelude::*;

use crate::guest::{descriptor, Guest, DESC, MEMORY, STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};
use crate::oracle::check;

const MSRS: [u32; 3] = [WALL_CLOCK, SYSTEM_TIME, STEAL_TIME];

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (MEMORY.start / 64..MEMORY.end / 64).prop_map(|line| line * 64),
        2 => MEMORY,
        2 => DESC - 70..DESC + 70,
        1 => Just(0u64),
        1 => (0..2u64 * u64::from(MAX_SIZE)).prop_map(|below| u64::MAX - below),
        1 => any::<u64>(),
    ]
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![
        prop::sample::select(vec![12, 32, 64]),
        prop::sample::select(vec![0, 1, 4096, MAX_SIZE, MAX_SIZE + 1, u32::MAX]),
        1..MAX_SIZE,
        any::<u32>(),
    ]
}

fn kind() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 1..4u32,
        1 => prop::sample::select(vec![0, 4, 0x7fff_ffff, 0x8000_0000, u32::MAX]),
        1 => any::<u32>(),
    ]
}

fn bytes() -> impl Strategy<Value = [u8; DESC_SIZE]> {
    prop_oneof![
        1 => any::<[u8; DESC_SIZE]>(),
        1 => (address(), prop::sample::select(vec![(1, 12), (2, 32), (3, 64)]))
            .prop_map(|(base, (kind, size))| descriptor(base, size, kind)),
        8 => (address(), size(), kind()).prop_map(|(base, size, kind)| descriptor(base, size, kind)),
        1 => (address(), size(), kind(), 17..DESC_SIZE, any::<u8>()).prop_map(
            |(base, size, kind, at, byte)| {
                let mut bytes = descriptor(base, size, kind);
                bytes[at] = byte;
                bytes
            }
        ),
    ]
}

fn ranges() -> impl Strategy<Value = Vec<std::ops::Range<u64>>> {
    prop::collection::vec(
        (MEMORY.start / 4096..MEMORY.end / 4096, 1..8u64)
            .prop_map(|(page, pages)| page * 4096..(page + pages) * 4096),
        0..3,
    )
}

fn guests() -> impl Strategy<Value = Guest> {
    (
        bytes(),
        [ranges(), ranges(), ranges()],
        prop::sample::subsequence(MSRS.to_vec(), 0..=3),
        prop::sample::subsequence(MSRS.to_vec(), 0..=3),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(desc, [holes, protected, secret], msrs, filter, (vmm_serves, same))| {
                let base = u64::from_le_bytes(desc[..8].try_into().expect("8 bytes"));
                Guest {
                    desc,
                    holes,
                    protected,
                    secret,
                    msrs: msrs
                        .iter()
                        .map(|msr| {
                            (
                                *msr,
                                if same {
                                    base | u64::from(*msr != WALL_CLOCK)
                                } else {
                                    0
                                },
                            )
                        })
                        .collect(),
                    filter,
                    vmm_serves,
                    ..Guest::default()
                }
            },
        )
}

fn desc_address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(DESC), 1 => Just(0u64), 2 => address()]
}

fn commands() -> impl Strategy<Value = Command> {
    prop::sample::select(vec![Command::Register, Command::Unregister])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_command_does_what_the_page_says(
        command in commands(),
        desc in desc_address(),
        before in guests(),
    ) {
        check(command, desc, &before);
    }

    #[test]
    fn ranges_overlap_if_they_share_a_byte(a in (0..200u64, 1..60u32), b in (0..200u64, 1..60u32)) {
        let range = |(base, size)| Range::new(base, size).expect("a range");
        let bytes = |(base, size): (u64, u32)| base..base + u64::from(size);
        let share = bytes(a).any(|byte| bytes(b).contains(&byte));
        prop_assert_eq!(range(a).overlaps(range(b)), share);
    }

    #[test]
    fn what_is_registered_can_be_unregistered(before in guests(), desc in desc_address()) {
        let mut guest = Guest { filter: vec![], ..before };
        if Command::Register.run(desc, &mut guest) == Outcome::Done && guest.result() == Some(0) {
            guest.steps.clear();
            prop_assert_eq!(Command::Unregister.run(desc, &mut guest), Outcome::Done);
            prop_assert_eq!(guest.result(), Some(0));
            guest.steps.clear();
            prop_assert_eq!(Command::Unregister.run(desc, &mut guest), Outcome::Done);
            prop_assert_eq!(guest.result(), Some(6));
        }
    }
}
