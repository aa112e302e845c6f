//! What the monitor costs: each step with it and without, alternating inside one process.
//!
//! A *pair* is one decode step computed twice on the same state: once as a server with a monitor runs
//! it (statistics, and a gate that never fires), once choosing the token alone. Both write the same KV
//! entries with the same bits and choose the same tokens, so the second leaves what the first left, and
//! the sequence goes on from there. Which comes first is drawn for each two pairs, so that either order
//! is as frequent. The difference within a pair is free of whatever changes more slowly than a step:
//! clocks, neighbours, the length of the sequence. Rewinds are impossible: there is no engine.
//!
//! A *control* runs a third step in every pair, without the monitor again, in a place that is drawn
//! too. Its difference from the other one without is what this method reports of a thing that costs
//! nothing.

use std::sync::Arc;

use rewind_engine::sampling::Sampling;
use rewind_engine::{Executor, Input, Token, Weights};
use rewind_monitor::{Detector, Gate};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::report::name_of;
use crate::rig::{Rig, Room, Wanted, chosen, row};
use crate::session::Session;
use crate::speed::positive;
use crate::statistics::{Interval, Summary, median};

/// Pairs of decode steps on the draft weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Overhead {
    /// Numbers of sequences side by side.
    pub batches: Vec<usize>,
    /// Pairs of each, all rounds together.
    pub pairs: usize,
    /// Parts that the pairs are measured in, the batches taking turns.
    pub rounds: usize,
    /// Steps after which sequences begin anew, so that steps stay alike.
    pub context: usize,
    /// Of sampling; 0 is greedy.
    pub temperature: f32,
    /// Of the order within pairs, and of sampling.
    pub seed: u64,
    /// Whether every pair has a third step, without the monitor.
    pub control: bool,
}

/// What the monitor costs at one batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverheadFigures {
    /// `draft`.
    pub weights: String,
    /// Format of the linear layers.
    pub format: String,
    /// Sequences side by side.
    pub batch: usize,
    /// Pairs.
    pub pairs: usize,
    /// Steps after which sequences begin anew.
    pub context: usize,
    /// Of sampling.
    pub temperature: f32,
    /// Of the order within pairs, and of sampling.
    pub seed: u64,
    /// Steps without the monitor.
    pub off_seconds: Summary,
    /// Steps with it; sample i belongs to sample i of those without.
    pub on_seconds: Summary,
    /// On − off of a pair.
    pub difference_seconds: Interval,
    /// The same, over the median step without the monitor.
    pub relative: Interval,
    /// Median of the relative differences of each round.
    pub relative_by_round: Vec<f64>,
    /// Off − off of a pair, over the median step without the monitor; `None` without control.
    pub control: Option<Interval>,
}

/// Steps of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    On,
    Off,
    Control,
}

/// Seconds of the steps of one batch size.
#[derive(Default)]
struct Times {
    on: Vec<f64>,
    off: Vec<f64>,
    control: Vec<f64>,
    /// Pairs at the end of each round.
    rounds: Vec<usize>,
}

/// Pairs that only warm up, at the start of every round of a batch size.
const WARM_UP: usize = 8;

impl Overhead {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        let slots = self.batches.iter().copied().max().unwrap_or(0);
        Room { slots, rows: slots, positions: self.context }
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        (self.batches.len() * self.pairs) as u64
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is out of its range, the executor fails or is too small, or the monitor changed a
    /// token.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<Vec<OverheadFigures>, BenchError> {
        positive("rounds", self.rounds)?;
        positive("context", self.context)?;
        if self.pairs < self.rounds {
            let allowed = "at least the number of rounds";
            return Err(BenchError::setting("pairs", self.pairs, allowed));
        }
        let sampling =
            Sampling { temperature: self.temperature, seed: self.seed, ..Sampling::GREEDY };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let allowed = "a finite number that is not negative";
            return Err(BenchError::setting("temperature", self.temperature, allowed));
        }
        let choose = Some(Arc::new(sampling));
        let gate = Gate { detector: Detector::Entropy, threshold: f32::INFINITY };
        let on = Wanted { choose: choose.clone(), statistics: true, gate: Some(gate) };
        let off = Wanted { choose, statistics: false, gate: None };

        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut times: Vec<_> = self.batches.iter().map(|_| Times::default()).collect();
        for round in 0..self.rounds {
            let pairs = (round + 1) * self.pairs / self.rounds - round * self.pairs / self.rounds;
            for (&batch, times) in self.batches.iter().zip(&mut times) {
                positive("batch", batch)?;
                session.sample_bandwidth();
                let rig = Rig::new(&mut *session.executor, self.room())?;
                let mut walk =
                    Walk { rig, on: &on, off: &off, batch, tokens: Vec::new(), steps: 0 };
                let mut orders = Orders { random: &mut random, control: self.control, next: None };
                for _ in 0..WARM_UP {
                    walk.pair(self.context, &orders.draw(), &mut Times::default())?;
                }
                for _ in 0..pairs {
                    walk.pair(self.context, &orders.draw(), times)?;
                    (session.tick)();
                }
                times.rounds.push(times.on.len());
            }
        }
        let figures = self.batches.iter().zip(times);
        Ok(figures.map(|(&batch, times)| self.figures(session, batch, times)).collect())
    }

    fn figures<E: Executor>(
        &self,
        session: &Session<'_, E>,
        batch: usize,
        times: Times,
    ) -> OverheadFigures {
        let differences = difference(&times.on, &times.off);
        let step = median(&times.off);
        let starts = [0].into_iter().chain(times.rounds.iter().copied());
        let by_round =
            starts.zip(&times.rounds).map(|(from, &to)| median(&differences[from..to]) / step);
        let relative_by_round = by_round.collect();
        let difference_seconds = Interval::of(&differences);
        let control = self
            .control
            .then(|| Interval::of(&difference(&times.control, &times.off)).scaled(1.0 / step));
        OverheadFigures {
            weights: name_of(Weights::Draft).into(),
            format: session.copies.of(Weights::Draft).format.clone(),
            batch,
            pairs: differences.len(),
            context: self.context,
            temperature: self.temperature,
            seed: self.seed,
            off_seconds: Summary::of(times.off),
            on_seconds: Summary::of(times.on),
            difference_seconds,
            relative: difference_seconds.scaled(1.0 / step),
            relative_by_round,
            control,
        }
    }
}

fn difference(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter().zip(right).map(|(left, right)| left - right).collect()
}

/// Orders within pairs: two pairs in a row have opposite ones.
struct Orders<'a> {
    random: &'a mut fastrand::Rng,
    control: bool,
    next: Option<Vec<Side>>,
}

impl Orders<'_> {
    fn draw(&mut self) -> Vec<Side> {
        if let Some(order) = self.next.take() {
            return order;
        }
        let mut order = vec![Side::On, Side::Off];
        if self.control {
            order.push(Side::Control);
        }
        self.random.shuffle(&mut order);
        self.next = Some(order.iter().rev().copied().collect());
        order
    }
}

/// Sequences that go on step by step.
struct Walk<'a, E> {
    rig: Rig<'a, E>,
    on: &'a Wanted,
    off: &'a Wanted,
    batch: usize,
    /// Newest token of each sequence.
    tokens: Vec<Token>,
    /// Since the start.
    steps: usize,
}

impl<E: Executor> Walk<'_, E> {
    /// Computes the next step once for each side.
    fn pair(
        &mut self,
        context: usize,
        order: &[Side],
        times: &mut Times,
    ) -> Result<(), BenchError> {
        let position = self.steps % context;
        if position == 0 {
            self.tokens = (0..self.batch).map(|slot| self.rig.token(self.steps + slot)).collect();
        }
        let mut found: Option<Vec<Token>> = None;
        for &side in order {
            let wanted = if side == Side::On { self.on } else { self.off };
            let rows = self.tokens.iter().enumerate();
            let rows = rows.map(|(slot, &token)| row(slot, position, Input::Token(token), wanted));
            let (time, results) = self.rig.run(Weights::Draft, rows.collect())?;
            match side {
                Side::On => times.on.push(time.as_secs_f64()),
                Side::Off => times.off.push(time.as_secs_f64()),
                Side::Control => times.control.push(time.as_secs_f64()),
            }
            let tokens = results.iter().map(|result| chosen(result, Weights::Draft, position));
            let tokens: Vec<_> = tokens.collect::<Result<_, _>>()?;
            match &found {
                None => found = Some(tokens),
                Some(first) => same(position, first, &tokens)?,
            }
        }
        self.tokens = found.unwrap_or_default();
        self.steps += 1;
        Ok(())
    }
}

/// Refuses steps that chose different tokens.
fn same(position: usize, first: &[Token], later: &[Token]) -> Result<(), BenchError> {
    match first.iter().zip(later).find(|(a, b)| a != b) {
        None => Ok(()),
        Some((&a, &b)) => Err(BenchError::Different { position: position as u32, tokens: [a, b] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_comes_first_as_often_as_last() {
        for control in [false, true] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut orders = Orders { random: &mut random, control, next: None };
            let drawn: Vec<_> = (0..600).map(|_| orders.draw()).collect();
            let count = |side, last: bool| {
                let end =
                    |order: &Vec<Side>| if last { order.last() } else { order.first() }.copied();
                drawn.iter().filter(|order| end(order) == Some(side)).count()
            };
            for side in [Side::On, Side::Off] {
                assert_eq!(count(side, false), count(side, true));
            }
            // A third or a half of 600, give or take four standard deviations.
            let expected = if control { 200 } else { 300 };
            assert!(count(Side::On, false).abs_diff(expected) < 70);
            assert_eq!(count(Side::Control, false) > 0, control);
        }
    }

    #[test]
    fn differing_tokens_are_an_error() {
        assert!(same(7, &[1, 2, 3], &[1, 2, 3]).is_ok());
        let error = same(7, &[1, 2, 3], &[1, 5, 3]).unwrap_err().to_string();
        assert_eq!(error, "the same step chose token 2 and then token 5 at position 7");
    }
}
