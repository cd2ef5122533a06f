// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What is measured: which memory is populated, and by what.

use std::fmt;

pub const MIB: u64 = 1 << 20;

/// The size for all measurements; the other sizes are for some of them.
const SMALL: u64 = 256 * MIB;

/// What populates the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The guest writes to every page.
    Guest,
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFault,
    /// `KVM_MAP_MEMORY` for writing.
    Map,
}

impl Method {
    pub const ALL: [Method; 3] = [Method::Guest, Method::PreFault, Method::Map];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Guest => "guest writes",
            Method::PreFault => "KVM_PRE_FAULT_MEMORY",
            Method::Map => "KVM_MAP_MEMORY",
        })
    }
}

/// The state of the memory before, and what happens at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing has touched the memory yet.
    Fresh,
    /// The VMM has written to all of it.
    Present,
    /// Nothing has touched the memory yet. It gets the contents of a buffer: by
    /// `source`, or the VMM copies them before it populates.
    Source,
    /// As [`Kind::Present`], and another thread updates another memslot at the
    /// same time.
    Updates,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Fresh, Kind::Present, Kind::Source, Kind::Updates];

    pub fn methods(self) -> &'static [Method] {
        match self {
            Kind::Fresh | Kind::Present => &Method::ALL,
            Kind::Source | Kind::Updates => &[Method::PreFault, Method::Map],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Fresh => "fresh memory",
            Kind::Present => "memory that is present",
            Kind::Source => "memory with contents from a buffer",
            Kind::Updates => "memory that is present, under memslot updates",
        })
    }
}

/// How much memory is populated, in which pages, and by how many vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Whether the memory consists of pages of 2 MiB.
    pub huge: bool,
    /// Each vCPU has a thread and an equal part of the memory.
    pub vcpus: u8,
    /// Bytes.
    pub size: u64,
}

impl Shape {
    pub fn mib(self) -> u64 {
        self.size / MIB
    }

    pub fn page_size(self) -> &'static str {
        if self.huge {
            "2 MiB"
        } else {
            "4 KiB"
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mib, pages, vcpus) = (self.mib(), self.page_size(), self.vcpus);
        write!(f, "{mib} MiB in pages of {pages}, {vcpus} vCPUs")
    }
}

/// All cases: every size with one vCPU, every number of vCPUs with one size.
pub fn cases(quick: bool) -> Vec<(Kind, Shape)> {
    let shape = |huge, vcpus, mib| Shape {
        huge,
        vcpus,
        size: mib * MIB,
    };
    let shapes: Vec<_> = if quick {
        let shapes = [(false, 1), (false, 2), (true, 1)];
        shapes.map(|(huge, vcpus)| shape(huge, vcpus, 64)).into()
    } else {
        [false, true]
            .into_iter()
            .flat_map(|huge| {
                [(1, 64), (1, 256), (1, 2048), (2, 256), (4, 256)]
                    .map(|(vcpus, mib)| shape(huge, vcpus, mib))
            })
            .collect()
    };
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        for &shape in &shapes {
            let small = shape.size == SMALL || quick;
            if matches!(kind, Kind::Fresh | Kind::Present) || small {
                cases.push((kind, shape));
            }
        }
    }
    cases
}
