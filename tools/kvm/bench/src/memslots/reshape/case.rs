// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! How large the guests are, and what happens to them.

use std::fmt;

pub const MIB: u64 = 1 << 20;

/// Most vCPUs of a guest.
pub const MAX_VCPUS: u8 = 8;

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Size of the memory, all of which the guest has mapped, in bytes.
    pub size: u64,
    pub vcpus: u8,
}

impl Case {
    pub fn mib(self) -> u64 {
        self.size / MIB
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {} vCPUs", self.mib(), self.vcpus)
    }
}

/// How the slots are split or merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Not at all.
    Rest,
    /// By single ioctls of KVM's C code, while all vCPUs are paused.
    Paused,
    /// By one list.
    List,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::Rest, Method::Paused, Method::List];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Rest => "at rest",
            Method::Paused => "C, vCPUs paused",
            Method::List => "Rust, one list",
        })
    }
}

/// All guests, and how often each one's slots are updated by [`Method::Paused`] in
/// a round. With pausing, a guest takes a page fault on each page after each update,
/// so that large guests are measured less often.
pub fn cases(quick: bool, large: bool) -> Vec<(Case, usize)> {
    let case = |mib: u64, vcpus| Case {
        size: mib * MIB,
        vcpus,
    };
    let updates = |case: Case| match case.mib() {
        0..=64 => 8,
        65..=256 => 4,
        _ => 2,
    };
    let mut cases = Vec::new();
    if quick {
        cases.extend([case(64, 1), case(64, 2)]);
    } else {
        for mib in [64, 256] {
            cases.extend([1, 2, 4, MAX_VCPUS].map(|vcpus| case(mib, vcpus)));
        }
        let vcpus: &[u8] = if large { &[1, 2, 4, MAX_VCPUS] } else { &[2] };
        let sizes: &[u64] = if large { &[1024, 2048] } else { &[1024] };
        for &mib in sizes {
            cases.extend(vcpus.iter().map(|&vcpus| case(mib, vcpus)));
        }
    }
    cases
        .into_iter()
        .map(|case| (case, if quick { 2 } else { updates(case) }))
        .collect()
}
