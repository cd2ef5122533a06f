// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The table of address spaces.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::figures::{digits, times, Spread};
use crate::gmap::measure::Changes;

/// Values of rows, in the order in which the rows came first. A row has a value for
/// each column and round.
#[derive(Default)]
struct Rows(Vec<(String, Vec<Vec<f64>>)>);

impl Rows {
    fn add(&mut self, name: &str, values: &[f64]) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, rounds)) => rounds.push(values.to_vec()),
            None => self.0.push((name.to_owned(), vec![values.to_vec()])),
        }
    }

    fn spread(&self, name: &str, column: usize) -> Result<Spread> {
        let (_, rounds) = self
            .0
            .iter()
            .find(|(n, _)| n == name)
            .with_context(|| format!("nothing measured: {name}"))?;
        let values = rounds.iter().filter_map(|row| row.get(column).copied());
        Spread::of(values.collect()).with_context(|| format!("nothing measured: {name}"))
    }

    fn write(&self, out: &mut String, columns: usize) -> Result<()> {
        for (name, _) in &self.0 {
            write!(out, "  {name:<34}")?;
            for column in 0..columns {
                let spread = self.spread(name, column)?;
                let range = format!("({} .. {})", digits(spread.min), digits(spread.max));
                write!(out, "  {:>7} {range:<16}", digits(spread.median))?;
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        Ok(())
    }
}

/// All that was measured.
#[derive(Default)]
pub struct Report {
    changes: Rows,
    single: Rows,
    kib: Rows,
    notifier: Rows,
}

impl Report {
    pub fn changes(&mut self, name: &str, times: Changes) {
        self.changes.add(name, &times);
    }

    pub fn add(&mut self, name: &str, time: f64) {
        self.single.add(name, &[time]);
    }

    pub fn add_kib(&mut self, name: &str, kib: f64) {
        self.kib.add(name, &[kib]);
    }

    pub fn notifier(&mut self, worlds: u64, times: [f64; 3]) {
        self.notifier.add(&format!("{worlds} worlds"), &times);
    }

    pub fn table(&self, rounds: u32) -> Result<String> {
        let mut out = format!(
            "\nAddress spaces of vCPUs, in µs: median (least .. most) of {rounds} rounds\n\n\
             time for each call                     map into a hole           map over it               unmap\n"
        );
        self.changes.write(&mut out, 3)?;
        out.push_str("\nfaults and worlds\n");
        self.single.write(&mut out, 1)?;
        let total = |names: [&str; 2]| -> Result<f64> {
            let [create, destroy] = names.map(|name| self.single.spread(name, 0));
            Ok(create?.median + destroy?.median)
        };
        let vm = total(["create a VM, a memslot, a vCPU", "destroy them"])?;
        let world = total(["create a world", "destroy it, with its VM"])?;
        let reuse = self
            .single
            .spread("another world on the same vCPU", 0)?
            .median;
        writeln!(
            out,
            "  VM : world   {}   VM : another world on the same vCPU   {}",
            times(vm / world),
            times(vm / reuse)
        )?;
        out.push_str("\nthe kernel's memory, in KiB\n");
        self.kib.write(&mut out, 1)?;
        out.push_str(
            "\nto take a page away (MADV_DONTNEED)    in no world               in one                    in all\n",
        );
        self.notifier.write(&mut out, 3)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_each_row_with_its_median() -> Result<()> {
        let mut report = Report::default();
        for round in [1.0, 3.0, 2.0] {
            report.changes("1 of 1 MiB", [10.0 * round, 20.0, 30.0]);
            report.add("create a world", 50.0 * round);
            report.add("destroy it, with its VM", 100.0);
            report.add("another world on the same vCPU", 10.0);
            report.add("create a VM, a memslot, a vCPU", 1500.0);
            report.add("destroy them", 500.0);
            report.add_kib("a world", 40.0);
            report.notifier(8, [1.0, 2.0, 4.0 * round]);
        }
        let table = report.table(3)?;
        let row = |name: &str| -> Result<Vec<&str>> {
            let row = table
                .lines()
                .find(|line| line.trim_start().starts_with(name));
            Ok(row.context("no such row")?.split_whitespace().collect())
        };
        assert_eq!(row("1 of 1 MiB")?[4..8], ["20.0", "(10.0", "..", "30.0)"]);
        assert_eq!(row("8 worlds")?[10..], ["8.00", "(4.00", "..", "12.0)"]);
        let ratios = row("VM : world")?;
        assert_eq!((ratios[3], ratios[ratios.len() - 1]), ("10", "200"));
        Ok(())
    }
}
