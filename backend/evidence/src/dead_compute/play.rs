//! Requests run to their end under one policy.

use std::collections::{BTreeMap, HashSet};

use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Decision, Engine, Event, Executor, Policy, Refusal, Request, RequestId, Selection,
    SequenceError, Settings, Stop, Token, Weights,
};
use rewind_monitor::{Gate, Statistics};

use super::witness::Answers;
use super::{Verdict, Witness};

/// Requests that differ only in prompt, gate and seed.
#[derive(Clone, Debug)]
pub struct Play<'a> {
    /// No two the same.
    pub prompts: &'a [Vec<Token>],
    /// One for each prompt; only `step` and `window` look at them.
    pub gates: &'a [Gate],
    /// Tokens of each answer, exactly: answers do not end early.
    pub tokens: u32,
    /// When the shadow steps in.
    pub policy: Policy,
    /// Who judges.
    pub verdict: Verdict,
    /// Weights that read the prompts.
    pub prefill: Weights,
    /// How tokens are chosen; request n takes the seed plus n, under every policy.
    pub sampling: Sampling,
    /// Of the engine; the queue is as long as it must be.
    pub settings: Settings,
    /// The model's.
    pub vocabulary: &'a Vocabulary,
}

/// What one request brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Served tokens.
    pub tokens: Vec<Token>,
    /// How each came to be.
    pub decisions: Vec<Decision>,
    /// As judged; `None` under `off`.
    pub statistics: Vec<Option<Statistics>>,
    /// Times that draft KV was thrown away.
    pub rewinds: u32,
    /// Drafted tokens thrown away.
    pub discarded: u32,
    /// What the executor said.
    pub(crate) answers: Answers,
}

/// Why requests could not be played.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlayError {
    /// Two prompts cannot be told apart.
    #[error("prompts {first} and {second} are the same tokens: each must be another")]
    SamePrompt {
        /// Index of one.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// Not as many gates as prompts.
    #[error("there are {gates} gates for {prompts} prompts: give one for each")]
    Gates {
        /// Gates that were given.
        gates: usize,
        /// Prompts that were given.
        prompts: usize,
    },
    /// The engine does not take a request.
    #[error("prompt {prompt}: {source}")]
    Refused {
        /// Its index.
        prompt: usize,
        /// Why.
        source: Refusal,
    },
    /// A sequence failed.
    #[error("prompt {prompt}: {source}")]
    Failed {
        /// Its index.
        prompt: usize,
        /// Why.
        source: SequenceError,
    },
    /// The engine has work and does none.
    #[error("the engine stands still with requests in it: this is a defect")]
    Stuck,
}

impl Play<'_> {
    /// Runs them side by side, as many as the executor has slots. `progress` is called with each token.
    ///
    /// # Errors
    /// Prompts or gates do not fit, a request is refused, or a sequence fails.
    pub fn run<E: Executor>(
        &self,
        executor: &mut E,
        mut progress: impl FnMut(),
    ) -> Result<Vec<Answer>, PlayError> {
        self.check()?;
        let witness = Witness::new(executor, self.verdict);
        let settings = Settings { max_queue: self.prompts.len(), ..self.settings.clone() };
        let mut engine = Engine::new(witness, self.vocabulary.clone(), settings);
        let mut played =
            drive(&mut engine, |number| self.request(number), self.prompts.len(), &mut progress)?;
        for (answer, prompt) in played.iter_mut().zip(self.prompts) {
            answer.answers = engine.executor_mut().take(prompt);
        }
        Ok(played)
    }

    fn check(&self) -> Result<(), PlayError> {
        let (gates, prompts) = (self.gates.len(), self.prompts.len());
        if gates != prompts {
            return Err(PlayError::Gates { gates, prompts });
        }
        let mut seen = HashSet::new();
        match self.prompts.iter().position(|prompt| !seen.insert(prompt)) {
            None => Ok(()),
            Some(second) => {
                let same = |prompt: &Vec<Token>| *prompt == self.prompts[second];
                let first = self.prompts.iter().position(same).unwrap_or(second);
                Err(PlayError::SamePrompt { first, second })
            }
        }
    }

    pub(crate) fn request(&self, number: usize) -> Request {
        Request {
            prompt: self.prompts[number].clone(),
            max_tokens: self.tokens,
            min_tokens: 0,
            stop: Stop::default(),
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(number as u64),
                ..self.sampling.clone()
            },
            policy: self.policy,
            gate: self.gates[number].into(),
            prefill: self.prefill,
            logprobs: None,
        }
    }
}

/// Submits requests and runs the engine until all have ended.
pub(crate) fn drive<E: Executor>(
    engine: &mut Engine<E>,
    request: impl Fn(usize) -> Request,
    count: usize,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Answer>, PlayError> {
    let mut numbers: BTreeMap<RequestId, usize> = BTreeMap::new();
    for prompt in 0..count {
        let refused = |source| PlayError::Refused { prompt, source };
        numbers.insert(engine.submit(request(prompt)).map_err(refused)?, prompt);
    }
    let empty = Answer {
        tokens: Vec::new(),
        decisions: Vec::new(),
        statistics: Vec::new(),
        rewinds: 0,
        discarded: 0,
        answers: Answers::default(),
    };
    let mut played = vec![empty; count];
    let mut left = count;
    while left > 0 {
        let step = engine.step(Selection::All);
        if step.events.is_empty() && step.passes.is_empty() {
            return Err(PlayError::Stuck);
        }
        for event in step.events {
            let Some(&prompt) = numbers.get(&event.id()) else { continue };
            left -= usize::from(event.is_final());
            let answer = &mut played[prompt];
            match event {
                Event::Token { committed, .. } => {
                    answer.tokens.push(committed.token);
                    answer.decisions.push(committed.decision);
                    answer.statistics.push(committed.statistics);
                    progress();
                }
                Event::Rewound { tokens, .. } => {
                    answer.rewinds += 1;
                    answer.discarded += tokens;
                }
                Event::Finished { .. } | Event::Cancelled { .. } | Event::GateChosen { .. } => {}
                Event::Failed { error: source, .. } => {
                    return Err(PlayError::Failed { prompt, source });
                }
            }
        }
    }
    Ok(played)
}

/// The threshold that this share of the scores exceeds, 0 to 1; infinite for none of them or of no scores. Scores that
/// are NaN are left out: such steps are suspect at any threshold.
pub fn threshold_at(budget: f64, scores: impl IntoIterator<Item = f32>) -> f32 {
    let mut scores: Vec<f32> = scores.into_iter().filter(|score| !score.is_nan()).collect();
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let fired = (budget.clamp(0.0, 1.0) * scores.len() as f64).round() as usize;
    match (fired, scores.get(fired)) {
        (0, _) => f32::INFINITY,
        (_, Some(&next)) => next,
        (_, None) => f32::NEG_INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_exceeded_by_the_share_that_was_asked_for() {
        let scores: Vec<f32> = (0..100).map(|n| (n * 37 % 100) as f32).collect();
        for budget in [0.0, 0.05, 0.2, 0.5, 1.0] {
            let threshold = threshold_at(budget, scores.clone());
            let fired = scores.iter().filter(|&&score| score > threshold).count();
            assert_eq!(fired, (100.0 * budget) as usize, "{budget}");
        }
        assert_eq!(threshold_at(0.5, []), f32::INFINITY);
        assert_eq!(threshold_at(0.5, [f32::NAN, 1.0, 2.0]), 1.0);
    }
}
