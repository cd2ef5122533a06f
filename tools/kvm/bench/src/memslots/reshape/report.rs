// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The tables and the picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::case::{Case, Method};
use super::endure::{Counts, Endured, Operation};
use super::measure::{Sample, Sweep};
use crate::figures::{digits, draw_legend, times, Spread};

/// All samples, those of all rounds together. Times are in milliseconds.
#[derive(Default)]
pub struct Results(BTreeMap<(Case, Method), Figures>);

/// One value for each update, or for each update and vCPU.
#[derive(Default)]
struct Figures {
    update: Vec<f64>,
    /// For each vCPU.
    stall: Vec<f64>,
    /// For each vCPU: by how much longer it takes than at rest to write to as many
    /// pages. Below 0 if it happens to take less time.
    lost: Vec<f64>,
    /// Time until all vCPUs have written to all of their memory.
    all: Vec<f64>,
    faults: Vec<f64>,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value that a share of all values, from 0 to 1, does not exceed.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

impl Results {
    /// Adds the samples of one guest.
    pub fn add(&mut self, case: Case, samples: Vec<(Method, Sample)>) -> Result<()> {
        let rest: Vec<_> = samples
            .iter()
            .filter(|(method, _)| *method == Method::Rest)
            .flat_map(|(_, sample)| &sample.sweeps)
            .map(|sweep| ms(sweep.time) / f64::from(sweep.pages))
            .collect();
        let page = quantile(&rest, 0.5).context("no samples at rest")?;
        for (method, sample) in samples {
            let figures = self.0.entry((case, method)).or_default();
            figures.update.push(ms(sample.update));
            figures.all.push(ms(sample.all()));
            figures.faults.push(sample.faults as f64);
            figures.stall.extend(sample.stalls.into_iter().map(ms));
            let lost = |sweep: Sweep| ms(sweep.time) - f64::from(sweep.pages) * page;
            figures.lost.extend(sample.sweeps.into_iter().map(lost));
        }
        Ok(())
    }

    fn cases(&self) -> BTreeSet<Case> {
        self.0.keys().map(|&(case, _)| case).collect()
    }

    fn get(&self, case: Case, method: Method) -> Result<&Figures> {
        self.0
            .get(&(case, method))
            .with_context(|| format!("nothing measured: {case}, {method}"))
    }

    fn spread(
        &self,
        (case, method): (Case, Method),
        values: impl Fn(&Figures) -> &Vec<f64>,
    ) -> Result<Spread> {
        let figures = self.get(case, method)?;
        Spread::of(values(figures).clone()).context("nothing measured")
    }
}

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
pub fn table(results: &Results, rounds: u32) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "Memslots of a running guest are split and merged, in {rounds} rounds; times in ms\n\n\
         Stall: the longest time that a vCPU takes for a page, around an update\n\
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
    writeln!(
        out,
        "\np50, p99    of all updates and vCPUs, whose number is in parentheses\n\
         at rest     without an update, measured in turn with the updates\n\
         page faults with pausing: the median; with lists: the most\n\
         update      median (least .. most); pausing includes the time to pause and to resume\n"
    )?;
    Ok(out)
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

/// What disturbed a guest that should not have been, if anything did: a page fault, or
/// a window of a list without pages that go.
pub fn disturbance(endured: &[Endured]) -> Option<(Operation, Counts)> {
    let mut all = endured.iter().flat_map(|endured| &endured.counts);
    all.find(|(operation, counts)| {
        let windows = counts.windows + counts.invalid_copies + counts.gone_pages;
        counts.faults > 0 || (*operation != Operation::Shrink && windows > 0)
    })
    .copied()
}

/// Stall and time over size and number of vCPUs.
pub fn picture(results: &Results, file: &Path) -> Result<()> {
    let root = SVGBackend::new(file, (960, 720)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(
        "A guest whose memslots are split and merged",
        ("sans-serif", 24),
    )?;
    let (legend, panels) = root.split_vertically(28);
    draw_legend(
        &legend,
        250,
        8,
        Method::ALL.map(|m| (m.to_string(), style(m))),
    )?;
    let cases = results.cases();
    // The number of vCPUs with which most sizes were measured, and the size with which
    // most numbers of vCPUs were: the smallest such number, the largest such size.
    let count = |f: &dyn Fn(&Case) -> bool| cases.iter().filter(|&case| f(case)).count();
    let vcpus = cases
        .iter()
        .map(|case| case.vcpus)
        .max_by_key(|&vcpus| (count(&|case| case.vcpus == vcpus), u8::MAX - vcpus))
        .context("nothing measured")?;
    let size = cases
        .iter()
        .map(|case| case.size)
        .max_by_key(|&size| (count(&|case| case.size == size), size))
        .context("nothing measured")?;
    let by_size: Vec<_> = cases.iter().filter(|case| case.vcpus == vcpus).collect();
    let by_vcpus: Vec<_> = cases.iter().filter(|case| case.size == size).collect();
    let mib = by_vcpus[0].mib();
    let stall = |figures: &Figures| {
        let quantiles = [0.5, 0.99, 1.0].map(|share| quantile(&figures.stall, share));
        Some((quantiles[0]?, quantiles[1]?, quantiles[2]?))
    };
    let all = |figures: &Figures| {
        let spread = Spread::of(figures.all.clone())?;
        Some((spread.min, spread.median, spread.max))
    };
    type Value<'a> = &'a dyn Fn(&Figures) -> Option<(f64, f64, f64)>;
    let [stall, all]: [Value<'_>; 2] = [&stall, &all];
    let panels = panels.split_evenly((2, 2));
    for (panel, (what, value), (label, cases)) in [
        (
            &panels[0],
            ("stall of a vCPU (p50, p99, longest)", stall),
            (format!("MiB, {vcpus} vCPUs"), &by_size),
        ),
        (
            &panels[1],
            ("stall of a vCPU (p50, p99, longest)", stall),
            (format!("vCPUs, {mib} MiB"), &by_vcpus),
        ),
        (
            &panels[2],
            ("time until all memory is written to", all),
            (format!("MiB, {vcpus} vCPUs"), &by_size),
        ),
        (
            &panels[3],
            ("time until all memory is written to", all),
            (format!("vCPUs, {mib} MiB"), &by_vcpus),
        ),
    ] {
        let by_size = label.starts_with("MiB");
        let points = |method| {
            cases
                .iter()
                .map(|&&case| {
                    let x = if by_size {
                        case.mib()
                    } else {
                        case.vcpus.into()
                    };
                    let y = value(results.get(case, method)?).context("nothing measured")?;
                    Ok((x as f64, y))
                })
                .collect::<Result<Vec<_>>>()
        };
        let lines = Method::ALL
            .into_iter()
            .map(|method| Ok((method, points(method)?)))
            .collect::<Result<Vec<_>>>()?;
        draw_panel(panel, what, &label, &lines)?;
    }
    root.present()?;
    Ok(())
}

/// Colours that colour-blind readers can tell apart.
fn style(method: Method) -> ShapeStyle {
    match method {
        // Wide, as the line of the list covers it where both are level.
        Method::Rest => RGBColor(0xe6, 0x9f, 0x00).stroke_width(5),
        Method::Paused => RGBColor(0x00, 0x52, 0x92).stroke_width(2),
        Method::List => RGBColor(0x00, 0x9e, 0x73).stroke_width(2),
    }
}

/// A line for a method: x, and y as low, middle and high.
type Line = (Method, Vec<(f64, (f64, f64, f64))>);

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    x_desc: &str,
    lines: &[Line],
) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let limits = |values: &mut dyn Iterator<Item = f64>| -> Range<f64> {
        let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), v| {
            (min.min(v), max.max(v))
        });
        min.max(1e-3) * 0.7..max.max(2e-3) * 1.5
    };
    let x = limits(&mut points().map(|&(x, _)| x));
    let y = limits(&mut points().flat_map(|&(_, (low, _, high))| [low, high]));
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale().base(2.0), y.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(x_desc)
        .y_desc("ms")
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|ms| format!("{ms}"))
        .label_style(("sans-serif", 13))
        .draw()?;
    for (method, points) in lines {
        let style = style(*method);
        let middle = points.iter().map(|&(x, (_, middle, _))| (x, middle));
        chart.draw_series(LineSeries::new(middle, style))?;
        chart.draw_series(points.iter().map(|&(x, (low, middle, high))| {
            ErrorBar::new_vertical(x, low, middle, high, style.filled(), 8)
        }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::case::{cases, MIB};
    use super::*;

    /// With pausing, stall and faults grow with the size; with the list nothing does.
    fn results() -> Result<Results> {
        let mut results = Results::default();
        for case in cases(false) {
            for method in [Method::Paused, Method::List] {
                let mut samples = Vec::new();
                for i in 0..10 {
                    let rest = Duration::from_millis(100);
                    let sample = |update, stall, sweep, faults| Sample {
                        update,
                        stalls: vec![stall; case.vcpus.into()],
                        sweeps: (0..case.vcpus)
                            .map(|_| Sweep {
                                time: sweep,
                                pages: 1000,
                            })
                            .collect(),
                        faults,
                    };
                    let stall = Duration::from_millis(1 + u64::from(i == 0));
                    samples.push((Method::Rest, sample(Duration::ZERO, stall, rest, 0)));
                    let update = Duration::from_millis(3);
                    samples.push((
                        method,
                        match method {
                            Method::Paused => {
                                let pages = case.size / 4096;
                                let time = Duration::from_micros(50 * pages);
                                sample(update * 4, stall * 8, rest + time, pages)
                            }
                            _ => sample(update, stall, rest + update, 0),
                        },
                    ));
                }
                results.add(case, samples)?;
            }
        }
        Ok(results)
    }

    #[test]
    fn quantiles_are_values() {
        let values: Vec<_> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values, 1.0), Some(200.0));
        assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn tables_have_a_row_for_each_case() -> Result<()> {
        let table = table(&results()?, 1)?;
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

    #[test]
    fn only_a_list_that_shrinks_may_have_a_window() {
        let endured = |operation, faults, windows| {
            let counts = Counts {
                lists: 5,
                faults,
                windows,
                ..Counts::default()
            };
            [Endured {
                huge: false,
                counts: vec![(operation, counts)],
                huge_pages: (0, 0),
                steps: MIB,
            }]
        };
        assert!(disturbance(&endured(Operation::Split, 0, 0)).is_none());
        assert!(disturbance(&endured(Operation::Shrink, 0, 5)).is_none());
        assert!(disturbance(&endured(Operation::Shrink, 1, 5)).is_some());
        assert!(disturbance(&endured(Operation::Merge, 0, 1)).is_some());
    }

    #[test]
    fn picture_has_every_panel_and_method() -> Result<()> {
        let file = std::env::temp_dir().join(format!("bench-reshape-{}.svg", std::process::id()));
        picture(&results()?, &file)?;
        let svg = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        for label in Method::ALL.map(|m| m.to_string()) {
            assert!(svg.contains(&label), "{label}");
        }
        assert_eq!(svg.matches("MiB, 2 vCPUs").count(), 2);
        assert_eq!(svg.matches("vCPUs, 256 MiB").count(), 2);
        Ok(())
    }
}
