// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0

//! All samples, as figures.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};

use super::case::{Case, Method};
use super::measure::{Sample, Sweep};
use crate::figures::Spread;

/// All samples, those of all rounds together. Times are in milliseconds.
#[derive(Default)]
pub struct Results(BTreeMap<(Case, Method), Figures>);

/// One value for each update, or for each update and vCPU.
#[derive(Default)]
pub struct Figures {
    pub update: Vec<f64>,
    /// For each vCPU.
    pub stall: Vec<f64>,
    /// For each vCPU: by how much longer it takes than at rest to write to as many
    /// pages. Below 0 if it happens to take less time.
    pub lost: Vec<f64>,
    /// Time until all vCPUs have written to all of their memory.
    pub all: Vec<f64>,
    pub faults: Vec<f64>,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value that a share of all values, from 0 to 1, does not exceed.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
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

    pub fn cases(&self) -> BTreeSet<Case> {
        self.0.keys().map(|&(case, _)| case).collect()
    }

    pub fn get(&self, case: Case, method: Method) -> Result<&Figures> {
        self.0
            .get(&(case, method))
            .with_context(|| format!("nothing measured: {case}, {method}"))
    }

    pub fn spread(
        &self,
        (case, method): (Case, Method),
        values: impl Fn(&Figures) -> &Vec<f64>,
    ) -> Result<Spread> {
        let figures = self.get(case, method)?;
        Spread::of(values(figures).clone()).context("nothing measured")
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::case::cases;
    use super::*;

    /// With pausing, stall and faults grow with the size; with the list nothing does.
    pub fn results() -> Result<Results> {
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
}
