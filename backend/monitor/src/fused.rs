//! A logistic model over all statistics of a step.
//!
//! ```text
//! score = bias + w_H·H + w_V·varentropy + w_t·ln top1 + w_m·margin
//! ```
//!
//! The score is the logit of the fitted probability that draft and shadow choose different tokens. Each
//! weight and each feature is an `f32` (the logarithm is rounded to one), terms are added in f64 from left
//! to right, and the sum is rounded once. A product of two `f32` is exact in f64, so whether a compiler
//! fuses it with the addition changes nothing: the GPU's kernel gives the same bits.

use std::hash::{Hash, Hasher};

use crate::Statistics;

/// Weights of the logistic model, finite. Equality and hashing are by bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused {
    /// The logit where every feature is 0.
    pub bias: f32,
    /// Of the entropy H, per nat.
    pub entropy: f32,
    /// Of the varentropy, per nat².
    pub varentropy: f32,
    /// Of ln top1, per nat.
    pub ln_top1: f32,
    /// Of the margin, per nat.
    pub margin: f32,
}

impl Fused {
    /// The score of a step; NaN when the row was not finite.
    ///
    /// Where there was nothing to choose between, the margin is infinite and the score is −∞ whatever
    /// the weights: draft and shadow cannot differ.
    pub fn logit(&self, statistics: &Statistics) -> f32 {
        if statistics.margin == f32::INFINITY {
            return f32::NEG_INFINITY;
        }
        let ln_top1 = f64::from(statistics.top1).ln() as f32;
        let terms = [
            (self.entropy, statistics.entropy),
            (self.varentropy, statistics.varentropy),
            (self.ln_top1, ln_top1),
            (self.margin, statistics.margin),
        ];
        let add = |sum: f64, (weight, feature)| sum + f64::from(weight) * f64::from(feature);
        terms.into_iter().fold(f64::from(self.bias), add) as f32
    }

    /// Bias and weights in the order of the formula.
    pub const fn weights(&self) -> [f32; 5] {
        [self.bias, self.entropy, self.varentropy, self.ln_top1, self.margin]
    }
}

impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        self.weights().map(f32::to_bits) == other.weights().map(f32::to_bits)
    }
}

impl Eq for Fused {}

impl Hash for Fused {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.weights().map(f32::to_bits).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FUSED: Fused =
        Fused { bias: -1.0, entropy: 0.5, varentropy: 0.25, ln_top1: -2.0, margin: -1.5 };

    #[test]
    fn the_formula() {
        let row = Statistics {
            entropy: 2.0,
            varentropy: 4.0,
            top1: (-1.0_f32).exp(),
            margin: 0.5,
            finite: true,
        };
        // -1 + 1 + 1 + 2 - 0.75
        assert!((FUSED.logit(&row) - 2.25).abs() < 1e-6);
        assert_eq!(Fused::default().logit(&row), 0.0);
    }

    #[test]
    fn nothing_to_choose_between_is_no_risk() {
        let only = Statistics { margin: f32::INFINITY, ..Statistics::UNMEASURED };
        let fearful = Fused { bias: 1e6, margin: 1e6, ..FUSED };
        for fused in [FUSED, Fused { margin: 0.0, ..FUSED }, fearful] {
            assert_eq!(fused.logit(&only), f32::NEG_INFINITY);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_has_no_score() {
        assert!(FUSED.logit(&Statistics::NOT_FINITE).is_nan());
    }

    proptest! {
        /// Fused multiply-add and separate steps agree to the bit, so every compiler's code does.
        #[test]
        fn fusing_changes_nothing(
            weights in prop::array::uniform5(-1e6_f32..1e6),
            entropy in 0_f32..13.0,
            varentropy in 0_f32..1e3,
            top1 in 1e-6_f32..=1.0,
            margin in 0_f32..1e30,
        ) {
            let [bias, w_entropy, w_varentropy, ln_top1, w_margin] = weights;
            let fused =
                Fused { bias, entropy: w_entropy, varentropy: w_varentropy, ln_top1, margin: w_margin };
            let row = Statistics { entropy, varentropy, top1, margin, finite: true };
            let features = [entropy, varentropy, f64::from(top1).ln() as f32, margin];
            let contracted = fused.weights()[1..].iter().zip(features).fold(f64::from(bias), |sum, (&w, x)| {
                f64::from(w).mul_add(f64::from(x), sum)
            });
            prop_assert_eq!(fused.logit(&row).to_bits(), (contracted as f32).to_bits());
        }

        /// The oracle: the same sum in f64 throughout.
        #[test]
        fn close_to_the_sum_in_f64(
            entropy in 0_f32..13.0,
            varentropy in 0_f32..50.0,
            top1 in 1e-6_f32..=1.0,
            margin in 0_f32..50.0,
        ) {
            let row = Statistics { entropy, varentropy, top1, margin, finite: true };
            let exact = -1.0 + 0.5 * f64::from(entropy) + 0.25 * f64::from(varentropy)
                - 2.0 * f64::from(top1).ln() - 1.5 * f64::from(margin);
            prop_assert!((f64::from(FUSED.logit(&row)) - exact).abs() < 1e-5 * exact.abs().max(1.0));
        }
    }
}
