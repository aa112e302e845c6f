//! Requests side by side through an engine, for so many tokens.

use std::collections::HashMap;
use std::time::Instant;

use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Engine, Event, Executor, Policy, Request, RequestId, Selection, Settings, Stop, Token, Weights,
};
use rewind_monitor::{Detector, Gate};

use crate::error::BenchError;
use crate::forced::{Forced, Verdicts};
use crate::statistics::quantile;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) policy: Policy,
    /// Share of judged steps that fire.
    pub(crate) rate: f64,
    pub(crate) seed: u64,
    /// One for each sequence.
    pub(crate) prompts: &'a [Vec<Token>],
    /// Tokens that are timed, for each sequence on average.
    pub(crate) tokens: usize,
    pub(crate) settings: Settings,
    pub(crate) vocabulary: &'a Vocabulary,
}

/// What a run gave, between the first token of the last sequence and the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Flowed {
    pub(crate) tokens_per_second: f64,
    /// Of judged steps.
    pub(crate) trigger_rate: f64,
    /// For each token.
    pub(crate) shadow_rows: f64,
    /// For each token.
    pub(crate) discarded: f64,
    /// 99 of 100 tokens come no later after the one before, in seconds.
    pub(crate) late_gap: f64,
}

/// Tokens that a sequence may have besides those that are timed: sequences do not advance evenly.
const SLACK: usize = 64;

/// Most tokens of an answer.
pub(crate) fn longest(tokens: usize) -> usize {
    2 * tokens + SLACK
}

impl Flow<'_> {
    /// Runs it on an executor that holds no sequence. Answers are greedy and never end early.
    pub(crate) fn run<E: Executor>(&self, executor: &mut E) -> Result<Flowed, BenchError> {
        let forced = Forced::new(executor, self.rate, self.seed);
        let mut engine = Engine::new(forced, self.vocabulary.clone(), self.settings.clone());
        let mut started = HashMap::new();
        for prompt in self.prompts {
            started.insert(engine.submit(self.request(prompt))?, None);
        }
        let mut timed: Option<(Instant, Verdicts)> = None;
        let mut sums = Sums::default();
        let wanted = self.tokens * self.prompts.len();
        while sums.tokens < wanted && !sums.ended {
            let step = engine.step(Selection::All);
            if step.events.is_empty() && step.passes.is_empty() {
                return Err(BenchError::Stuck);
            }
            let now = Instant::now();
            if timed.is_some() {
                let shadow = step.passes.iter().filter(|pass| pass.weights == Weights::Full);
                sums.shadow_rows += shadow.map(|pass| pass.rows).sum::<usize>();
            }
            for event in step.events {
                sums.take(event, now, timed.is_some(), &mut started)?;
            }
            // Prompts are not what is measured.
            if timed.is_none() && started.values().all(Option::is_some) {
                timed = Some((Instant::now(), engine.executor().verdicts()));
            }
        }
        let Some((start, before)) = timed else {
            let allowed = "more: a sequence ended before all had started";
            return Err(BenchError::setting("tokens", self.tokens, allowed));
        };
        let seconds = sums.last.map_or(0.0, |last| (last - start).as_secs_f64());
        let after = engine.executor().verdicts();
        let (judged, fired) = (after.judged - before.judged, after.fired - before.fired);
        let tokens = sums.tokens.max(1) as f64;
        Ok(Flowed {
            tokens_per_second: sums.tokens as f64 / seconds,
            trigger_rate: fired as f64 / judged.max(1) as f64,
            shadow_rows: sums.shadow_rows as f64 / tokens,
            discarded: sums.discarded as f64 / tokens,
            late_gap: quantile(&sums.gaps, 0.99),
        })
    }

    fn request(&self, prompt: &[Token]) -> Request {
        Request {
            prompt: prompt.to_vec(),
            max_tokens: longest(self.tokens) as u32,
            min_tokens: 0,
            stop: Stop::default(),
            sampling: Sampling::GREEDY,
            policy: self.policy,
            gate: Gate { detector: Detector::Entropy, threshold: f32::INFINITY }.into(),
            prefill: Weights::Full,
            logprobs: None,
        }
    }
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    discarded: u64,
    shadow_rows: usize,
    gaps: Vec<f64>,
    last: Option<Instant>,
    ended: bool,
}

impl Sums {
    fn take(
        &mut self,
        event: Event,
        now: Instant,
        timed: bool,
        newest: &mut HashMap<RequestId, Option<Instant>>,
    ) -> Result<(), BenchError> {
        match event {
            Event::Token { id, .. } => {
                let before = newest.insert(id, Some(now)).flatten();
                if timed {
                    self.tokens += 1;
                    self.last = Some(now);
                    self.gaps.extend(before.map(|before| (now - before).as_secs_f64()));
                }
            }
            Event::Rewound { tokens, .. } if timed => self.discarded += u64::from(tokens),
            Event::GateChosen { .. } | Event::Rewound { .. } => {}
            Event::Finished { .. } | Event::Cancelled { .. } => self.ended = true,
            Event::Failed { error, .. } => return Err(error.into()),
        }
        Ok(())
    }
}
