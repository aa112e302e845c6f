//! The definitions, written out in f64: what every fused or vectorized form is tested against.
//!
//! Two passes over the row, the maximum and then the sums, and no trick that a reader would have to
//! believe. Far too slow to serve with.

use crate::Statistics;

/// Keeps the logarithm of a vanished probability finite in the entropy.
pub const EPSILON: f64 = 1e-10;

/// Probabilities at temperature 1. Empty for an empty row; meaningless if the row is not finite.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Shannon entropy −Σ p ln(p + ε) in nats.
pub fn entropy(p: &[f64]) -> f64 {
    -p.iter().map(|p| p * (p + EPSILON).ln()).sum::<f64>()
}

/// Variance of the surprisal, Σ p (ln p + H)², in nats². A vanished probability adds nothing.
pub fn varentropy(p: &[f64]) -> f64 {
    let entropy = entropy(p);
    p.iter().filter(|&&p| p > 0.0).map(|p| p * (p.ln() + entropy).powi(2)).sum()
}

/// The largest probability.
pub fn top1(p: &[f64]) -> f64 {
    p.iter().copied().fold(0.0, f64::max)
}

/// The greedy margin ln(p₁/p₂) in nats: the difference of the two largest logits. Infinite for a
/// row of one.
pub fn margin(logits: &[f32]) -> f64 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    match sorted[..] {
        [first, second, ..] => f64::from(first) - f64::from(second),
        _ => f64::INFINITY,
    }
}

/// Whether no logit is NaN or infinite.
pub fn is_finite(logits: &[f32]) -> bool {
    logits.iter().all(|logit| logit.is_finite())
}

/// All of them, for a greedy choice, rounded to f32 once.
pub fn statistics(logits: &[f32]) -> Statistics {
    if logits.is_empty() || !is_finite(logits) {
        return Statistics::NOT_FINITE;
    }
    let p = softmax(logits);
    Statistics {
        entropy: entropy(&p) as f32,
        varentropy: varentropy(&p) as f32,
        top1: top1(&p) as f32,
        margin: margin(logits) as f32,
        finite: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-8
    }

    #[test]
    fn a_coin_and_a_die() {
        let coin = softmax(&[7.0, 7.0]);
        assert!(close(entropy(&coin), 2_f64.ln()));
        assert!(close(varentropy(&coin), 0.0));
        assert_eq!(top1(&coin), 0.5);
        let die = softmax(&[-3.0; 6]);
        assert!(close(entropy(&die), 6_f64.ln()));
    }

    #[test]
    fn a_biased_coin() {
        // p = 3/4 and 1/4; variance of the surprisal = p(1−p) ln²(p/(1−p)).
        let p = softmax(&[3_f32.ln(), 0.0]);
        let expected = -(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
        assert!((entropy(&p) - expected).abs() < 1e-7);
        assert!((varentropy(&p) - 0.75 * 0.25 * 3_f64.ln().powi(2)).abs() < 1e-7);
        assert!((margin(&[3_f32.ln(), 0.0]) - 3_f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn rows_that_are_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(statistics(&[0.0, bad, 1.0]), Statistics::NOT_FINITE);
        }
        assert_eq!(statistics(&[]), Statistics::NOT_FINITE);
    }

    #[test]
    fn a_row_of_one_is_certain() {
        let row = statistics(&[4.0]);
        assert!(row.finite && row.entropy.abs() < 1e-6 && row.top1 == 1.0);
        assert_eq!(row.margin, f32::INFINITY);
    }
}
