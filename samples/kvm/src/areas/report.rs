// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The table, the chart, and whether all is as it should be.

use std::{fmt::Write, path::Path, time::Duration};

use anyhow::{anyhow, ensure, Context, Result};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    areas::{
        served::{Beats, Memory, Remains},
        watch::{Sample, Stalls},
    },
    chart::{draw_axes, draw_curve, draw_legend, FONT, SEA_BLUE, VERMILION},
};

/// What one kind of heartbeat costs.
pub struct Cost {
    pub what: &'static str,
    pub beats: u64,
    pub exits: u64,
    /// Those of the exits that go on to the VMM.
    pub mmio_exits: u64,
}

impl Cost {
    fn per_beat(&self, exits: u64) -> Option<f64> {
        (self.beats > 0).then(|| exits as f64 / self.beats as f64)
    }
}

/// What the VMM saw while the guest hung.
pub struct Hang {
    pub what: &'static str,
    pub at: Duration,
    pub time: Duration,
    pub seen: Stalls,
}

pub struct Report {
    pub costs: Vec<Cost>,
    pub hangs: Vec<Hang>,
    pub steal: Duration,
    /// What the guest itself says.
    pub state: String,
    pub memory: Memory,
    /// When the guest was moved to another process.
    pub moved: Duration,
    pub samples: Vec<Sample>,
    pub end: String,
    pub remains: Option<Remains>,
}

impl Report {
    /// Whether the VMM has seen what the guest did. `before` is the last beat in the first
    /// process.
    pub fn check(&self, before: Beats) -> Result<()> {
        for cost in &self.costs {
            let expected = match cost.what {
                "memory area" => 0.0..=0.0,
                "MMIO watchdog" => 0.8..=1.2,
                _ => continue,
            };
            let found = cost
                .per_beat(cost.mmio_exits)
                .with_context(|| format!("{}: no beat", cost.what))?;
            ensure!(
                expected.contains(&found),
                "{}: {found:.2} exits to the VMM for each beat",
                cost.what
            );
        }
        for hang in &self.hangs {
            let hangs = |stall: Duration| stall > hang.time.mul_f64(0.8);
            ensure!(
                hangs(hang.seen.task) && hangs(hang.seen.timer) == (hang.what == "interrupts"),
                "the guest kept {} waiting, and the VMM saw {:?}",
                hang.what,
                hang.seen
            );
        }
        ensure!(!self.steal.is_zero(), "no time was stolen from the guest");
        let after = self.samples.last().map(|sample| sample.beats);
        ensure!(
            after.is_some_and(|after| after.timer > before.timer && after.task > before.task),
            "the heart does not go on beating in the other process: {before:?}, {after:?}"
        );
        ensure!(
            self.end == "triple fault",
            "the guest did not end by a triple fault: {}",
            self.end
        );
        let remains = self.remains.as_ref().context("the guest left no record")?;
        ensure!(
            remains
                .panic
                .as_ref()
                .is_some_and(|panic| panic.reason.contains("sysrq")),
            "the record does not say that the guest panicked"
        );
        ensure!(
            remains.log.contains("Kernel panic"),
            "the record does not have the log"
        );
        Ok(())
    }
}

/// Everything in words.
pub fn text(report: &Report) -> String {
    let mut text = String::from("heartbeat        beats    exits   a beat   to the VMM   a beat\n");
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    // Writing to a String does not fail.
    for cost in &report.costs {
        let _ = writeln!(
            text,
            "{:<14} {:>7} {:>8} {:>8} {:>12} {:>8}",
            cost.what,
            cost.beats,
            cost.exits,
            ratio(cost.per_beat(cost.exits)),
            cost.mmio_exits,
            ratio(cost.per_beat(cost.mmio_exits)),
        );
    }
    text.push_str(
        "\nexits: of the vCPU, in the same time; an idle guest has some of its own, and a timer has\n\n",
    );
    for hang in &report.hangs {
        let _ = writeln!(
            text,
            "the guest kept {} waiting for {:.1} s; the VMM saw no timer for {:.2} s, no task for {:.2} s",
            hang.what,
            hang.time.as_secs_f64(),
            hang.seen.timer.as_secs_f64(),
            hang.seen.task.as_secs_f64(),
        );
    }
    let mib = |bytes: u64| bytes >> 20;
    let _ = writeln!(
        text,
        "the guest has {} MiB of memory, of which {} MiB are free and {} MiB available\n\
         while the host was busy, the guest could not run for {:.2} s (steal time)\n\n\
         what the guest says:\n{}",
        mib(report.memory.total),
        mib(report.memory.free),
        mib(report.memory.available),
        report.steal.as_secs_f64(),
        report.state,
    );
    let _ = writeln!(
        text,
        "then the guest went on in another process, and ended by a {}",
        report.end
    );
    if let Some(remains) = &report.remains {
        if let Some(panic) = &remains.panic {
            let _ = writeln!(
                text,
                "it panicked {:.2} s after its boot: {}",
                panic.time.as_secs_f64(),
                panic.reason
            );
        }
        let _ = writeln!(text, "the end of its log:");
        for line in remains.log.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// The beats over time.
pub fn svg(report: &Report, path: &Path) -> Result<()> {
    let mut drawing = String::new();
    draw(report, &mut drawing).map_err(|e| anyhow!("cannot draw the chart: {e}"))?;
    std::fs::write(path, drawing).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(report: &Report, drawing: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    const TIMER: RGBColor = SEA_BLUE;
    const TASK: RGBColor = VERMILION;

    let first = report.samples.first().map(|s| s.beats).unwrap_or_default();
    let curve = |counter: fn(&Beats) -> u64| -> Vec<(f64, f64)> {
        report
            .samples
            .iter()
            .map(|sample| {
                let beats = counter(&sample.beats).saturating_sub(counter(&first));
                (sample.at.as_secs_f64(), beats as f64)
            })
            .collect()
    };
    let curves = [
        (
            "timer: the guest takes interrupts",
            curve(|b| b.timer),
            TIMER,
        ),
        ("task: ordinary tasks run", curve(|b| b.task), TASK),
    ];
    let (time, beats) = curves
        .iter()
        .flat_map(|(_, curve, _)| curve)
        .fold((0.1_f64, 1.0_f64), |(x, y), point| {
            (x.max(point.0), y.max(point.1))
        });
    let root = SVGBackend::with_string(drawing, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = draw_axes(
        &root,
        "Heartbeat of Linux, read from its memory",
        ("seconds", time),
        ("beats", beats),
    )?;
    for hang in &report.hangs {
        let (start, end) = (hang.at.as_secs_f64(), (hang.at + hang.time).as_secs_f64());
        chart.draw_series([Rectangle::new(
            [(start, 0.0), (end, beats * 1.05)],
            BLACK.mix(0.08).filled(),
        )])?;
        chart.draw_series([Text::new(
            format!("no {}", hang.what),
            (start + time * 0.005, beats * 1.03),
            (FONT, 13),
        )])?;
    }
    let moved = report.moved.as_secs_f64();
    chart.draw_series(DashedLineSeries::new(
        [(moved, 0.0), (moved, beats * 1.05)],
        4,
        4,
        BLACK.mix(0.5).into(),
    ))?;
    chart.draw_series([Text::new(
        "to another process",
        (moved - time * 0.005, beats * 1.03),
        TextStyle::from((FONT, 13)).pos(Pos::new(HPos::Right, VPos::Top)),
    )])?;
    for (label, curve, color) in &curves {
        draw_curve(
            &mut chart,
            curve.iter().copied(),
            (*label).to_owned(),
            *color,
        )?;
    }
    let end = curves
        .iter()
        .filter_map(|(_, curve, _)| curve.last())
        .map(|&end| Cross::new(end, 7, BLACK.stroke_width(2)));
    chart.draw_series(end)?;
    draw_legend(&mut chart)?;
    root.present()?;
    Ok(())
}
