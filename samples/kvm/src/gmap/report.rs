// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The table and the chart.

use std::{fmt::Write, path::Path, time::Duration};

use anyhow::{anyhow, Context, Result};
use plotters::prelude::*;

use crate::{
    chart::{draw_axes, draw_curve, draw_legend, MAUVE, SEA_BLUE, SEA_GREEN, VERMILION},
    gmap::experiment::{Outcome, Reading},
};

/// One line for each world.
pub fn table(outcomes: &[Outcome], readings: &[Reading]) -> String {
    let mut text = String::from(
        "         -- segments filled on fault --             ------ monitor ------\n\
         world    number   mean, us     max, us    visits   readings    last seen   seconds   result\n",
    );
    for (world, outcome) in outcomes.iter().enumerate() {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let total: Duration = outcome.answers.iter().sum();
        let mean = us(total) / outcome.answers.len().max(1) as f64;
        let max = outcome.answers.iter().max().copied().unwrap_or_default();
        let of_world = || readings.iter().filter(|reading| reading.world == world);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{world:<5} {:>9} {mean:>10.0} {:>11.0} {:>9} {:>10} {:>12} {:>9.2}   {}",
            outcome.answers.len(),
            us(max),
            outcome.visits,
            of_world().count(),
            of_world().next_back().map_or(0, |reading| reading.visits),
            outcome.time.as_secs_f64(),
            if outcome.is_right { "right" } else { "WRONG" },
        );
    }
    text
}

/// Writes a chart of the visits of each world, as the monitor has read them.
pub fn svg(outcomes: &[Outcome], readings: &[Reading], path: &Path) -> Result<()> {
    let mut drawing = String::new();
    draw(outcomes, readings, &mut drawing).map_err(|e| anyhow!("cannot draw the chart: {e}"))?;
    std::fs::write(path, drawing).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(
    outcomes: &[Outcome],
    readings: &[Reading],
    drawing: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    const COLORS: [RGBColor; 4] = [VERMILION, SEA_BLUE, SEA_GREEN, MAUVE];

    let time = readings
        .iter()
        .fold(f64::MIN_POSITIVE, |time, r| time.max(r.at.as_secs_f64()));
    let visits = outcomes.iter().map(|o| o.visits).max().unwrap_or(1) as f64;
    let root = SVGBackend::with_string(drawing, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = draw_axes(
        &root,
        "Progress of worlds, as a vCPU reads it in their memory",
        ("seconds", time),
        ("segments visited", visits),
    )?;
    for (world, color) in (0..outcomes.len()).zip(COLORS.into_iter().cycle()) {
        let points = readings
            .iter()
            .filter(|reading| reading.world == world)
            .map(|reading| (reading.at.as_secs_f64(), reading.visits as f64));
        draw_curve(&mut chart, points, format!("world {world}"), color)?;
    }
    draw_legend(&mut chart)?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(world: usize, visits: u64) -> Reading {
        Reading {
            at: Duration::from_millis(10 * visits),
            world,
            visits,
        }
    }

    #[test]
    fn table_and_chart_show_each_world() {
        let outcome = |is_right| Outcome {
            answers: vec![Duration::from_micros(100), Duration::from_micros(300)],
            visits: 8,
            time: Duration::from_millis(1500),
            is_right,
        };
        let outcomes = [outcome(true), outcome(false)];
        let readings = [reading(0, 0), reading(1, 3), reading(0, 8)];
        let table = table(&outcomes, &readings);
        let words: Vec<Vec<&str>> = table
            .lines()
            .skip(2)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                ["0", "2", "200", "300", "8", "2", "8", "1.50", "right"],
                ["1", "2", "200", "300", "8", "1", "3", "1.50", "WRONG"],
            ]
        );
        let mut drawing = String::new();
        draw(&outcomes, &readings, &mut drawing).expect("a chart");
        assert!(drawing.contains("world 1"));
    }
}
