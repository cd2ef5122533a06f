// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The table of memory areas.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

use crate::areas::case::{Method, Sample};
use crate::figures::{digits, times, Spread};
use crate::flavour::Flavour;

/// All samples, one per round.
#[derive(Default)]
pub struct Results(BTreeMap<(Method, &'static str), Vec<Sample>>);

impl Results {
    pub fn add(&mut self, method: Method, flavour: Flavour, sample: Sample) {
        let samples = self.0.entry((method, flavour.name())).or_default();
        samples.push(sample);
    }

    fn spread(
        &self,
        method: Method,
        flavour: Flavour,
        value: impl Fn(&Sample) -> f64,
    ) -> Option<Spread> {
        let samples = self.0.get(&(method, flavour.name()))?;
        Spread::of(samples.iter().map(value).collect())
    }

    /// Microseconds for each time.
    fn micros(&self, method: Method, flavour: Flavour) -> Option<Spread> {
        self.spread(method, flavour, |sample| sample.nanos / 1e3)
    }
}

/// A row for each method, and the ratios that matter.
pub fn table(results: &Results, rounds: u32) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "Memory areas: time in \u{b5}s for each time that a guest does it, median (least .. most) of \
         {rounds} rounds\n"
    )?;
    writeln!(
        out,
        "{:<38}{:>24}{:>24}{:>8}",
        "", "C code", "Rust core", "exits"
    )?;
    for method in Method::ALL {
        write!(out, "{method:<38}")?;
        for flavour in [Flavour::C, Flavour::Rust] {
            let cell = results.micros(method, flavour).map_or(String::new(), |s| {
                format!(
                    "{} ({} .. {})",
                    digits(s.median),
                    digits(s.min),
                    digits(s.max)
                )
            });
            write!(out, "{cell:>24}")?;
        }
        let exits = results
            .spread(method, Flavour::Rust, |sample| sample.exits)
            .with_context(|| format!("nothing measured: {method}"))?;
        writeln!(out, "{:>8.2}", exits.median)?;
    }
    writeln!(out)?;
    for (what, (method, flavour), (base, base_flavour)) in [
        (
            "area that KVM serves : MSR",
            (Method::Kvm, Flavour::Rust),
            (Method::Msr, Flavour::Rust),
        ),
        (
            "area that the VMM serves : MSR filter",
            (Method::Vmm, Flavour::Rust),
            (Method::Filter, Flavour::Rust),
        ),
        (
            "a guest without areas, Rust core : C code",
            (Method::Plain, Flavour::Rust),
            (Method::Plain, Flavour::C),
        ),
    ] {
        let of = |method, flavour| {
            results
                .micros(method, flavour)
                .with_context(|| format!("nothing measured: {method}"))
        };
        let ratio = of(method, flavour)?.median / of(base, base_flavour)?.median;
        writeln!(out, "{what:<42}{:>6}", times(ratio))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_times_and_their_ratios() -> Result<()> {
        let mut results = Results::default();
        for method in Method::ALL {
            for flavour in [Flavour::C, Flavour::Rust] {
                if flavour == Flavour::C && !method.works_in_c() {
                    continue;
                }
                let nanos = match method {
                    Method::Plain | Method::Msr => 2_000.0,
                    Method::Kvm => 2_500.0,
                    Method::Filter => 20_000.0,
                    Method::Vmm => 15_000.0,
                    Method::Heartbeat => 2.0,
                };
                let exits = if method == Method::Heartbeat {
                    0.0
                } else {
                    1.0
                };
                results.add(method, flavour, Sample { nanos, exits });
            }
        }
        let table = table(&results, 1)?;
        for ratio in ["1.25", "0.75", "1.00"] {
            assert!(
                table.lines().any(|line| line.ends_with(ratio)),
                "{ratio}: {table}"
            );
        }
        assert!(
            table
                .lines()
                .any(|line| line.starts_with("heartbeat") && line.ends_with("0.00")),
            "{table}"
        );
        Ok(())
    }
}
