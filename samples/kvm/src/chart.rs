// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What all charts look like.

use plotters::{coord::CoordTranslate, drawing::DrawingAreaErrorKind, prelude::*};

pub const FONT: &str = "sans-serif";

// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
pub const VERMILION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub const SEA_BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub const SEA_GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
pub const MAUVE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);

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
