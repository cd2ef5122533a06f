// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The picture: stall and time over the size of the memory and the number of vCPUs.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use super::case::{Case, Method};
use super::results::{quantile, Figures, Results};
use crate::figures::Spread;
use crate::picture::{self, Bar, Line, Panel};

/// What a panel shows of a case.
#[derive(Clone, Copy)]
enum Value {
    Stall,
    All,
}

impl Value {
    fn caption(self) -> &'static str {
        match self {
            Value::Stall => "stall of a vCPU (p50, p99, longest)",
            Value::All => "time until all memory is written to",
        }
    }

    fn of(self, figures: &Figures) -> Option<Bar> {
        match self {
            Value::Stall => {
                let [p50, p99, longest] =
                    [0.5, 0.99, 1.0].map(|share| quantile(&figures.stall, share));
                Some((p50?, p99?, longest?))
            }
            Value::All => Some(Spread::of(figures.all.clone())?.bar(1.0)),
        }
    }
}

/// Draws stall and time, each over the size of the memory and over the number of vCPUs.
pub fn draw(results: &Results, file: &Path) -> Result<()> {
    let cases: Vec<Case> = results.cases().into_iter().collect();
    let count = |f: &dyn Fn(Case) -> bool| cases.iter().filter(|&&case| f(case)).count();
    // The number of vCPUs of most cases, the smallest of them if there are several.
    let vcpus = cases
        .iter()
        .map(|case| case.vcpus)
        .max_by_key(|&vcpus| (count(&|case| case.vcpus == vcpus), u8::MAX - vcpus))
        .context("nothing measured")?;
    // The size of most cases, the largest of them.
    let size = cases
        .iter()
        .map(|case| case.size)
        .max_by_key(|&size| (count(&|case| case.size == size), size))
        .context("nothing measured")?;

    let by_size = cases.iter().filter(|case| case.vcpus == vcpus);
    let by_size: Vec<_> = by_size.map(|&case| (case.mib() as f64, case)).collect();
    let by_vcpus = cases.iter().filter(|case| case.size == size);
    let by_vcpus: Vec<_> = by_vcpus
        .map(|&case| (f64::from(case.vcpus), case))
        .collect();
    let over_size = |value| panel(results, value, format!("MiB, {vcpus} vCPUs"), &by_size);
    let over_vcpus = |value| {
        let x_desc = format!("vCPUs, {} MiB", by_vcpus[0].1.mib());
        panel(results, value, x_desc, &by_vcpus)
    };
    picture::draw(
        file,
        "A guest whose memslots are split and merged",
        Method::ALL.map(|m| (m.to_string(), style(m))),
        &[
            over_size(Value::Stall)?,
            over_vcpus(Value::Stall)?,
            over_size(Value::All)?,
            over_vcpus(Value::All)?,
        ],
    )
}

fn style(method: Method) -> ShapeStyle {
    match method {
        // Wide, as the line of the list covers it where both are level.
        Method::Rest => picture::ORANGE.stroke_width(5),
        Method::Paused => picture::BLUE.stroke_width(2),
        Method::List => picture::GREEN.stroke_width(2),
    }
}

/// A line for each method, through these cases at their x.
fn panel(results: &Results, value: Value, x_desc: String, cases: &[(f64, Case)]) -> Result<Panel> {
    let line = |method| {
        let points = cases.iter().map(|&(x, case)| {
            let bar = value.of(results.get(case, method)?);
            Ok((x, bar.context("nothing measured")?))
        });
        Ok(Line {
            style: style(method),
            points: points.collect::<Result<_>>()?,
        })
    };
    let lines: Vec<Line> = Method::ALL.into_iter().map(line).collect::<Result<_>>()?;
    let points = lines.iter().flat_map(|line| &line.points);
    let ms = points.flat_map(|&(_, (low, _, high))| [low, high]);
    // A logarithmic axis does not have 0.
    let y = picture::axis(ms.map(|ms| ms.max(1e-3)));
    Ok(Panel {
        caption: value.caption().to_owned(),
        x_desc,
        y_desc: "ms",
        y,
        lines,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn picture_has_every_panel_and_method() -> Result<()> {
        let file = std::env::temp_dir().join(format!("bench-reshape-{}.svg", std::process::id()));
        draw(&results()?, &file)?;
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
