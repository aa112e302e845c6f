//! How long rows should wait for others before a shadow pass starts.
//!
//! A shadow pass over several sequences costs little more than over one, but a sequence that waits makes
//! no tokens. `verify_rows` and `verify_wait` are where an engine stops waiting. Each pair of them runs
//! under every policy and batch size once a round; what is chosen loses the least over all of these, by
//! the geometric mean of its share of the best one's speed.

use rewind_engine::text::Vocabulary;
use rewind_engine::{Executor, Policy, Settings, Token};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::flow::{Flow, Flowed};
use crate::rig::Room;
use crate::session::Session;
use crate::speed::positive;
use crate::statistics::{Summary, median};
use crate::throughput::{check, room, take};

/// Pairs of `verify_rows` and `verify_wait` under several policies.
#[derive(Clone, Debug)]
pub struct Pooling<'a> {
    /// Policies to run.
    pub policies: Vec<Policy>,
    /// Numbers of sequences.
    pub batches: Vec<usize>,
    /// Share of judged steps that fire, 0 to 1.
    pub rate: f64,
    /// Values of `verify_rows`.
    pub verify_rows: Vec<u32>,
    /// Values of `verify_wait`.
    pub verify_wait: Vec<u32>,
    /// Tokens that are timed, for each sequence on average.
    pub tokens: usize,
    /// Times that everything is measured, after one that only warms up.
    pub rounds: usize,
    /// Of the verdicts; each round has its own.
    pub seed: u64,
    /// Other settings of the engine.
    pub settings: Settings,
    /// Prompts, taken in turn.
    pub prompts: &'a [Vec<Token>],
    /// The model's.
    pub vocabulary: &'a Vocabulary,
}

/// All figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolingFigures {
    /// Share of judged steps that was to fire.
    pub rate: f64,
    /// A line for each policy, batch size and setting.
    pub lines: Vec<PoolingLine>,
    /// Settings, those that lose least first.
    pub choices: Vec<PoolingChoice>,
}

/// One setting under one policy and batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolingLine {
    /// The policy with its window.
    pub policy: String,
    /// Sequences side by side.
    pub batch: usize,
    /// Rows that start a shadow pass.
    pub verify_rows: u32,
    /// Iterations after which a row starts one.
    pub verify_wait: u32,
    /// Of all sequences together, a sample for each round.
    pub tokens_per_second: Summary,
    /// Over the fastest setting's, policy and batch size being equal; medians.
    pub of_best: f64,
    /// 99 of 100 tokens come no later after the one before, in seconds; median over the rounds.
    pub late_gap_seconds: f64,
}

/// One setting over everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolingChoice {
    /// Rows that start a shadow pass.
    pub verify_rows: u32,
    /// Iterations after which a row starts one.
    pub verify_wait: u32,
    /// Geometric mean of `of_best`.
    pub of_best: f64,
    /// The least `of_best`.
    pub worst: f64,
}

impl Pooling<'_> {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        let batch = self.batches.iter().copied().max().unwrap_or(0);
        room(&self.policies, batch, self.tokens, self.prompts)
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        let cells = self.policies.len() * self.batches.len();
        (cells * self.pairs().len() * (self.rounds + 1)) as u64
    }

    /// Settings that differ: rows do not wait where one row is enough, or no iteration.
    fn pairs(&self) -> Vec<(u32, u32)> {
        let mut pairs: Vec<_> = self
            .verify_rows
            .iter()
            .flat_map(|&rows| self.verify_wait.iter().map(move |&wait| (rows, wait)))
            .map(|(rows, wait)| if rows <= 1 || wait == 0 { (1, 0) } else { (rows, wait) })
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is out of its range, the executor is too small, or a sequence fails.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<PoolingFigures, BenchError> {
        positive("rounds", self.rounds)?;
        check(&self.batches, &[self.rate], self.tokens, self.prompts)?;
        self.room().check(session.executor.limits())?;
        let pairs = self.pairs();
        let mut lines = Vec::new();
        for &batch in &self.batches {
            let prompts = take(self.prompts, batch);
            for &policy in &self.policies {
                let mut flowed: Vec<Vec<Flowed>> = vec![Vec::new(); pairs.len()];
                for round in 0..=self.rounds {
                    for (&(verify_rows, verify_wait), flowed) in pairs.iter().zip(&mut flowed) {
                        let settings =
                            Settings { verify_rows, verify_wait, ..self.settings.clone() };
                        let flow = Flow {
                            policy,
                            rate: self.rate,
                            seed: self.seed.wrapping_add(round as u64),
                            prompts: &prompts,
                            tokens: self.tokens,
                            settings,
                            vocabulary: self.vocabulary,
                        };
                        let found = flow.run(session.executor)?;
                        if round > 0 {
                            flowed.push(found);
                        }
                        (session.tick)();
                    }
                }
                lines.extend(cell(policy, batch, &pairs, &flowed));
            }
        }
        Ok(PoolingFigures { rate: self.rate, choices: choices(&pairs, &lines), lines })
    }
}

/// Lines of one policy and batch size.
fn cell(
    policy: Policy,
    batch: usize,
    pairs: &[(u32, u32)],
    flowed: &[Vec<Flowed>],
) -> Vec<PoolingLine> {
    let mut lines: Vec<_> = pairs
        .iter()
        .zip(flowed)
        .map(|(&(verify_rows, verify_wait), flowed)| {
            let all = |figure: fn(&Flowed) -> f64| flowed.iter().map(figure).collect::<Vec<_>>();
            PoolingLine {
                policy: policy.to_string(),
                batch,
                verify_rows,
                verify_wait,
                tokens_per_second: Summary::of(all(|flowed| flowed.tokens_per_second)),
                of_best: 1.0,
                late_gap_seconds: median(&all(|flowed| flowed.late_gap)),
            }
        })
        .collect();
    let best = lines.iter().map(|line| line.tokens_per_second.median).fold(0.0, f64::max);
    for line in &mut lines {
        line.of_best = line.tokens_per_second.median / best;
    }
    lines
}

fn choices(pairs: &[(u32, u32)], lines: &[PoolingLine]) -> Vec<PoolingChoice> {
    let choice = |&(verify_rows, verify_wait): &(u32, u32)| {
        let mine =
            lines.iter().filter(|l| (l.verify_rows, l.verify_wait) == (verify_rows, verify_wait));
        let shares: Vec<_> = mine.map(|line| line.of_best).collect();
        let logs: f64 = shares.iter().map(|share| share.ln()).sum();
        PoolingChoice {
            verify_rows,
            verify_wait,
            of_best: (logs / shares.len() as f64).exp(),
            worst: shares.iter().copied().fold(f64::INFINITY, f64::min),
        }
    };
    let mut choices: Vec<_> = pairs.iter().map(choice).collect();
    choices.sort_by(|a, b| b.of_best.total_cmp(&a.of_best));
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flowed(speed: f64) -> Vec<Flowed> {
        let flowed = Flowed {
            tokens_per_second: speed,
            trigger_rate: 0.1,
            shadow_rows: 0.1,
            discarded: 0.0,
            late_gap: 0.01,
        };
        vec![flowed]
    }

    #[test]
    fn the_choice_loses_least_over_all() {
        let pairs = [(1, 0), (4, 2), (8, 2)];
        let mut lines = cell(Policy::Off, 4, &pairs, &[flowed(100.0), flowed(90.0), flowed(50.0)]);
        lines.extend(cell(Policy::Off, 16, &pairs, &[flowed(50.0), flowed(90.0), flowed(100.0)]));
        assert_eq!(lines[2].of_best, 0.5);
        let choices = choices(&pairs, &lines);
        assert_eq!((choices[0].verify_rows, choices[0].verify_wait), (4, 2));
        assert!((choices[0].of_best - 0.9).abs() < 1e-12);
        assert_eq!(choices[0].worst, 0.9);
        assert!((choices[1].of_best - 0.5_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn settings_that_mean_the_same_run_once() {
        let vocabulary = Vocabulary::new([]);
        let pooling = Pooling {
            policies: vec![Policy::Off],
            batches: vec![1],
            rate: 0.0,
            verify_rows: vec![1, 4],
            verify_wait: vec![0, 2],
            tokens: 1,
            rounds: 1,
            seed: 0,
            settings: Settings::default(),
            prompts: &[],
            vocabulary: &vocabulary,
        };
        assert_eq!(pooling.pairs(), [(1, 0), (4, 2)]);
        assert_eq!(pooling.ticks(), 4);
    }
}
