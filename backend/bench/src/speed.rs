//! Tokens a second: decoding and prompts.

use std::time::Duration;

use rewind_engine::{Executor, Input, Slot, Weights};

use crate::error::BenchError;
use crate::report::{Measurement, name_of};
use crate::rig::{Rig, Room, Wanted, chosen, prompt_row, row};
use crate::session::Session;
use crate::statistics::{Summary, median};

/// Decoding: sequences side by side, each from an empty cache, greedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Name in the report.
    pub name: &'static str,
    /// Which copies of the weights.
    pub weights: Vec<Weights>,
    /// Numbers of sequences.
    pub batches: Vec<usize>,
    /// Tokens that each sequence generates.
    pub context: usize,
    /// Times that everything is measured, after one that only warms up.
    pub rounds: usize,
    /// Whether statistics are asked for.
    pub statistics: bool,
}

/// Prompts: one pass over all of their tokens, which chooses one token after the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Which copies of the weights.
    pub weights: Vec<Weights>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Times that everything is measured, after one that only warms up.
    pub rounds: usize,
    /// Whether statistics are asked for of the row that chooses.
    pub statistics: bool,
}

/// Samples of one case.
#[derive(Default)]
struct Samples {
    steps: Vec<f64>,
    rates: Vec<f64>,
}

impl Decode {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        let slots = self.batches.iter().copied().max().unwrap_or(0);
        Room { slots, rows: slots, positions: self.context }
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        (self.cases().count() * (self.rounds + 1)) as u64
    }

    fn cases(&self) -> impl Iterator<Item = (usize, Weights)> {
        let weights = |&batch: &usize| self.weights.iter().map(move |&weights| (batch, weights));
        self.batches.iter().flat_map(weights)
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is 0, or the executor fails or is too small.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<Vec<Measurement>, BenchError> {
        positive("rounds", self.rounds)?;
        positive("context", self.context)?;
        for &batch in &self.batches {
            positive("batch", batch)?;
        }
        let cases: Vec<_> = self.cases().collect();
        let mut samples: Vec<_> = cases.iter().map(|_| Samples::default()).collect();
        for round in 0..=self.rounds {
            for (&(batch, weights), samples) in cases.iter().zip(&mut samples) {
                session.sample_bandwidth();
                let mut rig = Rig::new(&mut *session.executor, self.room())?;
                let steps = self.generate(&mut rig, weights, batch)?;
                if round > 0 {
                    let total: f64 = steps.iter().sum();
                    samples.rates.push((batch * steps.len()) as f64 / total);
                    samples.steps.extend(steps);
                }
                (session.tick)();
            }
        }
        let measured = cases.into_iter().zip(samples).map(|((batch, weights), samples)| {
            let case = Case {
                name: self.name,
                weights,
                batch,
                context: self.context,
                statistics: self.statistics,
                tokens: batch,
            };
            case.measurement(session, samples)
        });
        Ok(measured.collect())
    }

    /// Seconds of each step.
    fn generate<E: Executor>(
        &self,
        rig: &mut Rig<'_, E>,
        weights: Weights,
        batch: usize,
    ) -> Result<Vec<f64>, BenchError> {
        let wanted = Wanted::greedy(self.statistics);
        let step = |position| {
            let input = |slot| match position {
                0 => Input::Token(rig.token(slot)),
                _ => Input::LastOf(Slot(slot as u32)),
            };
            let rows = (0..batch).map(|slot| row(slot, position, input(slot), &wanted)).collect();
            let (time, results) = rig.run(weights, rows)?;
            results.iter().try_for_each(|result| chosen(result, weights, position).map(drop))?;
            Ok(time.as_secs_f64())
        };
        (0..self.context).map(step).collect()
    }
}

impl Prefill {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        Room { slots: 1, rows: self.prompt, positions: self.prompt }
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        (self.weights.len() * (self.rounds + 1)) as u64
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is 0, or the executor fails or is too small.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<Vec<Measurement>, BenchError> {
        positive("rounds", self.rounds)?;
        positive("prompt", self.prompt)?;
        let mut samples: Vec<_> = self.weights.iter().map(|_| Samples::default()).collect();
        for round in 0..=self.rounds {
            for (&weights, samples) in self.weights.iter().zip(&mut samples) {
                session.sample_bandwidth();
                let mut rig = Rig::new(&mut *session.executor, self.room())?;
                let seconds = self.read(&mut rig, weights)?.as_secs_f64();
                if round > 0 {
                    samples.rates.push(self.prompt as f64 / seconds);
                    samples.steps.push(seconds);
                }
                (session.tick)();
            }
        }
        let measured = self.weights.iter().zip(samples).map(|(&weights, samples)| {
            let case = Case {
                name: "prefill",
                weights,
                batch: 1,
                context: self.prompt,
                statistics: self.statistics,
                tokens: self.prompt,
            };
            case.measurement(session, samples)
        });
        Ok(measured.collect())
    }

    fn read<E: Executor>(
        &self,
        rig: &mut Rig<'_, E>,
        weights: Weights,
    ) -> Result<Duration, BenchError> {
        let (nothing, last) = (Wanted::default(), Wanted::greedy(self.statistics));
        let rows = (0..self.prompt).map(|position| {
            let wanted = if position + 1 == self.prompt { &last } else { &nothing };
            prompt_row(0, position, rig.token(position), wanted)
        });
        let rows = rows.collect();
        let (time, results) = rig.run(weights, rows)?;
        if let Some(result) = results.last() {
            chosen(result, weights, self.prompt - 1)?;
        }
        Ok(time)
    }
}

/// What was measured.
struct Case {
    name: &'static str,
    weights: Weights,
    batch: usize,
    context: usize,
    statistics: bool,
    /// Tokens that a pass makes.
    tokens: usize,
}

impl Case {
    fn measurement<E: Executor>(self, session: &Session<'_, E>, samples: Samples) -> Measurement {
        let copy = session.copies.of(self.weights);
        let step = median(&samples.steps);
        let rate = copy.bytes.step as f64 / step / 1e9;
        Measurement {
            name: self.name.into(),
            weights: name_of(self.weights).into(),
            format: copy.format.clone(),
            batch: self.batch,
            context: self.context,
            statistics: self.statistics,
            tokens_per_second: Summary::of(samples.rates),
            step_seconds: Summary::of(samples.steps),
            step_bytes: copy.bytes.step,
            bytes_per_token: copy.bytes.step as f64 / self.tokens as f64,
            head_bytes: copy.bytes.head,
            // Row i reads the entries 0 ..= i.
            cache_bytes_per_token: session.copies.cache_bytes as f64 * (self.context + 1) as f64
                / 2.0,
            bandwidth_fraction: session.bandwidth().map(|bandwidth| rate / bandwidth),
        }
    }
}

pub(crate) fn positive(setting: &'static str, value: usize) -> Result<(), BenchError> {
    match value {
        0 => Err(BenchError::setting(setting, value, "at least 1")),
        _ => Ok(()),
    }
}
