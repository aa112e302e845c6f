//! Detectors and the comparison with a threshold.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::Statistics;

/// Which statistic is read as risk. All scores rise with risk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Detector {
    /// Shannon entropy, nats.
    #[default]
    Entropy,
    /// 1 − the largest probability.
    Top1,
    /// − the margin, nats.
    Margin,
}

impl Detector {
    /// Every detector.
    pub const ALL: [Self; 3] = [Self::Entropy, Self::Top1, Self::Margin];

    /// Risk score of a step; NaN when the row was not finite.
    pub fn score(self, statistics: &Statistics) -> f32 {
        match self {
            Self::Entropy => statistics.entropy,
            Self::Top1 => 1.0 - statistics.top1,
            Self::Margin => -statistics.margin,
        }
    }

    /// Name in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entropy => "entropy",
            Self::Top1 => "top1",
            Self::Margin => "margin",
        }
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is not a detector's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown detector {0:?}: expected entropy, top1 or margin")]
pub struct UnknownDetector(pub String);

impl FromStr for Detector {
    type Err = UnknownDetector;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| UnknownDetector(name.into()))
    }
}

/// A detector with its execution threshold CL, frozen for one request at admission.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Which statistic is judged.
    pub detector: Detector,
    /// CL in the unit of the detector's score; `f32::INFINITY` never triggers but on rows that are
    /// not finite.
    pub threshold: f32,
}

impl Gate {
    /// Whether a step must not be trusted: its score exceeds the threshold, or its row was not finite.
    pub fn is_suspect(&self, statistics: &Statistics) -> bool {
        !statistics.finite || self.detector.score(statistics) > self.threshold
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        self.detector == other.detector && self.threshold.to_bits() == other.threshold.to_bits()
    }
}

impl Eq for Gate {}

impl Hash for Gate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.detector.hash(state);
        self.threshold.to_bits().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Statistics =
        Statistics { entropy: 1.5, varentropy: 0.4, top1: 0.75, margin: 0.5, finite: true };

    #[test]
    fn scores_rise_with_risk() {
        assert_eq!(Detector::ALL.map(|detector| detector.score(&ROW)), [1.5, 0.25, -0.5]);
    }

    #[test]
    fn suspect_only_above_the_threshold() {
        let gate = |threshold| Gate { detector: Detector::Entropy, threshold };
        assert!(!gate(1.5).is_suspect(&ROW));
        assert!(gate(1.499).is_suspect(&ROW));
        assert!(!gate(f32::INFINITY).is_suspect(&ROW));
        assert!(gate(f32::INFINITY).is_suspect(&Statistics::NOT_FINITE));
        // Nothing to choose between is never suspect by its margin.
        let only = Statistics { margin: f32::INFINITY, ..ROW };
        let margin = Gate { detector: Detector::Margin, threshold: -1e30 };
        assert!(!margin.is_suspect(&only));
    }

    #[test]
    fn names_are_read_and_written() {
        for detector in Detector::ALL {
            assert_eq!(detector.to_string().parse(), Ok(detector));
        }
        assert_eq!(
            "Entropy".parse::<Detector>().unwrap_err().to_string(),
            "unknown detector \"Entropy\": expected entropy, top1 or margin"
        );
    }
}
