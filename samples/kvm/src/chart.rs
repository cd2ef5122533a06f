// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What all charts look like.

use plotters::{
    coord::{types::RangedCoordf64, CoordTranslate, Shift},
    drawing::DrawingAreaErrorKind,
    prelude::*,
};

pub const FONT: &str = "sans-serif";

// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
pub const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub const SEA_BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub const SEA_GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
pub const MAUVE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);

/// A chart of counts over seconds.
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Draws the axes of such a chart. `x` and `y` say what an axis shows, and up to where.
pub fn draw_axes<'a, DB: DrawingBackend>(
    area: &'a DrawingArea<DB, Shift>,
    title: &str,
    x: (&str, f64),
    y: (&str, f64),
) -> Result<Chart<'a, DB>, DrawingAreaErrorKind<DB::ErrorType>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..x.1 * 1.02, 0.0..y.1 * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .x_desc(x.0)
        .y_desc(y.0)
        .y_label_formatter(&|&count| thousands(count))
        .draw()?;
    Ok(chart)
}

/// A count as labels have it.
pub fn thousands(count: f64) -> String {
    if count < 10_000.0 {
        format!("{count:.0}")
    } else {
        format!("{:.0} k", count / 1e3)
    }
}

/// Draws a curve, which [`draw_legend`] will name.
pub fn draw_curve<'a, DB: DrawingBackend + 'a>(
    chart: &mut Chart<'a, DB>,
    points: impl IntoIterator<Item = (f64, f64)>,
    name: String,
    color: RGBColor,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    chart
        .draw_series(LineSeries::new(points, color.stroke_width(2)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    Ok(())
}

/// Draws the names of the curves.
pub fn draw_legend<'a, DB: DrawingBackend + 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font((FONT, 14))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(0xcc, 0xcc, 0xcc))
        .draw()
}
