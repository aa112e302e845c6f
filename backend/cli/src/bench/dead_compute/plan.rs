//! Which policies are compared.

use std::fmt;

use anyhow::{Result, ensure};
use rewind_engine::Policy;
use rewind_evidence::dead_compute::Verdict;
use rewind_monitor::DetectorName;
use serde::{Serialize, Serializer};

use super::Arguments;

/// Who says which steps are redone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Judge {
    /// A detector, by a threshold for this share of steps.
    Detector { detector: DetectorName, budget: f64 },
    /// Chance.
    Random { budget: f64 },
    /// The clock.
    Periodic { budget: f64 },
}

impl Judge {
    pub(super) fn verdict(self, seed: u64) -> Verdict {
        match self {
            Self::Detector { .. } => Verdict::Measured,
            Self::Random { budget } => Verdict::Random { rate: budget, seed },
            Self::Periodic { budget } => Verdict::Periodic { every: (1.0 / budget).round() as u32 },
        }
    }
}

/// A policy with its judge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Run {
    #[serde(serialize_with = "as_text")]
    pub(super) policy: Policy,
    /// Of `step`.
    pub(super) refresh: Option<u32>,
    pub(super) judge: Option<Judge>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        match self.judge {
            None => Ok(()),
            Some(Judge::Detector { detector, budget }) => write!(f, " {detector} {budget}"),
            Some(Judge::Random { budget }) => write!(f, " random {budget}"),
            Some(Judge::Periodic { budget }) => write!(f, " periodic {budget}"),
        }?;
        self.refresh.map_or(Ok(()), |refresh| write!(f, " refresh {refresh}"))
    }
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// All of them, the shadow first: the others are compared with it.
pub(super) fn runs(arguments: &Arguments) -> Result<Vec<Run>> {
    let Arguments { budgets, detectors, refresh, refreshes, window, .. } = arguments;
    ensure!(
        budgets.iter().all(|budget| (0.0..=0.5).contains(budget) && *budget > 0.0),
        "--budgets is {budgets:?}: each must lie above 0 and be 0.5 at most"
    );
    let plain = |policy| Run { policy, refresh: None, judge: None };
    let mut runs: Vec<_> =
        [Policy::Shadow, Policy::Off, Policy::Lossless { tokens: *window }].map(plain).into();
    let step = |refresh, judge| Run {
        policy: Policy::Step { refresh },
        refresh: Some(refresh),
        judge: Some(judge),
    };
    for &budget in budgets {
        for &detector in detectors {
            runs.push(step(*refresh, Judge::Detector { detector, budget }));
        }
        runs.push(step(*refresh, Judge::Random { budget }));
        runs.push(step(*refresh, Judge::Periodic { budget }));
    }
    if let (Some(&detector), Some(&budget)) = (detectors.first(), budgets.last()) {
        let others = refreshes.iter().filter(|other| *other != refresh);
        runs.extend(others.map(|&other| step(other, Judge::Detector { detector, budget })));
    }
    Ok(runs)
}
