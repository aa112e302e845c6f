//! The sampling contract: one deterministic function from logits to a token.
//!
//! ```text
//! raw logits → bias, mask, bans → penalties → temperature → top-k → top-p → min-p → Gumbel-max
//! ```
//!
//! The noise of a token depends on (seed, token, position) alone, so draft and shadow draw the same
//! noise and "both picked the same token" is plain equality, greedy or not. Drawing one uniform
//! number and walking the cumulative distribution was rejected for that reason: there, a small
//! change of any probability shifts every later token.
//!
//! # Definitions
//!
//! * *Candidates* are the tokens that mask and bans allow. A mask that allows no token of the
//!   vocabulary is ignored; so are bans that leave nothing of what the mask allows.
//! * *Processed logits* are f32, after bias and penalties, held within ±[`f32::MAX`].
//! * The *ranking* is by processed logit, then lower id. Each filter keeps a prefix of it, at least
//!   one token: top-k the first k; top-p the shortest prefix whose probability among what top-k left
//!   reaches p; min-p the tokens whose probability is at least `min_p` times that of the first.
//! * Weights are `e^((l − l₁)/T)` in f64. Their total is summed in order of id, the running sum of
//!   top-p in order of rank.
//! * The *perturbed score* of a survivor is `l/T − ln(−ln u)` in f64 with `u = (x + ½)·2⁻³²` and `x`
//!   from [`philox`]. The greatest wins; of equal ones, the lowest id.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::executor::{Token, TokenMask};

mod adjust;
mod gumbel;
mod logprobs;
pub mod philox;
mod rank;
mod validate;

#[cfg(test)]
mod tests;

pub use logprobs::logprobs;
pub use validate::InvalidSampling;

use rank::{Leaders, Rank};

/// How tokens are chosen. Neutral values switch a step off. Validated by [`Sampling::validate`].
///
/// Equality and hashing are by bits.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep exactly this many best; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set with at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 is neutral.
    pub repetition_penalty: f32,
    /// Subtracted from tokens seen in the answer; 0 is neutral.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the answer; 0 is neutral.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; sorted by token, each at most once.
    pub bias: Vec<(Token, f32)>,
    /// Key of the noise.
    pub seed: u64,
}

/// Tokens before the one to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Prompt, committed and pending tokens; empty when no penalty needs them.
    pub tokens: Arc<[Token]>,
    /// How many of them are the prompt.
    pub prompt: usize,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: Token,
    /// Second best in the same ranking; with one survivor, the best candidate that the filters
    /// excluded.
    pub runner_up: Option<Token>,
    /// How far ahead of the runner-up the token is, ≥ 0.
    ///
    /// Greedy: difference of the two processed logits, which is ln(p₁/p₂). Sampled: difference of
    /// the perturbed scores times the temperature, so that it too is in units of a logit. With one
    /// survivor: difference of the processed logits, before temperature. [`f32::INFINITY`] if there
    /// was one candidate only: then no error of the logits can change the choice.
    pub margin: f32,
}

/// Scratch memory of [`choose`], so that a decode step allocates nothing once it is warm.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Processed logits by id; −∞ for tokens that are no candidates.
    processed: Vec<f32>,
    /// Candidates while they are being filtered.
    ranks: Vec<Rank>,
    /// Occurrences by token id while penalties are applied; all zero in between.
    counts: Vec<u32>,
}

/// Chooses a token from raw logits. Pure: equal arguments give equal results on every thread.
///
/// `position` is the absolute position of the token to choose. `logits` (index = id) are finite and
/// not empty; if they are not, some token is returned all the same. `banned` is sorted. Ids outside
/// the vocabulary, in any argument, have no effect.
pub fn choose(
    logits: &[f32],
    sampling: &Sampling,
    history: &History,
    banned: &[Token],
    mask: Option<&TokenMask>,
    position: u32,
    scratch: &mut Scratch,
) -> Choice {
    if sampling.is_plain_argmax() && banned.is_empty() && mask.is_none() {
        return greedy(logits);
    }
    let Scratch { processed, ranks, counts } = scratch;
    adjust::process(logits, sampling, history, processed, counts);
    adjust::exclude(processed, banned, mask);
    if sampling.is_greedy() {
        return greedy(processed);
    }

    let cut = rank::filter(processed, sampling, ranks);
    if cut.survivors == 1 {
        // The one survivor is the first of the ranking, so greedy's gap is the wanted distance.
        return greedy(processed);
    }
    let temperature = f64::from(sampling.temperature);
    let leaders = gumbel::perturbed_best(processed, cut.last, temperature, sampling.seed, position);
    leaders.choice(temperature)
}

/// The first of the ranking.
fn greedy(logits: &[f32]) -> Choice {
    Leaders::of(logits).choice(1.0)
}

impl Sampling {
    /// Greedy, nothing else.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        bias: Vec::new(),
        seed: 0,
    };

    /// Whether no noise is added.
    pub fn is_greedy(&self) -> bool {
        // A NaN, which validation refuses, counts as greedy.
        self.temperature.is_nan() || self.temperature <= 0.0
    }

    /// Whether the choice depends on earlier tokens.
    pub fn reads_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether the choice is the plain argmax of the raw logits (then an executor may skip the
    /// general path).
    pub fn is_plain_argmax(&self) -> bool {
        self.is_greedy() && !self.reads_history() && self.bias.is_empty()
    }

    #[allow(
        clippy::type_complexity,
        reason = "a flat tuple of bits, used only to compare and hash"
    )]
    fn bits(&self) -> ([u32; 6], u32, u64, impl Iterator<Item = (Token, u32)> + '_) {
        (
            [
                self.temperature.to_bits(),
                self.top_p.to_bits(),
                self.min_p.to_bits(),
                self.repetition_penalty.to_bits(),
                self.presence_penalty.to_bits(),
                self.frequency_penalty.to_bits(),
            ],
            self.top_k,
            self.seed,
            self.bias.iter().map(|(token, bias)| (*token, bias.to_bits())),
        )
    }
}

impl PartialEq for Sampling {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.bits(), other.bits());
        a.0 == b.0 && a.1 == b.1 && a.2 == b.2 && a.3.eq(b.3)
    }
}

impl Eq for Sampling {}

impl Hash for Sampling {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (floats, top_k, seed, bias) = self.bits();
        (floats, top_k, seed).hash(state);
        for pair in bias {
            pair.hash(state);
        }
    }
}
