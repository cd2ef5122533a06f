// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The table and the charts.

use std::{fmt::Write, mem, path::Path, time::Duration};

use anyhow::{anyhow, Context, Result};
use plotters::{coord::Shift, prelude::*};

use crate::{
    chart::{draw_axes, draw_curve, draw_legend, thousands, SEA_BLUE, SEA_GREEN, VERMILION},
    memslots::{
        experiment::{Method, Outcome, Sample, UNDISTURBED},
        guest::Variant,
        machine::Sides,
    },
};

/// One line per outcome.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "                                         --------------- stall, ms ---------------       ms  - page faults (bystander) -\n\
         variant   method               survived  longest  (host)   mean at rest bystander  update        reshaped          moved  guest\n",
    );
    for outcome in outcomes {
        let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
        // Without a survived update nothing has been measured.
        let measured = |value| {
            if outcome.survived > 0 {
                value
            } else {
                "-".to_owned()
            }
        };
        let stall = |time| measured(ms(time));
        let faults = |Sides { window, bystander }| measured(format!("{window} ({bystander})"));
        let guest = match (&outcome.death, &outcome.wrong) {
            (Some(death), _) => format!("died: {death}"),
            (None, Some(wrong)) => format!("WRONG: {wrong}"),
            (None, None) => "correct".to_owned(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<9} ({}) {:<14} {:>10} {:>8} {:>7} {:>6} {:>7} {:>9} {:>7} {:>15} {:>14}  {guest}",
            outcome.variant,
            outcome.method.letter(),
            outcome.method,
            format!("{} of {}", outcome.survived, outcome.updates),
            stall(outcome.stall_guest),
            stall(outcome.stall_host),
            stall(outcome.stall_guest_mean),
            ms(outcome.stall_undisturbed),
            stall(outcome.stall_bystander),
            ms(outcome.update_mean),
            faults(outcome.faults.reshapes),
            faults(outcome.faults.moves),
        );
    }
    text.push_str(
        "\nstall: time in which a vCPU completes no step, by its own clock; (host): by the host's samples\n\
         at rest: the longest stall before the updates; update: mean time of an update\n\
         bystander: one more vCPU, which runs from other slots\n\
         page faults, after which KVM has mapped a page: those of all updates that resize, split or merge slots, and of\n\
         those that move one\n",
    );
    text
}

/// A line in a chart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// Of the vCPUs in the window together.
    Window,
    Bystander,
}

/// Steps over time, in seconds.
fn points(outcome: &Outcome, curve: Curve) -> Vec<(f64, f64)> {
    let in_window = |sample: &Sample| sample.steps.iter().sum::<u64>();
    let total = |sample: &Sample| match curve {
        Curve::Window => in_window(sample),
        Curve::Bystander => sample.bystander,
    };
    let first = outcome.samples.first().map_or(0, total);
    let last = outcome.samples.last().map_or(0, in_window);
    let mut going_on = true;
    outcome
        .samples
        .iter()
        // Leaves out the time until the host noticed that the guest had stopped.
        .take_while(|sample| mem::replace(&mut going_on, in_window(sample) < last))
        .map(|sample| (sample.at.as_secs_f64(), (total(sample) - first) as f64))
        .collect()
}

/// The largest time and count of several curves.
fn limits(curves: &[Vec<(f64, f64)>]) -> (f64, f64) {
    let points = curves.iter().flatten();
    points.fold((f64::MIN_POSITIVE, 1.0), |(x, y), point| {
        (point.0.max(x), point.1.max(y))
    })
}

/// A chart of the guests' progress, drawn with the letters of the methods.
pub fn text_chart(outcomes: &[&Outcome], curve: Curve) -> String {
    const WIDTH: usize = 72;
    const HEIGHT: usize = 14;

    let curves: Vec<_> = outcomes
        .iter()
        .map(|outcome| points(outcome, curve))
        .collect();
    let (time, steps) = limits(&curves);
    let cell = |value: f64, limit: f64, cells: usize| {
        ((value / limit * cells as f64) as usize).min(cells - 1)
    };
    let mut grid = [[' '; WIDTH]; HEIGHT];
    for (outcome, curve) in outcomes.iter().zip(&curves) {
        for &(x, y) in curve {
            grid[HEIGHT - 1 - cell(y, steps, HEIGHT)][cell(x, time, WIDTH)] =
                outcome.method.letter();
        }
    }
    for (outcome, curve) in outcomes.iter().zip(&curves) {
        if let (Some(_), Some(&(x, y))) = (&outcome.death, curve.last()) {
            grid[HEIGHT - 1 - cell(y, steps, HEIGHT)][cell(x, time, WIDTH)] = 'X';
        }
    }

    let mut text = String::new();
    for (row, line) in grid.iter().enumerate() {
        let label = if row == 0 {
            thousands(steps)
        } else {
            String::new()
        };
        let line: String = line.iter().collect();
        let _ = writeln!(text, "{label:>10} |{}", line.trim_end());
    }
    let _ = writeln!(text, "{:>10} +{}", 0, "-".repeat(WIDTH));
    let _ = writeln!(text, "{:>12}{:>WIDTH$}", 0, format!("{time:.2} s"));
    text
}

/// The meaning of the letters in [`text_chart`].
pub fn legend(outcomes: &[&Outcome]) -> String {
    let methods: Vec<_> = outcomes
        .iter()
        .map(|outcome| format!("{} {}", outcome.method.letter(), outcome.method))
        .collect();
    format!("{}, X death of the guest", methods.join(", "))
}

/// Writes the charts to a file: a row for each variant, with the vCPUs in the window
/// on the left and the bystander on the right.
pub fn svg(outcomes: &[Outcome], path: &Path) -> Result<()> {
    let charts: Vec<Vec<&Outcome>> = by_variant(outcomes);
    let mut drawing = String::new();
    draw(&charts, &mut drawing).map_err(|e| anyhow!("cannot draw the chart: {e}"))?;
    std::fs::write(path, drawing).with_context(|| format!("cannot write {}", path.display()))
}

/// The outcomes by variant, without variants that have none.
pub fn by_variant(outcomes: &[Outcome]) -> Vec<Vec<&Outcome>> {
    [Variant::Plain, Variant::Emulated]
        .into_iter()
        .map(|variant| outcomes.iter().filter(|o| o.variant == variant).collect())
        .filter(|chart: &Vec<_>| !chart.is_empty())
        .collect()
}

fn draw(charts: &[Vec<&Outcome>], drawing: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    const WIDTH: u32 = 1240;
    const HEIGHT: u32 = 400;

    let root =
        SVGBackend::with_string(drawing, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((charts.len(), 2));
    for (outcomes, areas) in charts.iter().zip(areas.chunks_exact(2)) {
        draw_chart(outcomes, Curve::Window, &areas[0])?;
        draw_chart(outcomes, Curve::Bystander, &areas[1])?;
    }
    root.present()?;
    Ok(())
}

/// What the legend says of a guest.
fn label(outcome: &Outcome, curve: Curve) -> String {
    let Sides { window, bystander } = outcome.faults.reshapes;
    let end = match (&outcome.death, curve) {
        (Some(_), _) => format!("died: survived {} of {}", outcome.survived, outcome.updates),
        (None, Curve::Window) => format!("{window} page faults by reshaping"),
        (None, Curve::Bystander) => format!("{bystander} page faults by reshaping"),
    };
    format!("({}) {}, {end}", outcome.method.letter(), outcome.method)
}

/// Points that are at least `distance` apart, and the last one: more are not seen.
fn thinned(points: &[(f64, f64)], distance: f64) -> Vec<(f64, f64)> {
    let mut thinned: Vec<(f64, f64)> = Vec::new();
    for &point in points {
        if thinned
            .last()
            .is_none_or(|last| point.0 - last.0 >= distance)
        {
            thinned.push(point);
        }
    }
    thinned.extend(points.last());
    thinned
}

fn draw_chart(
    outcomes: &[&Outcome],
    curve: Curve,
    area: &DrawingArea<SVGBackend<'_>, Shift>,
) -> Result<(), Box<dyn std::error::Error>> {
    let color = |method| match method {
        Method::Single => VERMILION,
        Method::Paused => SEA_BLUE,
        Method::List => SEA_GREEN,
    };
    let curves: Vec<_> = outcomes
        .iter()
        .map(|outcome| points(outcome, curve))
        .collect();
    let (time, steps) = limits(&curves);
    let (title, y_desc) = match (curve, outcomes[0].variant) {
        (Curve::Window, Variant::Plain) => (
            "Progress of a guest whose memslots are updated",
            "steps of the vCPUs in these slots",
        ),
        (Curve::Window, Variant::Emulated) => (
            "The same with instructions that KVM emulates",
            "steps of the vCPUs in these slots",
        ),
        (Curve::Bystander, _) => ("A bystander in other slots", "steps of the bystander"),
    };
    let mut chart = draw_axes(
        area,
        title,
        ("seconds; updates begin at the dashed line", time),
        (y_desc, steps),
    )?;
    let first_update = UNDISTURBED.as_secs_f64();
    chart.draw_series(DashedLineSeries::new(
        [(first_update, 0.0), (first_update, steps * 1.05)],
        4,
        4,
        BLACK.mix(0.5).into(),
    ))?;
    for (outcome, points) in outcomes.iter().zip(&curves) {
        let color = color(outcome.method);
        let seen = thinned(points, time / 1000.0);
        draw_curve(&mut chart, seen, label(outcome, curve), color)?;
        if outcome.death.is_some() {
            let end = points
                .last()
                .map(|&end| Cross::new(end, 7, color.stroke_width(3)));
            chart.draw_series(end)?;
        }
    }
    draw_legend(&mut chart)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memslots::experiment::Faults;

    fn outcome(method: Method, steps: &[u64], death: Option<&str>) -> Outcome {
        Outcome {
            variant: Variant::Plain,
            method,
            updates: 3,
            survived: if death.is_some() { 0 } else { 3 },
            death: death.map(str::to_owned),
            wrong: None,
            stall_undisturbed: Duration::from_micros(500),
            stall_guest: Duration::from_micros(1250),
            stall_guest_mean: Duration::from_millis(1),
            stall_bystander: Duration::from_micros(750),
            stall_host: Duration::from_millis(1),
            update_mean: Duration::from_millis(2),
            faults: Faults {
                reshapes: Sides {
                    window: 17,
                    bystander: 0,
                },
                moves: Sides {
                    window: 1234,
                    bystander: 567,
                },
            },
            samples: (0..)
                .zip(steps)
                .map(|(second, &steps)| Sample {
                    at: Duration::from_secs(second),
                    steps: vec![steps],
                    bystander: 2 * steps,
                })
                .collect(),
        }
    }

    #[test]
    fn a_dead_guest_has_an_end_and_no_stalls() {
        let outcomes = [
            outcome(Method::Single, &[5, 10, 10, 10], Some("of an exception")),
            outcome(Method::List, &[0, 10, 20, 30], None),
        ];
        let table = table(&outcomes);
        let line = |letter| table.lines().find(|line| line.contains(letter));
        let (a, c) = (line("(a)").expect("a line"), line("(c)").expect("a line"));
        assert!(a.contains("0 of 3") && a.contains("of an exception"), "{a}");
        assert!(!a.contains("1.25") && !a.contains("1234"), "{a}");
        assert!(c.contains("3 of 3") && c.contains("1.25"), "{c}");
        assert!(c.contains("17 (0)") && c.contains("1234 (567)"), "{c}");

        let chart = text_chart(&outcomes.iter().collect::<Vec<_>>(), Curve::Window);
        let cross = chart.lines().find_map(|line| line.find('X'));
        let last = chart.lines().find_map(|line| line.rfind('c'));
        // After one of three seconds, not at the end of the samples.
        assert_eq!(cross, Some(12 + 24), "{chart}");
        assert_eq!(last, Some(12 + 71), "{chart}");
    }

    #[test]
    fn a_bystander_ends_when_the_guest_dies() {
        let dead = outcome(Method::Single, &[5, 10, 10, 10], Some("of an exception"));
        assert_eq!(points(&dead, Curve::Window), [(0.0, 0.0), (1.0, 5.0)]);
        assert_eq!(points(&dead, Curve::Bystander), [(0.0, 0.0), (1.0, 10.0)]);
    }

    #[test]
    fn a_thinned_curve_has_the_same_ends() {
        let points: Vec<_> = (0..=100).map(|i| (f64::from(i), 1.0)).collect();
        let thinned = thinned(&points, 30.0);
        let times: Vec<_> = thinned.iter().map(|point| point.0).collect();
        assert_eq!(times, [0.0, 30.0, 60.0, 90.0, 100.0]);
        assert_eq!(super::thinned(&[], 1.0), []);
    }

    #[test]
    fn svg_has_two_charts_for_each_variant_and_a_line_for_each_method() {
        let mut outcomes = vec![
            outcome(Method::Single, &[0, 1, 1], Some("early")),
            outcome(Method::List, &[0, 1, 2], None),
            outcome(Method::List, &[0, 1, 2], None),
        ];
        outcomes[2].variant = Variant::Emulated;
        let mut drawing = String::new();
        draw(&by_variant(&outcomes), &mut drawing).expect("a drawing");
        assert_eq!(drawing.matches("(a) single ioctls, died").count(), 2);
        assert_eq!(drawing.matches("(c) list, 17 page faults").count(), 2);
        assert_eq!(drawing.matches("(c) list, 0 page faults").count(), 2);
    }
}
