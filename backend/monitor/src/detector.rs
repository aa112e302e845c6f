//! Detectors: which statistics are read as risk, and how.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Fused, Statistics};

/// How a step's risk is read from its statistics. All scores rise with risk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Detector {
    /// Shannon entropy, nats.
    #[default]
    Entropy,
    /// 1 − the largest probability.
    Top1,
    /// − the margin, nats.
    Margin,
    /// The logit of a logistic model over all of them.
    Fused(Fused),
}

impl Detector {
    /// Risk score of a step; NaN when the row was not finite.
    pub fn score(self, statistics: &Statistics) -> f32 {
        match self {
            Self::Entropy => statistics.entropy,
            Self::Top1 => 1.0 - statistics.top1,
            Self::Margin => -statistics.margin,
            Self::Fused(fused) => fused.logit(statistics),
        }
    }

    /// Name in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entropy => DetectorName::Entropy.name(),
            Self::Top1 => DetectorName::Top1.name(),
            Self::Margin => DetectorName::Margin.name(),
            Self::Fused(_) => DetectorName::Fused.name(),
        }
    }

    /// Whether the score needs sums over all logits.
    pub const fn reads_sums(self) -> bool {
        !matches!(self, Self::Margin)
    }

    /// Whether the score needs the margin, and so a row that chooses a token.
    pub const fn reads_margin(self) -> bool {
        matches!(self, Self::Margin | Self::Fused(_))
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Detector as it is named in configurations, requests and profiles; its weights are the profile's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DetectorName {
    /// [`Detector::Entropy`].
    #[default]
    Entropy,
    /// [`Detector::Top1`].
    Top1,
    /// [`Detector::Margin`].
    Margin,
    /// [`Detector::Fused`].
    Fused,
}

impl DetectorName {
    /// Every detector.
    pub const ALL: [Self; 4] = [Self::Entropy, Self::Top1, Self::Margin, Self::Fused];

    /// The names, for error messages and help texts.
    pub const ALLOWED: &'static str = "entropy, top1, margin or fused";

    /// Name in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entropy => "entropy",
            Self::Top1 => "top1",
            Self::Margin => "margin",
            Self::Fused => "fused",
        }
    }
}

impl fmt::Display for DetectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not a detector's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown detector {0:?}: expected {allowed}", allowed = DetectorName::ALLOWED)]
pub struct UnknownDetector(pub String);

impl FromStr for DetectorName {
    type Err = UnknownDetector;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| UnknownDetector(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_rise_with_risk() {
        let row =
            Statistics { entropy: 1.5, varentropy: 0.4, top1: 0.75, margin: 0.5, finite: true };
        let scores = [Detector::Entropy, Detector::Top1, Detector::Margin];
        assert_eq!(scores.map(|detector| detector.score(&row)), [1.5, 0.25, -0.5]);
        let only_entropy = Fused { entropy: 2.0, ..Fused::default() };
        assert_eq!(Detector::Fused(only_entropy).score(&row), 3.0);
    }

    #[test]
    fn names_are_read_and_written() {
        for detector in DetectorName::ALL {
            assert_eq!(detector.to_string().parse(), Ok(detector));
        }
        assert_eq!(Detector::Fused(Fused::default()).to_string(), "fused");
        assert_eq!(
            "Entropy".parse::<DetectorName>().unwrap_err().to_string(),
            "unknown detector \"Entropy\": expected entropy, top1, margin or fused"
        );
    }
}
