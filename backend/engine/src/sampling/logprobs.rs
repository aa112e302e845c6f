//! Log-probabilities of the raw distribution, as answers report them.

use std::sync::Arc;

use crate::executor::{Token, TokenLogprob};

use super::rank::{Rank, keep_best};

/// Log-probabilities under the softmax of raw logits: the chosen token first (if there is one and it
/// is in the vocabulary), then the `top` best in order of rank, the chosen one again if it is among
/// them.
///
/// `log_z` is ln Σ e^l over all logits. Ranks count from 1, ties by lower id.
pub fn logprobs(logits: &[f32], chosen: Option<Token>, top: u8, log_z: f64) -> Arc<[TokenLogprob]> {
    let entry = |token: Token, logit: f32, rank: usize| TokenLogprob {
        token,
        // Rounding of `log_z` must not make a probability exceed 1.
        logprob: (f64::from(logit) - log_z).min(0.0) as f32,
        rank: rank as u32,
    };
    let chosen = chosen.and_then(|token| Some((token, *logits.get(token as usize)?)));
    let chosen = chosen.map(|(token, logit)| entry(token, logit, 1 + better(logits, token, logit)));

    let mut best = Vec::new();
    if top > 0 {
        keep_best(logits, usize::from(top), &mut best);
        best.sort_unstable_by(|a: &Rank, b| b.cmp(a));
    }
    let best = best.iter().zip(1..).map(|(rank, place)| entry(rank.token(), rank.logit(), place));
    chosen.into_iter().chain(best).collect()
}

/// How many tokens rank before this one.
fn better(logits: &[f32], token: Token, logit: f32) -> usize {
    let (before, after) = logits.split_at(token as usize);
    before.iter().filter(|&&other| other >= logit).count()
        + after.iter().filter(|&&other| other > logit).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_z(logits: &[f32]) -> f64 {
        logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln()
    }

    #[test]
    fn chosen_first_then_the_best() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        let got = logprobs(&logits, Some(2), 3, log_z(&logits));
        let places: Vec<_> = got.iter().map(|l| (l.token, l.rank)).collect();
        assert_eq!(places, [(2, 3), (1, 1), (3, 2), (2, 3)]);
        assert!((f64::from(got[1].logprob) - (3.0 - log_z(&logits))).abs() < 1e-6);
    }

    #[test]
    fn nothing_wanted_or_nothing_there() {
        assert!(logprobs(&[1.0, 2.0], None, 0, 2.3).is_empty());
        assert!(logprobs(&[1.0, 2.0], Some(2), 0, 2.3).is_empty());
        assert_eq!(logprobs(&[5.0], Some(0), 20, 5.0 - 1e-9).len(), 2);
        assert_eq!(logprobs(&[5.0], Some(0), 0, 5.0 - 1e-9)[0].logprob, 0.0);
    }

    proptest! {
        #[test]
        fn agrees_with_a_full_sort(
            logits in prop::collection::vec((-4i8..4).prop_map(f32::from), 1..200),
            chosen: prop::sample::Index,
            top: u8,
        ) {
            let chosen = chosen.index(logits.len());
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let z = log_z(&logits);
            let expected = std::iter::once(chosen)
                .chain(order.iter().copied().take(usize::from(top)))
                .map(|token| TokenLogprob {
                    token: token as Token,
                    logprob: (f64::from(logits[token]) - z).min(0.0) as f32,
                    rank: order.iter().position(|&t| t == token).unwrap() as u32 + 1,
                });
            let expected: Vec<_> = expected.collect();
            prop_assert_eq!(&*logprobs(&logits, Some(chosen as Token), top, z), &expected[..]);
        }
    }
}
