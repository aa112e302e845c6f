//! The order of tile.cuh and the bounds of gumbel.cuh in plain Rust: the definition of a tile's bits.

use std::f32::consts::LN_2;

use rewind_engine::sampling::philox::token_words;
use rewind_kernels::arguments::{CHOICE_GENERAL, CHOICE_SUMS, Choice, HEAD_TILE, LogitTile, NONE};

/// Where [`exponential`] saturates; d does, too.
const LOW: f32 = -87.336_54;

/// What the logits of a row say, 32 by 32.
pub(crate) fn tiles(logits: &[f32], choice: &Choice) -> Vec<LogitTile> {
    let tiles = logits.chunks(HEAD_TILE as usize).zip((0..).step_by(HEAD_TILE as usize));
    tiles.map(|(logits, first)| describe(logits, first, choice)).collect()
}

fn describe(logits: &[f32], first: u32, choice: &Choice) -> LogitTile {
    let finite = logits.iter().all(|logit| logit.is_finite());
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let bounds: Vec<_> =
        logits.iter().zip(first..).map(|(&logit, token)| bounds(logit, token, choice)).collect();
    let mut lowers: Vec<f32> = bounds.iter().map(|bounds| bounds.0).collect();
    lowers.sort_by(|a, b| b.total_cmp(a));

    let mut lanes = [[0.0_f32; 3]; 8];
    for (lane, logits) in lanes.iter_mut().zip(logits.chunks(4)) {
        for logit in logits {
            let d = (logit - max).max(LOW);
            let e = exponential(d);
            *lane = [lane[0] + e, lane[1] + e * d, (e * d).mul_add(d, lane[2])];
        }
    }
    let sum = |i: usize| {
        let pairs: [f32; 4] = std::array::from_fn(|j| lanes[2 * j][i] + lanes[2 * j + 1][i]);
        (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    };
    let sums = choice.flags & CHOICE_SUMS != 0;
    let [z, s, q] = [0, 1, 2].map(|i| if sums { sum(i) } else { 0.0 });
    LogitTile {
        max: if finite { max } else { f32::NAN },
        upper: bounds.iter().map(|bounds| bounds.1).fold(f32::NEG_INFINITY, f32::max),
        lower: lowers[0],
        second_lower: lowers.get(1).copied().unwrap_or(f32::NEG_INFINITY),
        z,
        s,
        q,
        unused: 0,
    }
}

/// Lower and upper bound of a token's score.
fn bounds(logit: f32, token: u32, choice: &Choice) -> (f32, f32) {
    let plain = choice.slot != NONE && choice.flags & CHOICE_GENERAL == 0;
    if !(plain && choice.temperature > 0.0) {
        return (logit, logit);
    }
    let word = token_words(choice.seed, token / 4, choice.position)[token as usize % 4];
    let zeros = (!word).leading_zeros();
    let scaled = logit * (1.0 / choice.temperature);
    let slack = scaled.abs() * 1e-6 + 2e-5;
    let least = if zeros > 0 { zeros as f32 * LN_2 - 0.32664 } else { -3.1301 };
    let (lower, upper) = (scaled + least - slack, scaled + (zeros + 1) as f32 * LN_2 + slack);
    (
        if lower.is_nan() { f32::NEG_INFINITY } else { lower },
        if upper.is_nan() { f32::INFINITY } else { upper },
    )
}

/// eˣ as kernels and CPU compute it: exp.cuh.
fn exponential(x: f32) -> f32 {
    let x = if x < 88.376 { x } else { 88.376 }.max(LOW);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let p = coefficients.iter().fold(1.0 / 5040.0, |p: f32, &c| p.mul_add(r, c));
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    /// The contract's score.
    fn exact(logit: f32, token: u32, choice: &Choice) -> f64 {
        let word = token_words(choice.seed, token / 4, choice.position)[token as usize % 4];
        let u = (f64::from(word) + 0.5) * 2.0_f64.powi(-32);
        f64::from(logit) / f64::from(choice.temperature) - (-u.ln()).ln()
    }

    #[test]
    fn scores_lie_between_their_bounds() {
        let mut random = Random::new(1);
        for round in 0..200 {
            let temperatures = [1.0, 0.7, 1e-3, 1e-30, 1e-40, 1e30, f32::MAX];
            let choice = Choice {
                slot: 0,
                temperature: temperatures[round % temperatures.len()],
                seed: u64::from(random.word()),
                position: random.word(),
                ..Choice::PADDING
            };
            let scales = [1.0, 100.0, 1e-30, 1e38];
            for token in 0..2000 {
                let logit = random.normal().clamp(-3.0, 3.0) * scales[random.below(scales.len())];
                let (lower, upper) = bounds(logit, token, &choice);
                let score = exact(logit, token, &choice);
                assert!(
                    f64::from(lower) <= score && score <= f64::from(upper),
                    "{lower} {score} {upper}"
                );
                if choice.temperature == 1.0 && logit.abs() < 1000.0 {
                    assert!(upper - lower < 4.0, "{lower} {upper}");
                }
            }
        }
    }

    #[test]
    fn the_exponential_is_one() {
        for x in [-87.0_f32, -10.5, -1.0, 0.0, 3.0, 80.0] {
            let exact = f64::from(x).exp();
            assert!((f64::from(exponential(x)) - exact).abs() < 1.5e-7 * exact);
        }
        assert_eq!(exponential(-1e9), exponential(LOW));
    }
}
