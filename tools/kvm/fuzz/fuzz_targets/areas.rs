// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! Any command with any descriptor, of a guest with any memory, does what the oracle of the host tests says.

#![no_main]

use kvm_memory_host_tests::areas::command::Command;
use kvm_memory_host_tests::areas::descriptor::DESC_SIZE;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[path = "../../host-tests/tests/areas/guest.rs"]
mod guest;
#[path = "../../host-tests/tests/areas/oracle.rs"]
mod oracle;

use guest::{Guest, DESC, MEMORY, STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};

const PAGE: u64 = 4096;

/// Pages of [`MEMORY`]: the first, and how many.
type Pages = (u16, u8);

#[derive(Arbitrary, Debug)]
struct Input {
    register: bool,
    /// Where the descriptor is, if not at [`DESC`].
    at: Option<u64>,
    desc: [u8; DESC_SIZE],
    holes: Vec<Pages>,
    protected: Vec<Pages>,
    secret: Vec<Pages>,
    /// What the MSRs hold that the vCPU has.
    msrs: [Option<u64>; 3],
    filter: [bool; 3],
    vmm_serves: bool,
}

fn ranges(pages: &[Pages]) -> Vec<std::ops::Range<u64>> {
    pages
        .iter()
        .map(|(first, nr)| {
            let start = MEMORY.start + u64::from(*first) * PAGE;
            start..start + u64::from(*nr) * PAGE
        })
        .collect()
}

fuzz_target!(|input: Input| {
    let msrs = [WALL_CLOCK, SYSTEM_TIME, STEAL_TIME];
    let guest = Guest {
        desc: input.desc,
        holes: ranges(&input.holes),
        protected: ranges(&input.protected),
        secret: ranges(&input.secret),
        msrs: msrs
            .into_iter()
            .zip(input.msrs)
            .filter_map(|(msr, value)| Some((msr, value?)))
            .collect(),
        filter: msrs
            .into_iter()
            .zip(input.filter)
            .filter_map(|(msr, denied)| denied.then_some(msr))
            .collect(),
        vmm_serves: input.vmm_serves,
        ..Guest::default()
    };
    let command = if input.register {
        Command::Register
    } else {
        Command::Unregister
    };
    oracle::check(command, input.at.unwrap_or(DESC), &guest);
});
