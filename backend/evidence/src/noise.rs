//! A noise model of the margin.
//!
//! Quantization moves the difference of the draft's two best logits by noise. If that is normal with deviation σ, draft
//! and shadow disagree with probability Φ(−margin/σ).

use std::f64::consts::{PI, SQRT_2};

use statrs::function::erf::erfc;

/// σ by maximum likelihood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MarginNoiseFit {
    /// Nats, positive.
    pub sigma: f64,
}

/// Between these σ is looked for, nats.
const RANGE: [f64; 2] = [1e-4, 1e3];

impl MarginNoiseFit {
    /// From margins, not negative, whether draft and shadow disagreed, and how often each step counts. `None` if no
    /// step with a finite margin counts, or if all have one outcome: then no σ is best.
    pub fn fit(steps: impl Iterator<Item = (f64, bool, f64)> + Clone) -> Option<Self> {
        Self::fit_between(steps, RANGE)
    }

    /// As [`Self::fit`], but near an earlier fit, for other weights of the same steps: a bootstrap makes hundreds.
    pub fn again(self, steps: impl Iterator<Item = (f64, bool, f64)> + Clone) -> Option<Self> {
        Self::fit_between(steps, [self.sigma / 4.0, self.sigma * 4.0])
    }

    fn fit_between(
        steps: impl Iterator<Item = (f64, bool, f64)> + Clone,
        range: [f64; 2],
    ) -> Option<Self> {
        let steps = steps.filter(|&(margin, _, weight)| margin.is_finite() && weight > 0.0);
        let has = |outcome| steps.clone().any(|(_, disagrees, _)| disagrees == outcome);
        if !has(true) || !has(false) {
            return None;
        }
        let loss = |log_sigma: f64| {
            let sigma = log_sigma.exp();
            steps.clone().fold(0.0, |sum, (margin, disagrees, weight)| {
                let x = if disagrees { -margin } else { margin } / sigma;
                sum - weight * ln_normal_cdf(x)
            })
        };
        // In 1/σ the likelihood is log-concave, so there is one minimum along ln σ.
        let [low, high] = range.map(f64::ln);
        Some(Self { sigma: golden(loss, low, high).exp() })
    }
}

/// ln Φ(x).
fn ln_normal_cdf(x: f64) -> f64 {
    if x < -30.0 {
        // erfc underflows near −38; the first term of the asymptotic series is exact to 1e-3 here.
        return -0.5 * x * x - (-x * (2.0 * PI).sqrt()).ln();
    }
    if x > 6.0 {
        // Close to 1, where the logarithm of a rounded sum says less than that of what is missing.
        return -0.5 * erfc(x / SQRT_2);
    }
    (0.5 * erfc(-x / SQRT_2)).ln()
}

/// Where a function with one minimum has it, to 1e-6, by golden-section search.
fn golden(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    const RATIO: f64 = 0.618_033_988_749_894_9;
    let (mut left, mut right) = (high - RATIO * (high - low), low + RATIO * (high - low));
    let (mut f_left, mut f_right) = (f(left), f(right));
    while high - low > 1e-6 {
        if f_left < f_right {
            (high, right, f_right) = (right, left, f_left);
            left = high - RATIO * (high - low);
            f_left = f(left);
        } else {
            (low, left, f_left) = (left, right, f_right);
            right = low + RATIO * (high - low);
            f_right = f(right);
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_logarithms() {
        for (x, expected) in [
            (0.0, 0.5_f64.ln()),
            (1.0, -0.172_753_779),
            (-1.0, -1.841_021_645),
            (-10.0, -53.231_285_151),
            (-40.0, -804.608_442_01),
            (7.0, -1.279_812_544e-12),
        ] {
            let found = ln_normal_cdf(x);
            assert!((found / expected - 1.0).abs() < 1e-5, "{x}: {found} {expected}");
        }
        for seam in [-30.0, 6.0] {
            let (below, above) = (ln_normal_cdf(seam - 1e-9), ln_normal_cdf(seam + 1e-9));
            assert!((below / above - 1.0).abs() < 1e-4, "{below} {above}");
        }
    }

    /// Two logits whose difference is moved by normal noise; only the draft's margin is told.
    fn planted(sigma: f64, count: usize) -> Vec<(f64, bool, f64)> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut normal = || {
            let (u, v) = (1.0 - random.f64(), random.f64());
            (-2.0 * u.ln()).sqrt() * (2.0 * PI * v).cos()
        };
        (0..count)
            .map(|_| {
                let margin = 2.0 * normal().abs();
                (margin, margin + sigma * normal() < 0.0, 1.0)
            })
            .collect()
    }

    #[test]
    fn planted_noise_is_found() {
        for sigma in [0.02, 0.3, 2.0] {
            let steps = planted(sigma, 40_000);
            let found = MarginNoiseFit::fit(steps.iter().copied()).unwrap();
            assert!((found.sigma / sigma - 1.0).abs() < 0.1, "{sigma}: {found:?}");
            let again = found.again(steps.iter().copied()).unwrap();
            assert!((again.sigma / found.sigma - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn weights_are_counts() {
        let steps = planted(0.5, 500);
        let twice: Vec<_> = steps.iter().chain(&steps[..250]).copied().collect();
        let weighted = steps.iter().enumerate().map(|(place, &(margin, disagrees, _))| {
            (margin, disagrees, if place < 250 { 2.0 } else { 1.0 })
        });
        let a = MarginNoiseFit::fit(twice.iter().copied()).unwrap();
        let b = MarginNoiseFit::fit(weighted).unwrap();
        assert!((a.sigma / b.sigma - 1.0).abs() < 1e-5);
    }

    #[test]
    fn without_both_outcomes_there_is_no_fit() {
        assert_eq!(MarginNoiseFit::fit([(1.0, false, 1.0)].into_iter()), None);
        let no_weight = [(1.0, false, 1.0), (0.1, true, 0.0)];
        assert_eq!(MarginNoiseFit::fit(no_weight.into_iter()), None);
        let infinite = [(1.0, false, 1.0), (f64::INFINITY, true, 1.0)];
        assert_eq!(MarginNoiseFit::fit(infinite.into_iter()), None);
    }
}
