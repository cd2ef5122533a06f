// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! What it costs a guest to register a memory area, served by KVM or by the VMM, and to use it.

mod case;
mod guest;
mod report;
mod run;

pub use run::run;
