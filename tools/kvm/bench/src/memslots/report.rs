// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The table and the picture of memslot updates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::figures::{digits, times, Spread};
use crate::memslots::measure::{Case, Method, Operation};
use crate::picture::{self, Line, Panel};

/// What the clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Micros,
    /// One for each nanosecond.
    Instructions,
}

/// All measured times, one per round: the time of an operation on all slots of
/// a case together.
#[derive(Default)]
pub struct Results(BTreeMap<(Operation, Case, Method), Vec<Duration>>);

impl Results {
    pub fn add(&mut self, case: Case, method: Method, times: [Duration; 4]) {
        for (operation, time) in Operation::ALL.into_iter().zip(times) {
            self.0
                .entry((operation, case, method))
                .or_default()
                .push(time);
        }
    }

    /// The cases with or without a vCPU, by their number of slots.
    fn cases(&self, vcpu: bool) -> BTreeSet<Case> {
        let cases = self.0.keys().map(|&(_, case, _)| case);
        cases.filter(|case| case.vcpu == vcpu).collect()
    }

    /// Time for all slots together, in microseconds.
    fn total(&self, operation: Operation, case: Case, method: Method) -> Result<Spread> {
        self.0
            .get(&(operation, case, method))
            .and_then(|times| Spread::of(times.iter().map(|t| t.as_secs_f64() * 1e6).collect()))
            .with_context(|| format!("nothing measured: {operation}, {case}, {method}"))
    }

    /// The range of an axis for the times of all slots together.
    fn milliseconds(&self) -> Range<f64> {
        picture::axis(self.0.values().flatten().map(|t| t.as_secs_f64() * 1e3))
    }

    /// Time for one slot, in microseconds.
    fn per_slot(&self, operation: Operation, case: Case, method: Method) -> Result<Spread> {
        let total = self.total(operation, case, method)?;
        let n = f64::from(case.slots);
        Ok(Spread {
            median: total.median / n,
            min: total.min / n,
            max: total.max / n,
        })
    }
}

/// One row for each operation and case.
pub fn table(results: &Results, unit: Unit, rounds: u32) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel version")?;
    let mut out = String::new();
    writeln!(
        out,
        "{}: median (least .. most) of {rounds} rounds; Linux {}",
        match unit {
            Unit::Micros => "Time per slot in µs",
            Unit::Instructions => "Thousands of instructions per slot",
        },
        kernel.trim()
    )?;
    write!(out, "\n{:<12}{:>6}", "", "slots")?;
    for method in Method::ALL {
        write!(out, "  {method:>24}")?;
    }
    writeln!(out, "  {:>8}  {:>8}", "Rust : C", "C : list")?;

    for (vcpu, heading) in [(false, "no vCPU"), (true, "a vCPU running")] {
        if results.cases(vcpu).is_empty() {
            continue;
        }
        writeln!(out, "{heading}")?;
        for operation in Operation::ALL {
            for case in results.cases(vcpu) {
                row(&mut out, results, operation, case)?;
            }
        }
    }
    writeln!(
        out,
        "\nRust : C    single ioctls of the Rust core against those of the C code; 1 is level\n\
         C : list    how many times as fast a list is as single ioctls of the C code"
    )?;
    Ok(out)
}

fn row(out: &mut String, results: &Results, operation: Operation, case: Case) -> Result<()> {
    write!(out, "  {operation:<10}{:>6}", case.slots)?;
    for method in Method::ALL {
        let time = results.per_slot(operation, case, method)?;
        let range = format!("({} .. {})", digits(time.min), digits(time.max));
        write!(out, "  {:>7} {range:<16}", digits(time.median))?;
    }
    let [c, rust, list] = Method::ALL.map(|m| results.per_slot(operation, case, m));
    let (c, rust, list) = (c?.median, rust?.median, list?.median);
    let rust = format!("{:.2}", rust / c);
    writeln!(out, "  {rust:>8}  {:>8}", times(c / list))?;
    Ok(())
}

/// A panel for each operation: time for all slots together over their number,
/// without a vCPU.
pub fn picture(results: &Results, file: &Path) -> Result<()> {
    let [delete, create, move_to, flags] = Operation::ALL.map(|o| panel(results, o));
    picture::draw(
        file,
        "Time to update all slots of a VM",
        Method::ALL.map(|m| (m.to_string(), style(m))),
        &[delete?, create?, move_to?, flags?],
    )
}

fn style(method: Method) -> ShapeStyle {
    match method {
        // Wide, as the Rust line covers it where both are level.
        Method::SingleC => picture::ORANGE.stroke_width(5),
        Method::SingleRust => picture::BLUE.stroke_width(2),
        Method::List => picture::GREEN.stroke_width(3),
    }
}

fn panel(results: &Results, operation: Operation) -> Result<Panel> {
    let cases = results.cases(false);
    let most = *cases.last().context("nothing measured")?;
    let [c, _, list] = Method::ALL.map(|m| results.total(operation, most, m));
    let faster = times(c?.median / list?.median);
    let line = |method| {
        let points = cases.iter().map(|&case| {
            let total = results.total(operation, case, method)?;
            Ok((f64::from(case.slots), total.bar(1e3)))
        });
        Ok(Line {
            style: style(method),
            points: points.collect::<Result<_>>()?,
        })
    };
    Ok(Panel {
        caption: format!(
            "{operation}: {} slots in a list {faster} times as fast",
            most.slots
        ),
        x_desc: "slots".to_owned(),
        y_desc: "ms",
        y: results.milliseconds(),
        lines: Method::ALL.into_iter().map(line).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All slots take 640 us in C, 320 us in Rust, 10 us as a list.
    fn results() -> Results {
        let mut results = Results::default();
        for (method, us) in Method::ALL.into_iter().zip([640, 320, 10]) {
            for (vcpu, slots) in [(false, 1), (false, 64), (true, 64)] {
                let times = [Duration::from_micros(us); 4];
                results.add(Case { vcpu, slots }, method, times);
            }
        }
        results
    }

    #[test]
    fn table_has_costs_per_slot_and_their_ratios() -> Result<()> {
        let table = table(&results(), Unit::Micros, 1)?;
        let row = table
            .lines()
            .find(|line| line.starts_with("  move          64"))
            .context("no such row")?;
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!((words[2], words[6], words[10]), ("10.0", "5.00", "0.156"));
        assert_eq!(words[14..], ["0.50", "64"]);
        assert_eq!(
            table.lines().filter(|l| l.starts_with("  delete")).count(),
            3
        );
        Ok(())
    }

    #[test]
    fn picture_has_every_panel_and_method() -> Result<()> {
        let file = std::env::temp_dir().join(format!("bench-{}.svg", std::process::id()));
        picture(&results(), &file)?;
        let svg = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        for label in Operation::ALL.map(|o| o.to_string()) {
            assert!(svg.contains(&label), "{label}");
        }
        for label in Method::ALL.map(|m| m.to_string()) {
            assert!(svg.contains(&label), "{label}");
        }
        Ok(())
    }
}
