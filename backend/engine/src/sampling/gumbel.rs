//! Gumbel-max: the survivor with the greatest perturbed score is a sample of the softmax.

use std::f64::consts::LN_2;

use crate::executor::Token;

use super::philox::token_words;
use super::rank::{Leaders, Rank};

/// Above the noise of any word: `u ≤ 1 − 2⁻³³`, so the noise stays below 33 ln 2 ≈ 22.87.
const CEILING: f64 = 33.0 * LN_2;

/// The two best perturbed scores among candidates not below `last`.
///
/// Skips what cannot win without computing its logarithms, or its words at all. Skipping is exact:
/// it compares `fl(l/T + bound)` with a score of the form `fl(l/T + noise)`, and rounding is
/// monotonic.
pub(super) fn perturbed_best(
    processed: &[f32],
    last: Rank,
    temperature: f64,
    seed: u64,
    position: u32,
) -> Leaders {
    let mut leaders = Leaders::NONE;
    let last_logit = last.logit();
    for (four, block) in processed.chunks(4).zip(0..) {
        let greatest = four.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if greatest < last_logit || f64::from(greatest) / temperature + CEILING < leaders.floor() {
            continue;
        }
        let words = token_words(seed, block, position);
        for ((&logit, word), token) in four.iter().zip(words).zip(4 * block as Token..) {
            let score = f64::from(logit) / temperature;
            if Rank::new(logit, token) >= last && score + ceiling(word) >= leaders.floor() {
                leaders.offer(score + noise(word), token);
            }
        }
    }
    leaders
}

/// −ln(−ln u) with u = (word + ½)·2⁻³². In f64, where u is exact and never 0 or 1.
fn noise(word: u32) -> f64 {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    let u = (f64::from(word) + 0.5) * SCALE;
    -(-u.ln()).ln()
}

/// A bound on the noise of a word from its leading bits.
///
/// −ln u > 1 − u, so the noise is below −ln(1 − u); and 1 − u = (y + ½)·2⁻³² with y the complement
/// of the word, which is above 2^−(z+1) if y has z leading zeros. The gap exceeds 2⁻³⁵, far more
/// than the rounding of either side.
fn ceiling(word: u32) -> f64 {
    f64::from((!word).leading_zeros() + 1) * LN_2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn noise_is_finite_and_ascends() {
        let words = [0, 1, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX];
        let noises = words.map(noise);
        assert!(noises.iter().all(|n| n.is_finite()));
        assert!(noises.is_sorted());
        assert!((noises[0] - -3.13).abs() < 0.01, "{}", noises[0]);
        assert!(noises[5] < CEILING && noises[5] > 22.8);
    }

    #[test]
    fn the_ceiling_holds_around_every_power_of_two() {
        for shift in 0..32 {
            for y in [(1_u32 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                assert!(noise(!y) < ceiling(!y), "{y}");
            }
        }
        assert!(noise(0) < ceiling(0));
    }

    proptest! {
        #[test]
        fn the_ceiling_holds(word: u32) {
            prop_assert!(noise(word) < ceiling(word));
            prop_assert!(ceiling(word) <= CEILING);
        }
    }
}
