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
use half::slice::HalfFloatSliceExt;

use crate::e4m3;

/// The codes of a symmetric integer format.
#[derive(Clone, Copy)]
pub(crate) struct CodeRange {
    /// Smallest code.
    pub(crate) low: f32,
    /// Largest code.
    pub(crate) high: f32,
    /// Scales to try, as the largest magnitude divided by these, at most [`CANDIDATES`]. The first one
    /// clips nothing.
    divisors: &'static [f32],
    /// Whether to try each scale with either sign: a negative scale hands the one step more of the
    /// negative codes to the positive weights.
    mirrored: bool,
}

/// Room for the scales that are tried: a whole vector, so that all are rounded at once.
const CANDIDATES: usize = 8;

/// Eight bits: clipping hardly ever pays, so few scales are tried.
pub(crate) const INT8: CodeRange =
    CodeRange { low: -127.0, high: 127.0, divisors: &[127.0, 129.0, 133.0], mirrored: false };

/// Six bits.
pub(crate) const INT6: CodeRange =
    CodeRange { low: -32.0, high: 31.0, divisors: &[31.0, 32.0, 33.0, 35.0], mirrored: true };

/// Four bits.
pub(crate) const INT4: CodeRange = CodeRange {
    low: -8.0,
    high: 7.0,
    divisors: &[7.0, 7.5, 8.0, 8.5, 9.25, 10.25],
    mirrored: true,
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
    /// What [`nearest`](Self::nearest) makes of each number.
    fn round(values: [f32; CANDIDATES]) -> [f32; CANDIDATES];
}

impl ScaleType for f32 {
    const MAX: Self = Self::MAX / 256.0;

    fn nearest(value: f32) -> Self {
        value.clamp(-<Self as ScaleType>::MAX, <Self as ScaleType>::MAX)
    }

    fn value(self) -> f32 {
        self
    }

    fn round(values: [f32; CANDIDATES]) -> [f32; CANDIDATES] {
        values.map(<Self as ScaleType>::nearest)
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

    fn round(values: [f32; CANDIDATES]) -> [f32; CANDIDATES] {
        // As slices, for one instruction converts a vector; number by number, each is a call.
        let values =
            values.map(|value| value.clamp(-<Self as ScaleType>::MAX, <Self as ScaleType>::MAX));
        let (mut halves, mut rounded) = ([Self::ZERO; CANDIDATES], [0.0; CANDIDATES]);
        halves.convert_from_f32_slice(&values);
        halves.convert_to_f32_slice(&mut rounded);
        rounded
    }
}

/// The scale for `weights`, all finite and at most `T::MAX · range.high` in magnitude.
///
/// Zero if and only if every code is best zero.
pub(crate) fn search<T: ScaleType>(weights: &[f32], range: CodeRange) -> T {
    let largest = largest(weights);
    let mut scales = [0.0; CANDIDATES];
    for (scale, divisor) in scales.iter_mut().zip(range.divisors) {
        *scale = largest / divisor;
    }
    let scales = T::round(scales);
    let mut best = Candidate { scale: scales[0], error: f32::INFINITY };
    for &scale in &scales[..range.divisors.len()] {
        if range.mirrored {
            let [plain, mirrored] = mirrored_errors(weights, scale, range);
            best.consider(scale, plain);
            best.consider(-scale, mirrored);
        } else {
            best.consider(scale, squared_error(weights, scale, range));
        }
    }
    for _ in 0..REFINEMENTS {
        let Some(solved) = least_squares(weights, best.scale, range) else { break };
        let solved = T::nearest(solved).value();
        // The same scale again would be solved for the same one.
        if !best.consider(solved, squared_error(weights, solved, range)) {
            break;
        }
    }
    // One that the type holds exactly.
    T::nearest(best.scale)
}

/// What the largest magnitude of a row may become in E4M3FN: unclipped, at other places between two powers of
/// two, and a little clipped.
const E4M3_LARGEST: [f32; 8] = [448.0, 416.0, 384.0, 352.0, 320.0, 288.0, 256.0, 480.0];

/// The scale for a row of [`e4m3`] numbers, by the same measure. Zero only if every code is best zero.
///
/// Floats keep their relative error whatever the scale, so what a scale changes is where neighbours lie.
pub(crate) fn search_e4m3(weights: &[f32]) -> f32 {
    let largest = largest(weights);
    // Where squares overflow, what clips nothing stays.
    let mut best = Candidate { scale: largest / e4m3::MAX, error: f32::INFINITY };
    for scale in E4M3_LARGEST.map(|number| largest / number).into_iter().filter(|&s| s > 0.0) {
        let [error, _] = sum_lanes(weights, |w| {
            let error = w - e4m3::round(w / scale) * scale;
            [error * error, 0.0]
        });
        best.consider(scale, error);
    }
    best.scale
}

/// Writes the codes of `weights`: the nearest ones, ties to even, saturating. `scale` may be zero.
pub(crate) fn encode(weights: &[f32], scale: f32, range: CodeRange, codes: &mut [i8]) {
    // The integer that rounding leaves in the low bits, two's complement.
    let code = |steps: f32| shifted(steps, range).to_bits() as i8;
    let pairs = codes.iter_mut().zip(weights);
    if scale == 0.0 {
        // 0 / 0 is NaN, which `clamp` would let through.
        pairs.for_each(|(to, w)| *to = code(if *w == 0.0 { 0.0 } else { w / scale }));
    } else {
        pairs.for_each(|(to, w)| *to = code(w / scale));
    }
}

/// The best scale so far.
struct Candidate {
    scale: f32,
    error: f32,
}

impl Candidate {
    /// Takes a scale of less error; whether it is one.
    fn consider(&mut self, scale: f32, error: f32) -> bool {
        let better = error < self.error;
        if better {
            *self = Self { scale, error };
        }
        better
    }
}

/// Adding and subtracting 1.5 · 2²³ rounds to an integer, ties to even, in two instructions that
/// vectorize everywhere; exact for the small integers that a clamp leaves.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
fn shifted(steps: f32, range: CodeRange) -> f32 {
    // `f32::clamp` checks its bounds, which keeps loops from being vectorized.
    let steps = if steps < range.low { range.low } else { steps };
    let steps = if steps > range.high { range.high } else { steps };
    steps + ROUND
}

/// The nearest code, ties to even, saturating.
#[inline(always)]
pub(crate) fn rounded(steps: f32, range: CodeRange) -> f32 {
    shifted(steps, range) - ROUND
}

/// The code of `weight`. `scale` must not be zero.
#[inline(always)]
fn code(weight: f32, scale: f32, range: CodeRange) -> f32 {
    rounded(weight / scale, range)
}

/// Lanes of the sums below. Float addition is not reassociated by the compiler, so vectors must be
/// written as such.
pub(crate) const LANES: usize = 8;

/// The largest magnitude.
pub(crate) fn largest(weights: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a < b { b } else { a };
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for chunk in chunks {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, w.abs());
        }
    }
    lanes.into_iter().chain(rest.iter().map(|w| w.abs())).fold(0.0, larger)
}

fn squared_error(weights: &[f32], scale: f32, range: CodeRange) -> f32 {
    if scale == 0.0 {
        return squares(weights);
    }
    let [sum, _] = sum_lanes(weights, |w| {
        let error = w - code(w, scale, range) * scale;
        [error * error, 0.0]
    });
    sum
}

/// The squared errors with `scale` and with `-scale`, which share their division: what the negative
/// scale codes as q, the positive one would code as -q, had its range the mirrored bounds.
fn mirrored_errors(weights: &[f32], scale: f32, range: CodeRange) -> [f32; 2] {
    if scale == 0.0 {
        return [squares(weights); 2];
    }
    let (low, high) = (range.low, range.high);
    let wide = CodeRange { low: low.min(-high), high: high.max(-low), ..range };
    sum_lanes(weights, |w| {
        let nearest = code(w, scale, wide);
        let plain = if nearest > high { high } else { nearest };
        let plain = if plain < low { low } else { plain };
        let mirrored = if nearest < -high { -high } else { nearest };
        let mirrored = if mirrored > -low { -low } else { mirrored };
        let (plain, mirrored) = (w - plain * scale, w - mirrored * scale);
        [plain * plain, mirrored * mirrored]
    })
}

fn squares(weights: &[f32]) -> f32 {
    let [sum, _] = sum_lanes(weights, |w| [w * w, 0.0]);
    sum
}

/// The scale that fits `weights` best while their codes under `scale` stay: Σ w·q / Σ q².
fn least_squares(weights: &[f32], scale: f32, range: CodeRange) -> Option<f32> {
    if scale == 0.0 {
        return None;
    }
    // The codes first, then the sums: as one loop it would branch at each clamp.
    let (mut products, mut squares) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let mut codes = [0.0_f32; 4 * LANES];
    for weights in weights.chunks(codes.len()) {
        let codes = &mut codes[..weights.len()];
        for (code_of, &w) in codes.iter_mut().zip(weights) {
            *code_of = code(w, scale, range);
        }
        for (weights, codes) in weights.chunks(LANES).zip(codes.chunks(LANES)) {
            let sums = products.iter_mut().zip(&mut squares);
            for ((product, square), (w, q)) in sums.zip(weights.iter().zip(codes)) {
                *product += w * q;
                *square += q * q;
            }
        }
    }
    let (products, squares): (f32, f32) = (products.iter().sum(), squares.iter().sum());
    let solved = products / squares;
    solved.is_finite().then_some(solved)
}

/// The sums of both terms.
#[inline(always)]
pub(crate) fn sum_lanes(weights: &[f32], term: impl Fn(f32) -> [f32; 2]) -> [f32; 2] {
    let (mut first, mut second) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let mut add = |i: usize, w: f32| {
        let [a, b] = term(w);
        first[i] += a;
        second[i] += b;
    };
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (i, &w) in chunk.iter().enumerate() {
            add(i, w);
        }
    }
    for (i, &w) in rest.iter().enumerate() {
        add(i, w);
    }
    [first.iter().sum(), second.iter().sum()]
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
        for (range, length, slack) in [
            (INT4, 32, 1.02),
            (INT4, 64, 1.02),
            (INT4, 128, 1.02),
            (INT6, 32, 1.12),
            (INT8, 32, 1.35),
        ] {
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
            for range in [INT4, INT6, INT8] {
                let q = code(w, scale, range);
                prop_assert_eq!(q, q.round_ties_even());
                prop_assert_eq!(q, (w / scale).clamp(range.low, range.high).round_ties_even());
                let mut byte = [0];
                encode(&[w], scale, range, &mut byte);
                prop_assert_eq!(f32::from(byte[0]), q);
            }
        }

        #[test]
        fn mirrored_errors_are_those_of_either_sign(
            weights in proptest::collection::vec(-9_f32..9.0, 1..70), s in 0.1_f32..2.0, coarse: bool,
        ) {
            // Halves with a scale of one are all ties.
            let weights: Vec<f32> =
                weights.into_iter().map(|w| if coarse { w.round() / 2.0 } else { w }).collect();
            let s = if coarse { 1.0 } else { s };
            let errors = [s, -s].map(|s| squared_error(&weights, s, INT4).to_bits());
            prop_assert_eq!(mirrored_errors(&weights, s, INT4).map(f32::to_bits), errors);
        }
    }
}
