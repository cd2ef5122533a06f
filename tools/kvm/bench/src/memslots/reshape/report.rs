// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The tables.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::case::Method;
use super::endure::Endured;
use super::results::{quantile, Results};
use crate::figures::{digits, times, Spread};

/// "p50 / p99 / longest".
fn quantiles(values: &[f64]) -> Result<String> {
    let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|share| quantile(values, share));
    let [p50, p99, longest] = [p50, p99, longest].map(|value| value.map(signed));
    let all = p50.zip(p99).zip(longest).context("nothing measured")?;
    let ((p50, p99), longest) = all;
    Ok(format!("{p50:>6} {p99:>6} {longest:>7}"))
}

/// Three significant digits of a value that may be negative.
fn signed(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", digits(value.abs()))
}

/// "median (least .. most)".
fn range(spread: Spread) -> String {
    let range = format!("({} .. {})", digits(spread.min), digits(spread.max));
    format!("{:>6} {range:<17}", digits(spread.median))
}

/// Three tables: stall, lost progress, and time.
pub fn tables(results: &Results, rounds: u32) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "Memslots of a running guest are split and merged, in {rounds} rounds; times in ms\n"
    )?;
    stalls(&mut out, results)?;
    lost_progress(&mut out, results)?;
    durations(&mut out, results)?;
    writeln!(
        out,
        "\np50, p99    of all updates and vCPUs, whose number is in parentheses\n\
         at rest     without an update, measured in turn with the updates\n\
         page faults with pausing: the median; with lists: the most\n\
         update      median (least .. most); pausing includes the time to pause and to resume\n"
    )?;
    Ok(out)
}

fn stalls(out: &mut String, results: &Results) -> Result<()> {
    writeln!(
        out,
        "Stall: the longest time that a vCPU takes for a page, around an update\n\
         {:>5} {:>5}  {:<30}  {:<30}  {:<30}  {:>9}",
        "", "", "at rest", "C, vCPUs paused", "Rust, one list", "p99, list"
    )?;
    let columns = format!("{:>6} {:>6} {:>7} {:>8}", "p50", "p99", "longest", "(of)");
    writeln!(
        out,
        "{:>5} {:>5}  {columns}  {columns}  {columns}  {:>9}",
        "MiB", "vCPUs", ": at rest"
    )?;
    for case in results.cases() {
        write!(out, "{:>5} {:>5}", case.mib(), case.vcpus)?;
        for method in Method::ALL {
            let stall = &results.get(case, method)?.stall;
            let of = format!("({})", stall.len());
            write!(out, "  {} {of:>8}", quantiles(stall)?)?;
        }
        let p99 = |method| -> Result<f64> {
            quantile(&results.get(case, method)?.stall, 0.99).context("nothing measured")
        };
        let (rest, list) = (p99(Method::Rest)?, p99(Method::List)?);
        writeln!(out, "  {:>9}", times(list / rest))?;
    }
    Ok(())
}

fn lost_progress(out: &mut String, results: &Results) -> Result<()> {
    writeln!(
        out,
        "\nLost progress: by how much longer than at rest a vCPU takes to write to all of its memory\n\
         {:>5} {:>5}  {:<21}  {:<21}  {:<21}  {:<23}",
        "", "", "at rest", "C, vCPUs paused", "Rust, one list", "page faults per update"
    )?;
    let columns = format!("{:>6} {:>6} {:>7}", "p50", "p99", "longest");
    writeln!(
        out,
        "{:>5} {:>5}  {columns}  {columns}  {columns}  {:>11} {:>11}",
        "MiB", "vCPUs", "paused", "list"
    )?;
    for case in results.cases() {
        write!(out, "{:>5} {:>5}", case.mib(), case.vcpus)?;
        for method in Method::ALL {
            let lost = &results.get(case, method)?.lost;
            write!(out, "  {}", quantiles(lost)?)?;
        }
        let [_, paused, list] = Method::ALL.map(|m| results.spread((case, m), |f| &f.faults));
        let (paused, list) = (paused?.median, list?.max);
        writeln!(out, "  {paused:>11.0} {list:>11}")?;
    }
    Ok(())
}

fn durations(out: &mut String, results: &Results) -> Result<()> {
    writeln!(
        out,
        "\nTime of an update, and from its start until all memory has been written to\n\
         {:>5} {:>5}  {:<49}  {:<74}  {:>8}",
        "", "", "update", "all memory", "paused"
    )?;
    writeln!(
        out,
        "{:>5} {:>5}  {:<24} {:<24}  {:<24} {:<24} {:<24}  {:>8}",
        "MiB",
        "vCPUs",
        "C, vCPUs paused",
        "Rust, one list",
        "at rest",
        "C, vCPUs paused",
        "Rust, one list",
        ": list"
    )?;
    for case in results.cases() {
        let [_, paused, list] = Method::ALL.map(|m| results.spread((case, m), |f| &f.update));
        write!(
            out,
            "{:>5} {:>5}  {} {}",
            case.mib(),
            case.vcpus,
            range(paused?),
            range(list?)
        )?;
        let [rest, paused, list] = Method::ALL.map(|m| results.spread((case, m), |f| &f.all));
        let (rest, paused, list) = (rest?, paused?, list?);
        writeln!(
            out,
            "  {} {} {}  {:>8}",
            range(rest),
            range(paused),
            range(list),
            times(paused.median / list.median)
        )?;
    }
    Ok(())
}

/// What KVM counted while guests endured lists, a row for each operation.
pub fn endurance(endured: &[Endured]) -> Result<String> {
    let mut out = String::new();
    for Endured {
        huge,
        counts,
        huge_pages,
        steps,
    } in endured
    {
        let pages = if *huge { "2 MiB" } else { "4 KiB" };
        let lists: u64 = counts.iter().map(|(_, counts)| counts.lists).sum();
        writeln!(
            out,
            "{lists} lists reshape the slots of a guest with pages of {pages}, which writes to {steps} pages meanwhile\n\
             {:<16} {:>6} {:>12} {:>8} {:>15} {:>11}",
            "list", "lists", "page faults", "windows", "INVALID slots", "pages gone"
        )?;
        for (operation, counts) in counts {
            writeln!(
                out,
                "{operation:<16} {:>6} {:>12} {:>8} {:>15} {:>11}",
                counts.lists,
                counts.faults,
                counts.windows,
                counts.invalid_copies,
                counts.gone_pages
            )?;
        }
        let (before, after) = huge_pages;
        writeln!(
            out,
            "mappings of 2 MiB before and after: {before}, {after}\n"
        )?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn tables_have_a_row_for_each_case() -> Result<()> {
        let table = tables(&results()?, 1)?;
        let rows: Vec<Vec<_>> = table
            .lines()
            .filter(|line| line.starts_with("   64     2"))
            .map(|line| line.split_whitespace().skip(2).collect())
            .collect();
        let [stall, lost, time] = &rows[..] else {
            panic!("{table}");
        };
        assert_eq!(stall[..4], ["1.00", "2.00", "2.00", "(40)"]);
        assert_eq!(stall[4..8], ["8.00", "16.0", "16.0", "(20)"]);
        assert_eq!(stall[12..], ["1.00"]);
        assert_eq!(lost[3..6], ["819", "819", "819"]);
        assert_eq!(lost[6..], ["3.00", "3.00", "3.00", "16384", "0"]);
        assert_eq!((time[0], time[4]), ("12.0", "3.00"));
        assert_eq!((time[8], time[12], time[16]), ("100", "919", "103"));
        assert_eq!(time[20..], ["8.92"]);
        Ok(())
    }
}
