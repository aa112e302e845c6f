//! Statistics of a row from sums that one pass can carry along.
//!
//! With m the largest logit, d = l − m, Z = Σ e^d, S = Σ e^d·d and Q = Σ e^d·d²:
//!
//! ```text
//! H = ln Z − S/Z          varentropy = Q/Z − (S/Z)²          top1 = 1/Z
//! ```
//!
//! because ln p = d − ln Z. An executor sums a tile of logits while it is in cache, in whatever
//! vector form suits it, and merges the tiles in order of index. Tiles are short, so f32 inside one
//! is accurate enough; the merge is in f64. To keep running sums and rescale them at each new
//! maximum, logit by logit, was rejected: it puts an exponential on the critical path twice.

use crate::Statistics;

/// Sums over some logits, relative to the largest of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sums {
    /// m, the largest logit; −∞ over none.
    pub max: f32,
    /// Z = Σ e^(l−m).
    pub z: f64,
    /// S = Σ e^(l−m)·(l−m), ≤ 0.
    pub s: f64,
    /// Q = Σ e^(l−m)·(l−m)².
    pub q: f64,
}

impl Sums {
    /// Over no logits: the neutral element of [`Sums::merge`].
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, z: 0.0, s: 0.0, q: 0.0 };

    /// Over logits of which at least one is NaN or infinite; it stays so in any merge.
    pub const NOT_FINITE: Self = Self { max: f32::NAN, z: f64::NAN, s: f64::NAN, q: f64::NAN };

    /// Sums over the logits of both. To get the same bits each time, merge in order of index,
    /// starting from [`Sums::EMPTY`].
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if !self.is_finite() || !other.is_finite() {
            return Self::NOT_FINITE;
        }
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let max = self.max.max(other.max);
        let (a, b) = (self.relative_to(max), other.relative_to(max));
        Self { max, z: a.z + b.z, s: a.s + b.s, q: a.q + b.q }
    }

    /// The statistics of the whole row. `margin` comes from the choice of the token.
    ///
    /// No logits at all count as not finite.
    pub fn finish(self, margin: f32) -> Statistics {
        if self.is_empty() || !self.is_finite() {
            return Statistics::NOT_FINITE;
        }
        let mean = self.s / self.z;
        Statistics {
            // Rounding must not make either negative.
            entropy: (self.z.ln() - mean).max(0.0) as f32,
            varentropy: (self.q / self.z - mean * mean).max(0.0) as f32,
            top1: (1.0 / self.z) as f32,
            margin,
            finite: true,
        }
    }

    /// ln Σ e^l over the row: subtract it from a logit to get its log-probability.
    pub fn log_z(self) -> f64 {
        f64::from(self.max) + self.z.ln()
    }

    /// Whether every logit was finite, as far as the sums tell: an infinite logit makes its own
    /// product with a vanished weight NaN, a NaN spoils Z. A vector form whose maximum or
    /// exponential swallows NaN must check the logits itself.
    pub fn is_finite(self) -> bool {
        let max = self.max.is_finite() || self.max == f32::NEG_INFINITY && self.z == 0.0;
        max && self.z.is_finite() && self.s.is_finite() && self.q.is_finite()
    }

    fn is_empty(self) -> bool {
        self.z == 0.0
    }

    /// The same sums with `max` in place of m: each d becomes d + δ, δ = m − max ≤ 0.
    fn relative_to(self, max: f32) -> Self {
        if self.max == max {
            return self;
        }
        let shift = f64::from(self.max) - f64::from(max);
        let scale = shift.exp();
        let Self { z, s, q, .. } = self;
        Self {
            max,
            z: scale * z,
            s: scale * (s + shift * z),
            q: scale * (q + shift * (2.0 * s + shift * z)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oracle;

    /// A tile as an executor sums it, all in f32.
    fn tile(logits: &[f32]) -> Sums {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut z, mut s, mut q) = (0.0_f32, 0.0_f32, 0.0_f32);
        for &logit in logits {
            let d = logit - max;
            let weight = d.exp();
            z += weight;
            s += weight * d;
            q += weight * d * d;
        }
        Sums { max, z: z.into(), s: s.into(), q: q.into() }
    }

    fn fused(logits: &[f32], length: usize) -> Statistics {
        let merge = |sums: Sums, logits: &[f32]| sums.merge(tile(logits));
        logits.chunks(length).fold(Sums::EMPTY, merge).finish(oracle::margin(logits) as f32)
    }

    fn assert_agrees(logits: &[f32], length: usize, case: &str) {
        let (fused, oracle) = (fused(logits, length), oracle::statistics(logits));
        let close = |a: f32, b: f32, what: &str| {
            // Nats, and relative where a variance is large.
            let tolerance = 1e-4 * b.abs().max(1.0);
            assert!((a - b).abs() <= tolerance, "{case}, {what}: fused {a}, oracle {b}");
        };
        assert!((fused.entropy - oracle.entropy).abs() <= 1e-4, "{case}: {fused:?}, {oracle:?}");
        close(fused.varentropy, oracle.varentropy, "varentropy");
        close(fused.top1, oracle.top1, "top1");
        assert_eq!((fused.margin, fused.finite), (oracle.margin, true));
    }

    /// Uniform in −1 .. 1 from a linear congruential generator.
    fn noise(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        }
    }

    #[test]
    fn agrees_with_the_oracle_up_to_256k() {
        for vocabulary in [1, 2, 1000, 49_152, 262_144] {
            for offset in [0.0, 1e4, -1e4] {
                let mut noise = noise(vocabulary as u64);
                let rows: [(&str, Vec<f32>); 5] = [
                    ("uniform", vec![offset; vocabulary]),
                    ("peaked", (0..vocabulary).map(|i| offset - (i as f32).sqrt()).collect()),
                    ("random", (0..vocabulary).map(|_| offset + 8.0 * noise()).collect()),
                    ("wide", (0..vocabulary).map(|_| offset + 80.0 * noise()).collect()),
                    (
                        "two points",
                        (0..vocabulary)
                            .map(|i| if i < 2 { offset } else { offset - 2e4 })
                            .collect(),
                    ),
                ];
                for (name, row) in rows {
                    for length in [256, 1024] {
                        let case = format!("{name}, {vocabulary} logits around {offset}");
                        assert_agrees(&row, length, &case);
                    }
                }
            }
        }
    }

    #[test]
    fn anything_not_finite_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 5, 9] {
                let mut row = [1.0_f32; 10];
                row[place] = bad;
                for length in [1, 3, 10] {
                    assert!(!fused(&row, length).finite, "{bad} at {place}");
                }
            }
        }
        assert!(!Sums::EMPTY.finish(0.0).finite);
        assert!(!Sums::NOT_FINITE.merge(Sums::EMPTY).is_finite());
    }

    #[test]
    fn log_z_is_the_logarithm_of_the_partition_sum() {
        let logits = [1.0_f32, 2.0, -3.0, 0.5];
        let expected = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let sums = tile(&logits[..2]).merge(tile(&logits[2..]));
        assert!((sums.log_z() - expected).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(
            logits in prop::collection::vec(-50_f32..50.0, 1..2000),
            length in 1_usize..300,
        ) {
            assert_agrees(&logits, length, "random row");
        }

        #[test]
        fn empty_is_neutral(logits in prop::collection::vec(-50_f32..50.0, 1..50)) {
            let sums = tile(&logits);
            prop_assert_eq!(Sums::EMPTY.merge(sums), sums);
            prop_assert_eq!(sums.merge(Sums::EMPTY), sums);
        }
    }
}
