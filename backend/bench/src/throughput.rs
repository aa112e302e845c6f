//! Tokens a second of every policy, against the rate at which the monitor fires.
//!
//! Whole engines over the executor, as a server runs them, with verdicts that are
//! [drawn](crate::Forced). `step` and `window` run at every rate; `off` and `shadow` judge nothing, and
//! `lossless` verifies everything: for it the figures hold for the text that the prompts lead to, since
//! a mismatch throws drafts away. Every case runs once in every round.

use rewind_engine::text::Vocabulary;
use rewind_engine::{Executor, Policy, Settings, Token};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::flow::{Flow, Flowed, longest};
use crate::rig::Room;
use crate::session::Session;
use crate::speed::positive;
use crate::statistics::{Summary, median};

/// Every policy at every rate and batch size.
#[derive(Clone, Debug)]
pub struct Throughput<'a> {
    /// Policies to compare; with [`Policy::Shadow`] among them, break-even rates are told.
    pub policies: Vec<Policy>,
    /// Shares of judged steps that fire, 0 to 1.
    pub rates: Vec<f64>,
    /// Numbers of sequences.
    pub batches: Vec<usize>,
    /// Tokens that are timed, for each sequence on average.
    pub tokens: usize,
    /// Times that everything is measured, after one that only warms up.
    pub rounds: usize,
    /// Of the verdicts; each round has its own.
    pub seed: u64,
    /// Settings of the engine.
    pub settings: Settings,
    /// Prompts, taken in turn.
    pub prompts: &'a [Vec<Token>],
    /// The model's.
    pub vocabulary: &'a Vocabulary,
}

/// All figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThroughputFigures {
    /// `verify_rows` of the engine.
    pub verify_rows: u32,
    /// `verify_wait` of the engine.
    pub verify_wait: u32,
    /// Tokens timed for each sequence.
    pub tokens: usize,
    /// A line for each policy, rate and batch size.
    pub policies: Vec<ThroughputLine>,
    /// A line for each policy that is run at several rates, and batch size.
    pub break_even: Vec<BreakEven>,
}

/// One policy at one rate and batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThroughputLine {
    /// The policy with its window.
    pub policy: String,
    /// Draft positions that a rewind rewrites, if the policy rewrites any.
    pub refresh: u32,
    /// Sequences side by side.
    pub batch: usize,
    /// Share of judged steps that was to fire; `None` for policies that judge none.
    pub rate: Option<f64>,
    /// Share that fired while the clock ran, median over the rounds.
    pub fired: Option<f64>,
    /// Of all sequences together, a sample for each round.
    pub tokens_per_second: Summary,
    /// Rows of shadow passes for each token, median over the rounds.
    pub shadow_rows_per_token: f64,
    /// Drafts thrown away for each token, median over the rounds.
    pub discarded_per_token: f64,
    /// 99 of 100 tokens come no later after the one before, in seconds; median over the rounds.
    pub late_gap_seconds: f64,
}

/// From which rate on a policy is no faster than the shadow alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakEven {
    /// The policy with its window.
    pub policy: String,
    /// Sequences side by side.
    pub batch: usize,
    /// Interpolated between measured rates; `None` if there is none among them.
    pub rate: Option<f64>,
    /// How to read it.
    pub verdict: Verdict,
}

/// How a policy compares with the shadow over the measured rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Faster below the rate.
    FasterBelow,
    /// Faster at every rate that was measured.
    AlwaysFaster,
    /// At no rate that was measured.
    NeverFaster,
}

/// A policy at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Case {
    policy: Policy,
    rate: Option<f64>,
    batch: usize,
}

impl Throughput<'_> {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        let batch = self.batches.iter().copied().max().unwrap_or(0);
        room(&self.policies, batch, self.tokens, self.prompts)
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        (self.cases().len() * (self.rounds + 1)) as u64
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &batch in &self.batches {
            for &policy in &self.policies {
                if is_judged(policy) {
                    let case = |&rate: &f64| Case { policy, rate: Some(rate), batch };
                    cases.extend(self.rates.iter().map(case));
                } else {
                    cases.push(Case { policy, rate: None, batch });
                }
            }
        }
        cases
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is out of its range, the executor is too small, or a sequence fails.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<ThroughputFigures, BenchError> {
        positive("rounds", self.rounds)?;
        check(&self.batches, &self.rates, self.tokens, self.prompts)?;
        self.room().check(session.executor.limits())?;
        let cases = self.cases();
        let mut flowed: Vec<Vec<Flowed>> = vec![Vec::new(); cases.len()];
        for round in 0..=self.rounds {
            session.sample_bandwidth();
            for (case, flowed) in cases.iter().zip(&mut flowed) {
                let prompts = take(self.prompts, case.batch);
                let flow = Flow {
                    policy: case.policy,
                    rate: case.rate.unwrap_or(0.0),
                    seed: self.seed.wrapping_add(round as u64),
                    prompts: &prompts,
                    tokens: self.tokens,
                    settings: self.settings.clone(),
                    vocabulary: self.vocabulary,
                };
                let found = flow.run(session.executor)?;
                if round > 0 {
                    flowed.push(found);
                }
                (session.tick)();
            }
        }
        let lines: Vec<_> =
            cases.iter().zip(&flowed).map(|(case, flowed)| line(case, flowed)).collect();
        Ok(ThroughputFigures {
            verify_rows: self.settings.verify_rows,
            verify_wait: self.settings.verify_wait,
            tokens: self.tokens,
            break_even: break_even(&lines),
            policies: lines,
        })
    }
}

/// What engines need for so many answers.
pub(crate) fn room(
    policies: &[Policy],
    batch: usize,
    tokens: usize,
    prompts: &[Vec<Token>],
) -> Room {
    let prompt = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let pass_rows = policies.iter().map(|policy| policy.pass_rows() as usize).max().unwrap_or(0);
    Room {
        slots: batch,
        // A shadow pass of all sequences at once, so that none waits for the room of another.
        rows: (batch * pass_rows).max(prompt),
        positions: prompt + longest(tokens) + pass_rows,
    }
}

/// Whether steps of this policy are judged by the monitor.
fn is_judged(policy: Policy) -> bool {
    matches!(policy, Policy::Step { .. } | Policy::Window { .. })
}

pub(crate) fn check(
    batches: &[usize],
    rates: &[f64],
    tokens: usize,
    prompts: &[Vec<Token>],
) -> Result<(), BenchError> {
    positive("tokens", tokens)?;
    positive("prompts", prompts.len())?;
    batches.iter().try_for_each(|&batch| positive("batch", batch))?;
    match rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        Some(rate) => Err(BenchError::setting("rate", rate, "from 0 to 1")),
        None => Ok(()),
    }
}

/// So many prompts, the same ones again where there are not enough.
pub(crate) fn take(prompts: &[Vec<Token>], count: usize) -> Vec<Vec<Token>> {
    prompts.iter().cycle().take(count).cloned().collect()
}

fn line(case: &Case, flowed: &[Flowed]) -> ThroughputLine {
    let all = |figure: fn(&Flowed) -> f64| -> Vec<f64> { flowed.iter().map(figure).collect() };
    let middle = |figure| median(&all(figure));
    ThroughputLine {
        policy: case.policy.to_string(),
        refresh: match case.policy {
            Policy::Step { refresh } | Policy::Window { refresh, .. } => refresh,
            _ => 0,
        },
        batch: case.batch,
        rate: case.rate,
        fired: case.rate.map(|_| middle(|flowed| flowed.trigger_rate)),
        tokens_per_second: Summary::of(all(|flowed| flowed.tokens_per_second)),
        shadow_rows_per_token: middle(|flowed| flowed.shadow_rows),
        discarded_per_token: middle(|flowed| flowed.discarded),
        late_gap_seconds: middle(|flowed| flowed.late_gap),
    }
}

/// Where each policy that has rates meets the shadow.
fn break_even(lines: &[ThroughputLine]) -> Vec<BreakEven> {
    let shadow = Policy::Shadow.to_string();
    let mut found: Vec<BreakEven> = Vec::new();
    for line in lines.iter().filter(|line| line.rate.is_some()) {
        let (policy, batch) = (&line.policy, line.batch);
        if found.iter().any(|one| one.policy == *policy && one.batch == batch) {
            continue;
        }
        let Some(shadow) = lines.iter().find(|one| one.policy == shadow && one.batch == batch)
        else {
            continue;
        };
        let mine = lines.iter().filter(|one| one.policy == *policy && one.batch == batch);
        // Time adds up over steps, so it is what grows evenly with the rate.
        let mut points: Vec<_> =
            mine.filter_map(|one| Some((one.rate?, 1.0 / one.tokens_per_second.median))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, verdict) = meeting(&points, 1.0 / shadow.tokens_per_second.median);
        found.push(BreakEven { policy: policy.clone(), batch, rate, verdict });
    }
    found
}

/// Where times at ascending rates first reach `limit`.
fn meeting(points: &[(f64, f64)], limit: f64) -> (Option<f64>, Verdict) {
    let Some(above) = points.iter().position(|&(_, time)| time >= limit) else {
        return (None, Verdict::AlwaysFaster);
    };
    let Some(below) = above.checked_sub(1) else { return (None, Verdict::NeverFaster) };
    let ((from, fast), (to, slow)) = (points[below], points[above]);
    let rate = from + (to - from) * (limit - fast) / (slow - fast);
    (Some(rate), Verdict::FasterBelow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_meet_the_shadow_between_two_rates() {
        let points = [(0.0, 1.0), (0.2, 1.5), (0.5, 3.0)];
        assert_eq!(meeting(&points, 2.0), (Some(0.3), Verdict::FasterBelow));
        assert_eq!(meeting(&points, 1.5), (Some(0.2), Verdict::FasterBelow));
        assert_eq!(meeting(&points, 9.0), (None, Verdict::AlwaysFaster));
        assert_eq!(meeting(&points, 0.9), (None, Verdict::NeverFaster));
    }

    #[test]
    fn each_batch_size_meets_its_own_shadow() {
        let line = |policy: &str, batch, rate, speed| ThroughputLine {
            policy: policy.into(),
            refresh: 0,
            batch,
            rate,
            fired: rate,
            tokens_per_second: Summary::of(vec![speed]),
            shadow_rows_per_token: 0.0,
            discarded_per_token: 0.0,
            late_gap_seconds: 0.0,
        };
        let lines = [
            line("shadow", 1, None, 50.0),
            line("step", 1, Some(1.0), 25.0),
            line("step", 1, Some(0.0), 100.0),
            line("shadow", 4, None, 10.0),
            line("step", 4, Some(1.0), 25.0),
            line("step", 8, Some(1.0), 25.0),
        ];
        let found = break_even(&lines);
        // Seconds a token: 0.01 at no rate, 0.04 at all, 0.02 of the shadow.
        let expected =
            |batch, rate, verdict| BreakEven { policy: "step".into(), batch, rate, verdict };
        assert_eq!(found.len(), 2, "batch 8 has no shadow to meet: {found:?}");
        assert!((found[0].rate.unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(found[1], expected(4, None, Verdict::AlwaysFaster));
    }

    #[test]
    fn prompts_are_taken_in_turn() {
        assert_eq!(take(&[vec![1], vec![2]], 3), [vec![1], vec![2], vec![1]]);
    }
}
