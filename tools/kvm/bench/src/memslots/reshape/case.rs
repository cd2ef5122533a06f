// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! How large the guests are, and what happens to them.

use std::fmt;
use std::str::FromStr;

pub const MIB: u64 = 1 << 20;

/// Most vCPUs of a guest.
pub const MAX_VCPUS: u8 = 8;
/// Most memory of a guest: what lies between its other memory and the devices below
/// 4 GiB.
const MAX_MIB: u16 = 2048;

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

/// "1024x2": a guest with 1 GiB and two vCPUs.
impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('x');
        let (mib, vcpus) = parts.ok_or("not a size in MiB, an x and a number of vCPUs")?;
        let number = |text: &str| text.parse::<u16>().map_err(|e| format!("'{text}': {e}"));
        let (mib, vcpus) = (number(mib)?, number(vcpus)?);
        if mib == 0 || mib > MAX_MIB {
            return Err(format!("not 1 to {MAX_MIB} MiB"));
        }
        match u8::try_from(vcpus) {
            Ok(vcpus @ 1..=MAX_VCPUS) => Ok(Case {
                size: u64::from(mib) * MIB,
                vcpus,
            }),
            _ => Err(format!("not 1 to {MAX_VCPUS} vCPUs")),
        }
    }
}

/// The guests that are measured if the caller does not name others.
pub fn cases(quick: bool) -> Vec<Case> {
    let shapes: &[(u64, u8)] = if quick {
        &[(64, 1), (64, 2)]
    } else {
        &[
            (64, 1),
            (64, 2),
            (64, 4),
            (64, 8),
            (256, 1),
            (256, 2),
            (256, 4),
            (256, 8),
            (1024, 2),
        ]
    };
    shapes
        .iter()
        .map(|&(mib, vcpus)| Case {
            size: mib * MIB,
            vcpus,
        })
        .collect()
}

/// How often a guest's slots are updated by [`Method::Paused`] in a round. The guest
/// then takes a page fault on each page after each update, so that large guests are
/// measured less often.
pub fn updates(case: Case, quick: bool) -> usize {
    match case.mib() {
        _ if quick => 2,
        0..=64 => 8,
        65..=256 => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_size_and_vcpus() {
        let case = Case {
            size: 1 << 30,
            vcpus: 2,
        };
        assert_eq!("1024x2".parse(), Ok(case));
        for text in [
            "1024", "1024x", "x2", "0x2", "3000x2", "64x0", "64x9", "64x2x2",
        ] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
