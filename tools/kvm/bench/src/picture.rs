// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! The pictures: four panels with the same kinds of lines, on logarithmic axes.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

const FONT: &str = "sans-serif";

// Colours that colour-blind readers can tell apart.
pub const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
pub const BLUE: RGBColor = RGBColor(0x00, 0x52, 0x92);
pub const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);

/// Low, middle and high value.
pub type Bar = (f64, f64, f64);

/// A line through the middle values: x, and the values there.
pub struct Line {
    pub style: ShapeStyle,
    pub points: Vec<(f64, Bar)>,
}

pub struct Panel {
    pub caption: String,
    pub x_desc: String,
    pub y_desc: &'static str,
    pub y: Range<f64>,
    pub lines: Vec<Line>,
}

/// The range of an axis that shows all of these values.
pub fn axis(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), value| {
        (min.min(value), max.max(value))
    });
    min * 0.6..max * 1.7
}

/// Draws the panels below a legend of what the styles of their lines mean.
pub fn draw(
    file: &Path,
    title: &str,
    legend: impl IntoIterator<Item = (String, ShapeStyle)>,
    panels: &[Panel; 4],
) -> Result<()> {
    let root = SVGBackend::new(file, (960, 720)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, (FONT, 24))?;
    let (top, areas) = root.split_vertically(28);
    draw_legend(&top, legend)?;
    for (panel, area) in panels.iter().zip(areas.split_evenly((2, 2))) {
        draw_panel(panel, &area)?;
    }
    root.present()?;
    Ok(())
}

/// A line for each style, and its label.
fn draw_legend(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: impl IntoIterator<Item = (String, ShapeStyle)>,
) -> Result<()> {
    /// Pixels that a letter takes.
    const LETTER: i32 = 9;

    let mut x = 230;
    for (label, style) in lines {
        area.draw(&PathElement::new([(x, 12), (x + 24, 12)], style))?;
        let width = label.len() as i32 * LETTER;
        area.draw(&Text::new(label, (x + 30, 5), (FONT, 15)))?;
        x += 54 + width;
    }
    Ok(())
}

fn draw_panel(panel: &Panel, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
    let points = panel.lines.iter().flat_map(|line| &line.points);
    let x = axis(points.map(|&(x, _)| x));
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.caption, (FONT, 18))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d(x.log_scale().base(2.0), panel.y.clone().log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(&panel.x_desc)
        .y_desc(panel.y_desc)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| format!("{y}"))
        .label_style((FONT, 13))
        .draw()?;
    for Line { style, points } in &panel.lines {
        let middle = points.iter().map(|&(x, (_, middle, _))| (x, middle));
        chart.draw_series(LineSeries::new(middle, *style))?;
        chart.draw_series(points.iter().map(|&(x, (low, middle, high))| {
            ErrorBar::new_vertical(x, low, middle, high, style.filled(), 8)
        }))?;
    }
    Ok(())
}
