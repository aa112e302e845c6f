//! The comparison of a score with a threshold.

use std::hash::{Hash, Hasher};

use crate::{Detector, Statistics};

/// A detector with its execution threshold CL, frozen for one request at admission.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// How a step's risk is scored.
    pub detector: Detector,
    /// CL in the unit of the detector's score; `f32::INFINITY` never triggers but on rows that are
    /// not finite.
    pub threshold: f32,
}

impl Gate {
    /// Whether a step must not be trusted: its score exceeds the threshold or is no number, or its row
    /// was not finite.
    pub fn is_suspect(&self, statistics: &Statistics) -> bool {
        let score = self.detector.score(statistics);
        !statistics.finite || score > self.threshold || score.is_nan()
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
    use crate::Fused;

    const ROW: Statistics =
        Statistics { entropy: 1.5, varentropy: 0.4, top1: 0.75, margin: 0.5, finite: true };

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
    fn the_fused_detector_has_a_threshold_like_the_others() {
        let detector = Detector::Fused(Fused { bias: 1.0, margin: -1.0, ..Fused::default() });
        assert!(Gate { detector, threshold: 0.499 }.is_suspect(&ROW));
        assert!(!Gate { detector, threshold: 0.5 }.is_suspect(&ROW));
        assert!(Gate { detector, threshold: f32::INFINITY }.is_suspect(&Statistics::NOT_FINITE));
        let only = Statistics { margin: f32::INFINITY, ..ROW };
        assert!(!Gate { detector, threshold: -1e30 }.is_suspect(&only));
    }

    #[test]
    fn weights_that_are_no_numbers_are_suspect() {
        let detector = Detector::Fused(Fused { bias: f32::NAN, ..Fused::default() });
        let gate = Gate { detector, threshold: 0.0 };
        assert!(gate.is_suspect(&ROW));
        assert_eq!(gate, gate);
    }

    #[test]
    fn a_gate_is_small() {
        assert!(size_of::<Gate>() <= 28, "{} bytes in every row", size_of::<Gate>());
    }
}
