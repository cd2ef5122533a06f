// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The picture: stall and time over the size of the memory and the number of vCPUs.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::case::{Case, Method};
use super::results::{quantile, Figures, Results};
use crate::figures::{draw_legend, Spread};

/// Low, middle and high value.
type Bar = (f64, f64, f64);

/// A line for a method: x and y.
type Line = (Method, Vec<(f64, Bar)>);

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
            Value::All => {
                let spread = Spread::of(figures.all.clone())?;
                Some((spread.min, spread.median, spread.max))
            }
        }
    }
}

/// Draws stall and time, each over the size of the memory and over the number of vCPUs.
pub fn draw(results: &Results, file: &Path) -> Result<()> {
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

    let panels = panels.split_evenly((2, 2));
    for (panels, value) in panels.chunks_exact(2).zip([Value::Stall, Value::All]) {
        let by_size = cases.iter().filter(|case| case.vcpus == vcpus);
        let by_size: Vec<_> = by_size.map(|&case| (case.mib() as f64, case)).collect();
        let label = format!("MiB, {vcpus} vCPUs");
        draw_panel(&panels[0], value, &label, &lines(results, value, &by_size)?)?;

        let by_vcpus = cases.iter().filter(|case| case.size == size);
        let by_vcpus: Vec<_> = by_vcpus
            .map(|&case| (f64::from(case.vcpus), case))
            .collect();
        let label = format!("vCPUs, {} MiB", by_vcpus[0].1.mib());
        draw_panel(
            &panels[1],
            value,
            &label,
            &lines(results, value, &by_vcpus)?,
        )?;
    }
    root.present()?;
    Ok(())
}

/// A line for each method, through these cases at their x.
fn lines(results: &Results, value: Value, cases: &[(f64, Case)]) -> Result<Vec<Line>> {
    let line = |method| {
        let points = cases.iter().map(|&(x, case)| {
            let bar = value.of(results.get(case, method)?);
            Ok((x, bar.context("nothing measured")?))
        });
        Ok((method, points.collect::<Result<_>>()?))
    };
    Method::ALL.into_iter().map(line).collect()
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

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    value: Value,
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
        .caption(value.caption(), ("sans-serif", 18))
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
