//! Scales of symmetric integer groups: the least squared error over a small clip search.
//!
//! A scale that covers the largest weight wastes codes on it; a smaller one clips it and serves the
//! rest better. The search tries a few scales, improves the best by least squares with the codes
//! held fixed, and keeps what measures best. Rejected: the exact optimum (a sweep over all code
//! changes, sorted), which costs tens of times more and lowers the error by less than one percent.
//!
//! Everything here is plain f32 arithmetic in a fixed order, so the same weights give the same codes
//! on every machine.

use half::f16;

/// The codes of a symmetric integer format.
#[derive(Clone, Copy)]
pub(crate) struct CodeRange {
    /// Smallest code.
    pub(crate) low: f32,
    /// Largest code.
    pub(crate) high: f32,
    /// Scales to try, as the largest magnitude divided by these. The first one clips nothing.
    divisors: &'static [f32],
}

/// Eight bits: clipping hardly ever pays, so few scales are tried.
pub(crate) const INT8: CodeRange =
    CodeRange { low: -127.0, high: 127.0, divisors: &[127.0, 129.0, 133.0] };

/// Four bits. A negative divisor gives a negative scale, which hands the ninth step, -8, to the
/// positive weights.
pub(crate) const INT4: CodeRange = CodeRange {
    low: -8.0,
    high: 7.0,
    divisors: &[7.0, -7.0, 7.5, -7.5, 8.0, -8.0, 8.5, -8.5, 9.25, -9.25, 10.25, -10.25],
};

/// Steps of "fix the codes, solve for the scale, recode" after the search.
const REFINEMENTS: usize = 2;

/// A type that scales are stored in.
pub(crate) trait ScaleType: Copy {
    /// Largest magnitude such that the largest code times it is still a finite f32.
    const MAX: f32;
    /// The nearest scale to `value`, at most [`Self::MAX`] in magnitude.
    fn nearest(value: f32) -> Self;
    /// Its exact value.
    fn value(self) -> f32;
}

impl ScaleType for f32 {
    const MAX: Self = Self::MAX / 256.0;

    fn nearest(value: f32) -> Self {
        value.clamp(-<Self as ScaleType>::MAX, <Self as ScaleType>::MAX)
    }

    fn value(self) -> f32 {
        self
    }
}

impl ScaleType for f16 {
    const MAX: f32 = 65504.0;

    fn nearest(value: f32) -> Self {
        Self::from_f32(value.clamp(-<Self as ScaleType>::MAX, <Self as ScaleType>::MAX))
    }

    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// The scale for `weights`, all finite and at most `T::MAX · range.high` in magnitude.
///
/// Zero if and only if every code is best zero.
pub(crate) fn search<T: ScaleType>(weights: &[f32], range: CodeRange) -> T {
    let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
    let mut best = T::nearest(largest / range.divisors[0]);
    let mut least = squared_error(weights, best.value(), range);
    let mut consider = |scale: T, best: &mut T| {
        let error = squared_error(weights, scale.value(), range);
        if error < least {
            (least, *best) = (error, scale);
        }
    };
    for divisor in &range.divisors[1..] {
        consider(T::nearest(largest / divisor), &mut best);
    }
    for _ in 0..REFINEMENTS {
        let Some(solved) = least_squares(weights, best.value(), range) else { break };
        consider(T::nearest(solved), &mut best);
    }
    best
}

/// The code of `weight`: the nearest one, ties to even, saturating. `scale` may be zero.
pub(crate) fn code(weight: f32, scale: f32, range: CodeRange) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to an integer, ties to even, in two instructions that
    // vectorize everywhere; exact for the small integers that the clamp leaves.
    const ROUND: f32 = 12_582_912.0;
    let steps = weight / scale;
    // 0 / 0; `clamp` would let the NaN through.
    let steps = if steps.is_nan() { 0.0 } else { steps };
    (steps.clamp(range.low, range.high) + ROUND) - ROUND
}

/// Lanes of the sums below. Float addition is not reassociated by the compiler, so vectors must be
/// written as such.
const LANES: usize = 8;

fn squared_error(weights: &[f32], scale: f32, range: CodeRange) -> f32 {
    if scale == 0.0 {
        return sum_lanes(weights, |w| w * w);
    }
    sum_lanes(weights, |w| {
        let error = w - code(w, scale, range) * scale;
        error * error
    })
}

/// The scale that fits `weights` best while their codes under `scale` stay: Σ w·q / Σ q².
fn least_squares(weights: &[f32], scale: f32, range: CodeRange) -> Option<f32> {
    if scale == 0.0 {
        return None;
    }
    let products = sum_lanes(weights, |w| w * code(w, scale, range));
    let squares = sum_lanes(weights, |w| {
        let q = code(w, scale, range);
        q * q
    });
    let solved = products / squares;
    solved.is_finite().then_some(solved)
}

#[inline(always)]
fn sum_lanes(weights: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &w) in lanes.iter_mut().zip(chunk) {
            *lane += term(w);
        }
    }
    for (lane, &w) in lanes.iter_mut().zip(rest) {
        *lane += term(w);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Error of the best of 4,000 scales: close to the true optimum.
    fn exhaustive(weights: &[f32], range: CodeRange) -> f32 {
        let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        (1..=2000)
            .flat_map(|i| [1.0, -1.0].map(|sign| sign * largest / range.high * i as f32 / 1600.0))
            .map(|s| squared_error(weights, f16::from_f32(s).to_f32(), range))
            .fold(f32::INFINITY, f32::min)
    }

    /// Sums of twelve uniform numbers: near enough to Gaussian weights.
    fn gaussian(count: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    #[test]
    fn search_comes_close_to_the_optimum() {
        // Eight bits are fine enough for scales to "resonate" with a group by luck, which only an
        // exhaustive search finds; nothing worth the time is lost.
        for (range, length, slack) in
            [(INT4, 32, 1.02), (INT4, 64, 1.02), (INT4, 128, 1.02), (INT8, 32, 1.35)]
        {
            let (mut found, mut optimal, mut covering) = (0.0, 0.0, 0.0);
            for group in gaussian(length * 200).chunks_exact(length) {
                let scale: f16 = search(group, range);
                found += squared_error(group, scale.to_f32(), range);
                optimal += exhaustive(group, range);
                let largest = group.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
                covering += squared_error(group, largest / range.high, range);
            }
            assert!(found < slack * optimal, "{length}: {found} against {optimal}");
            assert!(found < covering, "{length}: {found} against {covering}");
        }
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest_in_range(w in -1e3_f32..1e3, s in 1e-3_f32..1e3, negative: bool) {
            let scale = if negative { -s } else { s };
            for range in [INT4, INT8] {
                let q = code(w, scale, range);
                prop_assert_eq!(q, q.round_ties_even());
                prop_assert_eq!(q, (w / scale).clamp(range.low, range.high).round_ties_even());
            }
        }
    }
}
