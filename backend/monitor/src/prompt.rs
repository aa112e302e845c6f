//! Choosing a profile by the entropies of a prompt.
//!
//! Text of different kinds is uncertain in different ways: of code, most tokens are sure and a few are
//! not; of prose, most are somewhat open. So the mean and the standard deviation of the entropies of a
//! few prompt rows tell domains apart, at the cost of the LM head for these rows. Each profile says how
//! the two are distributed over prompts of its domain ([`PromptEntropies`]); the one under which the
//! prompt is likeliest is chosen. The choice is a function of the request's own prompt rows, so it does
//! not depend on neighbours or chunks.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::Gate;

/// Rows of a prompt that are looked at, at most.
pub const SAMPLED_ROWS: u32 = 32;

/// Whether the row at a position is looked at, in a prompt of this many tokens: all rows of a short one,
/// else [`SAMPLED_ROWS`] at equal distances, the last among them.
pub fn is_sampled(position: u32, prompt: u32) -> bool {
    let (rows, end, prompt) = (u64::from(SAMPLED_ROWS), u64::from(position) + 1, u64::from(prompt));
    if end > prompt || prompt <= rows {
        return end <= prompt;
    }
    // The samples end at ⌊i · prompt / rows⌋, i = 1 ..= rows.
    (end * rows).div_ceil(prompt) * prompt / rows == end
}

/// Mean and standard deviation of a prompt's entropies, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptSummary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, the root of the mean squared distance from the mean; 0 of one row.
    pub spread: f64,
}

impl PromptSummary {
    /// Of the entropies of the sampled rows, in order of position; `None` of no rows.
    pub fn of(entropies: &[f32]) -> Option<Self> {
        if entropies.is_empty() {
            return None;
        }
        let count = entropies.len() as f64;
        let mean = entropies.iter().copied().map(f64::from).sum::<f64>() / count;
        let square = |&entropy: &f32| (f64::from(entropy) - mean).powi(2);
        let spread = (entropies.iter().map(square).sum::<f64>() / count).sqrt();
        Some(Self { mean, spread })
    }
}

/// What the entropies of a prompt look like in one domain, in nats: the distribution over prompts of
/// [`PromptSummary`]. Equality and hashing are by bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntropies {
    /// Mean of the means, not negative.
    pub mean: f64,
    /// Standard deviation of the means, positive.
    pub mean_deviation: f64,
    /// Mean of the spreads, not negative.
    pub spread: f64,
    /// Standard deviation of the spreads, positive.
    pub spread_deviation: f64,
}

impl PromptEntropies {
    /// Log-likelihood of a prompt, up to a constant, with mean and spread independent and normal.
    pub fn log_likelihood(&self, prompt: PromptSummary) -> f64 {
        let normal = |x: f64, mean: f64, deviation: f64| {
            -deviation.ln() - 0.5 * ((x - mean) / deviation).powi(2)
        };
        normal(prompt.mean, self.mean, self.mean_deviation)
            + normal(prompt.spread, self.spread, self.spread_deviation)
    }

    fn bits(&self) -> [u64; 4] {
        [self.mean, self.mean_deviation, self.spread, self.spread_deviation].map(f64::to_bits)
    }
}

impl PartialEq for PromptEntropies {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for PromptEntropies {}

impl Hash for PromptEntropies {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

/// A gate that a prompt may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The gate, frozen.
    pub gate: Gate,
    /// The prompts that it is for.
    pub prompts: PromptEntropies,
}

/// Index of the candidate under which the sampled entropies are likeliest: of several, the first; and
/// the first if there are no entropies. `None` if there are no candidates.
pub fn choose(candidates: &[Candidate], entropies: &[f32]) -> Option<usize> {
    let Some(prompt) = PromptSummary::of(entropies) else {
        return (!candidates.is_empty()).then_some(0);
    };
    let likelihood = |candidate: &Candidate| candidate.prompts.log_likelihood(prompt);
    let mut best: Option<(usize, f64)> = None;
    for (index, likelihood) in candidates.iter().map(likelihood).enumerate() {
        if best.is_none_or(|(_, best)| likelihood > best) {
            best = Some((index, likelihood));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Detector;

    fn candidate(mean: f64, spread: f64) -> Candidate {
        Candidate {
            gate: Gate { detector: Detector::Entropy, threshold: mean as f32 },
            prompts: PromptEntropies { mean, mean_deviation: 0.5, spread, spread_deviation: 0.25 },
        }
    }

    #[test]
    fn mean_and_spread() {
        let prompt = PromptSummary::of(&[1.0, 3.0, 1.0, 3.0]).unwrap();
        assert_eq!(prompt, PromptSummary { mean: 2.0, spread: 1.0 });
        assert_eq!(PromptSummary::of(&[4.0]).unwrap().spread, 0.0);
        assert_eq!(PromptSummary::of(&[]), None);
    }

    #[test]
    fn the_likeliest_is_chosen() {
        let candidates = [candidate(1.0, 1.0), candidate(3.0, 1.0), candidate(3.0, 2.0)];
        assert_eq!(choose(&candidates, &[0.0, 2.0]), Some(0));
        assert_eq!(choose(&candidates, &[2.0, 4.0]), Some(1));
        assert_eq!(choose(&candidates, &[1.0, 5.0]), Some(2));
    }

    #[test]
    fn a_narrow_domain_wins_its_middle_and_loses_its_edge() {
        let narrow = PromptEntropies { mean_deviation: 0.1, ..candidate(2.0, 1.0).prompts };
        let candidates =
            [Candidate { prompts: narrow, ..candidate(2.0, 1.0) }, candidate(2.0, 1.0)];
        assert_eq!(choose(&candidates, &[1.0, 3.0]), Some(0));
        assert_eq!(choose(&candidates, &[1.5, 3.5]), Some(1));
    }

    #[test]
    fn ties_and_nothing_to_go_by_take_the_first() {
        let candidates = [candidate(1.0, 1.0), candidate(3.0, 1.0), candidate(1.0, 1.0)];
        assert_eq!(choose(&candidates, &[0.0, 2.0]), Some(0));
        assert_eq!(choose(&candidates, &[1.0, 3.0]), Some(0));
        assert_eq!(choose(&candidates, &[]), Some(0));
        assert_eq!(choose(&[], &[1.0]), None);
    }

    proptest! {
        #[test]
        fn samples_are_few_even_and_end_with_the_prompt(prompt in 1_u32..5000) {
            let sampled: Vec<u32> = (0..prompt).filter(|&row| is_sampled(row, prompt)).collect();
            prop_assert_eq!(sampled.len() as u32, prompt.min(SAMPLED_ROWS));
            prop_assert_eq!(sampled.last(), Some(&(prompt - 1)));
            let distances: Vec<u32> = sampled.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (distances.iter().min(), distances.iter().max());
            prop_assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1);
            prop_assert!(!is_sampled(prompt, prompt));
        }

        #[test]
        fn the_choice_is_the_best_of_all(
            means in prop::collection::vec((0.0..6.0, 0.0..3.0), 1..6),
            entropies in prop::collection::vec(0_f32..8.0, 1..33),
        ) {
            let candidates: Vec<_> = means.iter().map(|&(mean, spread)| candidate(mean, spread)).collect();
            let chosen = choose(&candidates, &entropies).unwrap();
            let prompt = PromptSummary::of(&entropies).unwrap();
            for other in &candidates {
                prop_assert!(
                    candidates[chosen].prompts.log_likelihood(prompt)
                        >= other.prompts.log_likelihood(prompt)
                );
            }
        }
    }
}
