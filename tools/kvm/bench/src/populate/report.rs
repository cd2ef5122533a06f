// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The table and the picture of populating.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use kvm_memory_uapi::PAGE_SIZE;
use plotters::prelude::*;

use crate::figures::{digits, times, Spread};
use crate::picture::{self, Line, Panel};
use crate::populate::case::{Kind, Method, Shape};
use crate::populate::measure::{Sample, CHECKED};

/// All samples, one per round.
#[derive(Default)]
pub struct Results(BTreeMap<(Kind, Shape, Method), Vec<Sample>>);

impl Results {
    pub fn add(&mut self, kind: Kind, shape: Shape, method: Method, sample: Sample) {
        let samples = self.0.entry((kind, shape, method)).or_default();
        samples.push(sample);
    }

    fn shapes(&self, kind: Kind) -> BTreeSet<Shape> {
        let keys = self.0.keys().filter(|&&(other, _, _)| other == kind);
        keys.map(|&(_, shape, _)| shape).collect()
    }

    fn spread(
        &self,
        (kind, shape, method): (Kind, Shape, Method),
        value: impl Fn(&Sample) -> f64,
    ) -> Result<Spread> {
        self.0
            .get(&(kind, shape, method))
            .and_then(|samples| Spread::of(samples.iter().map(value).collect()))
            .with_context(|| format!("nothing measured: {kind}, {shape}, {method}"))
    }

    /// Thousands of pages of 4 KiB per second.
    fn rate(&self, kind: Kind, shape: Shape, method: Method) -> Result<Spread> {
        let pages = (shape.size / PAGE_SIZE) as f64;
        self.spread((kind, shape, method), |sample| {
            pages / sample.time.as_secs_f64() / 1e3
        })
    }

    /// The range of an axis for all rates.
    fn rates(&self) -> Range<f64> {
        let all = self.0.iter().flat_map(|(&(_, shape, _), samples)| {
            let pages = (shape.size / PAGE_SIZE) as f64;
            samples
                .iter()
                .map(move |sample| pages / sample.time.as_secs_f64() / 1e3)
        });
        picture::axis(all)
    }
}

fn with_range(spread: Spread) -> String {
    let range = format!("({} .. {})", digits(spread.min), digits(spread.max));
    format!("{:>7} {range:<16}", digits(spread.median))
}

/// One row for each kind of memory and shape.
pub fn table(results: &Results, rounds: u32) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "Populating guest memory, in thousands of 4 KiB pages per second: median (least .. most) \
         of {rounds} rounds;\n\
         faults: page faults of a guest that then writes to every page of the first {} MiB\n",
        CHECKED >> 20
    )?;
    write!(out, "{:<8}{:>6}{:>6}", "pages", "vCPUs", "MiB")?;
    for method in Method::ALL {
        write!(out, "  {method:>24}{:>8}", "faults")?;
    }
    writeln!(out, "  {:>9}  {:>14}", "MAP:guest", "MAP:PRE_FAULT")?;
    for kind in [Kind::Fresh, Kind::Present, Kind::Source] {
        writeln!(out, "{kind}")?;
        for shape in results.shapes(kind) {
            row(&mut out, results, kind, shape)?;
        }
    }
    writeln!(
        out,
        "\nMAP:guest, MAP:PRE_FAULT: how many times as fast KVM_MAP_MEMORY is\n\
         KVM_PRE_FAULT_MEMORY populates for reads only: it maps fresh memory to the zero page, \
         which is less\n\
         work than the others do, and the guest's writes fault nevertheless. With contents from a \
         buffer, it runs\n\
         after a memcpy, and KVM_MAP_MEMORY has the buffer as its source."
    )?;

    writeln!(
        out,
        "\n{}: a thread keeps changing another memslot's flags, with pauses of 2 ms",
        Kind::Updates
    )?;
    write!(out, "{:<8}{:>6}{:>6}", "pages", "vCPUs", "MiB")?;
    for method in Kind::Updates.methods() {
        write!(
            out,
            "  {method:>21} ms {:>8} {:>23}",
            "updates", "longest, ms"
        )?;
    }
    writeln!(out)?;
    for shape in results.shapes(Kind::Updates) {
        shape_columns(&mut out, shape)?;
        for &method in Kind::Updates.methods() {
            let key = (Kind::Updates, shape, method);
            let time = results.spread(key, |sample| sample.time.as_secs_f64() * 1e3)?;
            let updates = results.spread(key, |sample| sample.updates.into())?;
            let longest = results.spread(key, |sample| sample.longest.as_secs_f64() * 1e3)?;
            let (time, longest) = (with_range(time), with_range(longest));
            write!(out, "  {time} {:>8.0} {longest}", updates.median)?;
        }
        writeln!(out)?;
    }
    Ok(out)
}

fn shape_columns(out: &mut String, shape: Shape) -> Result<()> {
    let (pages, mib) = (shape.page_size(), shape.mib());
    write!(out, "  {pages:<6}{:>6}{mib:>6}", shape.vcpus)?;
    Ok(())
}

fn row(out: &mut String, results: &Results, kind: Kind, shape: Shape) -> Result<()> {
    shape_columns(out, shape)?;
    for method in Method::ALL {
        if !kind.methods().contains(&method) {
            write!(out, "  {:24}{:>8}", "", "")?;
            continue;
        }
        let rate = results.rate(kind, shape, method)?;
        let faults = results.spread((kind, shape, method), |sample| sample.faults as f64)?;
        write!(out, "  {}{:>8.0}", with_range(rate), faults.median)?;
    }
    let rate = |method| results.rate(kind, shape, method).map(|rate| rate.median);
    let map = rate(Method::Map)?;
    let ratio = |method| -> Result<String> {
        if kind.methods().contains(&method) {
            Ok(times(map / rate(method)?))
        } else {
            Ok(String::new())
        }
    };
    let (guest, pre_fault) = (ratio(Method::Guest)?, ratio(Method::PreFault)?);
    writeln!(out, "  {guest:>9}  {pre_fault:>14}")?;
    Ok(())
}

/// A panel for each kind of memory and size of pages: the rate over the size of
/// the memory, with one vCPU.
pub fn picture(results: &Results, file: &Path) -> Result<()> {
    let panel = |kind, huge| panel(results, kind, huge);
    picture::draw(
        file,
        "Populating guest memory, one vCPU",
        Method::ALL.map(|m| (m.to_string(), style(m))),
        &[
            panel(Kind::Fresh, false)?,
            panel(Kind::Fresh, true)?,
            panel(Kind::Present, false)?,
            panel(Kind::Present, true)?,
        ],
    )
}

fn style(method: Method) -> ShapeStyle {
    match method {
        Method::Guest => picture::ORANGE,
        Method::PreFault => picture::BLUE,
        Method::Map => picture::GREEN,
    }
    .stroke_width(3)
}

fn panel(results: &Results, kind: Kind, huge: bool) -> Result<Panel> {
    let mut shapes = results.shapes(kind);
    shapes.retain(|shape| shape.vcpus == 1 && shape.huge == huge);
    let most = shapes.last().context("nothing measured")?;
    let line = |&method| {
        let points = shapes.iter().map(|&shape| {
            let rate = results.rate(kind, shape, method)?;
            Ok((shape.mib() as f64, rate.bar(1.0)))
        });
        Ok(Line {
            style: style(method),
            points: points.collect::<Result<_>>()?,
        })
    };
    Ok(Panel {
        caption: format!("{kind}, pages of {}", most.page_size()),
        x_desc: "MiB".to_owned(),
        y_desc: "thousand pages/s",
        y: results.rates(),
        lines: kind.methods().iter().map(line).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::populate::case::cases;

    /// In all cases 64 MiB take 400 ms by the guest, 200 ms by PRE_FAULT, 100 ms by
    /// MAP.
    fn results(quick: bool) -> Results {
        let mut results = Results::default();
        for (kind, shape) in cases(quick) {
            for &method in kind.methods() {
                let (ms, faults) = match method {
                    Method::Guest => (400, 0),
                    Method::PreFault => (200, 77),
                    Method::Map => (100, 0),
                };
                let time = Duration::from_millis(ms) * (shape.mib() / 64) as u32;
                let sample = Sample {
                    time,
                    faults,
                    updates: 5,
                    longest: time / 5,
                };
                results.add(kind, shape, method, sample);
            }
        }
        results
    }

    #[test]
    fn table_has_rates_and_their_ratios() -> Result<()> {
        let table = table(&results(false), 1)?;
        let rows: Vec<Vec<_>> = table
            .lines()
            .filter(|line| line.starts_with("  4 KiB      1   256"))
            .map(|line| line.split_whitespace().skip(4).collect())
            .collect();
        let [fresh, present, source, updates] = &rows[..] else {
            panic!("{table}");
        };
        assert_eq!(fresh, present);
        assert_eq!((fresh[0], fresh[5], fresh[10]), ("41.0", "81.9", "164"));
        assert_eq!((fresh[4], fresh[9], fresh[14]), ("0", "77", "0"));
        assert_eq!(fresh[15..], ["4.00", "2.00"]);
        assert_eq!((source[0], source[5]), ("81.9", "164"));
        assert_eq!(source[10..], ["2.00"]);
        assert_eq!((updates[0], updates[4], updates[5]), ("800", "5", "160"));
        Ok(())
    }

    #[test]
    fn picture_has_every_panel_and_method() -> Result<()> {
        for quick in [false, true] {
            let name = format!("bench-populate-{}-{quick}.svg", std::process::id());
            let file = std::env::temp_dir().join(name);
            picture(&results(quick), &file)?;
            let svg = fs::read_to_string(&file)?;
            fs::remove_file(&file)?;
            for label in Method::ALL.map(|m| m.to_string()) {
                assert!(svg.contains(&label), "{label}");
            }
            for kind in [Kind::Fresh, Kind::Present] {
                assert!(svg.contains(&format!("{kind}, pages of 2 MiB")));
            }
        }
        Ok(())
    }
}
