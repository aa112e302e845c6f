//! What a rewind costs: shadow passes over several rows of one sequence, against a draft step and
//! against a shadow pass over one row.
//!
//! The state is the same for all: a sequence whose cache is full to `context`. Each pass writes the
//! entries that the one before wrote, so all of them can run again and again, in an order that is drawn
//! anew each time. Ratios are taken within such a turn.

use rewind_engine::{Executor, Input, Row, Weights};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::rig::{Rig, Room, Wanted, chosen, row};
use crate::session::Session;
use crate::speed::positive;
use crate::statistics::{Interval, Summary};

/// Shadow passes of up to so many rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewindCost {
    /// Every number of rows up to this.
    pub rows: usize,
    /// Numbers of rows above it that are measured too, ascending: what several sequences need together.
    pub further: Vec<usize>,
    /// Tokens in the cache before them.
    pub context: usize,
    /// Parts that the turns are measured in; memory's bandwidth is sampled before each.
    pub rounds: usize,
    /// Turns of a round; each runs every pass once.
    pub turns: usize,
    /// Of the order.
    pub seed: u64,
}

/// Which rows of a pass choose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choosing {
    /// All, as in the verification of a window.
    All,
    /// The last, as where a rewind refreshes the entries before a suspect step.
    Last,
}

/// All figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewindCostFigures {
    /// Tokens in the cache before the rows.
    pub context: usize,
    /// A draft step of one sequence.
    pub draft_step_seconds: Summary,
    /// A line for each number of rows and each way of choosing.
    pub passes: Vec<RewindCostLine>,
}

/// A shadow pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewindCostLine {
    /// Rows.
    pub rows: usize,
    /// Which of them choose a token.
    pub choosing: Choosing,
    /// Of a pass.
    pub seconds: Summary,
    /// Over a draft step of the same turn.
    pub draft_steps: Interval,
    /// Over a shadow pass of one row of the same turn.
    pub shadow_rows: Interval,
}

/// One thing to run in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    weights: Weights,
    rows: usize,
    choosing: Choosing,
}

impl RewindCost {
    /// What the executor must have.
    pub fn room(&self) -> Room {
        let rows = self.counts().max().unwrap_or(0);
        Room { slots: 1, rows, positions: self.context + rows }
    }

    /// How often the session's `tick` is called.
    pub fn ticks(&self) -> u64 {
        (self.rounds * self.turns) as u64
    }

    /// Measures.
    ///
    /// # Errors
    /// A setting is 0, or the executor fails or is too small.
    pub fn run<E: Executor>(
        &self,
        session: &mut Session<'_, E>,
    ) -> Result<RewindCostFigures, BenchError> {
        for (setting, value) in
            [("rows", self.rows), ("rounds", self.rounds), ("turns", self.turns)]
        {
            positive(setting, value)?;
        }
        let kinds = self.kinds();
        let mut seconds = vec![Vec::new(); kinds.len()];
        let mut order: Vec<_> = (0..kinds.len()).collect();
        let mut random = fastrand::Rng::with_seed(self.seed);
        for _ in 0..self.rounds {
            session.sample_bandwidth();
            let mut rig = Rig::new(&mut *session.executor, self.room())?;
            rig.fill(Weights::Full, 0, self.context)?;
            // The first turn warms up.
            for turn in 0..=self.turns {
                random.shuffle(&mut order);
                for &index in &order {
                    let time = self.pass(&mut rig, kinds[index])?;
                    if turn > 0 {
                        seconds[index].push(time);
                    }
                }
                if turn > 0 {
                    (session.tick)();
                }
            }
        }
        let draft = &seconds[0];
        let single = &seconds[1];
        let passes = kinds.iter().zip(&seconds).skip(1).map(|(kind, seconds)| RewindCostLine {
            rows: kind.rows,
            choosing: kind.choosing,
            draft_steps: Interval::of(&ratios(seconds, draft)),
            shadow_rows: Interval::of(&ratios(seconds, single)),
            seconds: Summary::of(seconds.clone()),
        });
        Ok(RewindCostFigures {
            context: self.context,
            passes: passes.collect(),
            draft_step_seconds: Summary::of(draft.clone()),
        })
    }

    /// The draft step, then the shadow pass of one row, then all others.
    fn kinds(&self) -> Vec<Kind> {
        let draft = Kind { weights: Weights::Draft, rows: 1, choosing: Choosing::All };
        let shadow = |rows, choosing| Kind { weights: Weights::Full, rows, choosing };
        let all = self.counts().map(|rows| shadow(rows, Choosing::All));
        // Of one row, all is the last.
        let last = self.counts().skip(1).map(|rows| shadow(rows, Choosing::Last));
        [draft].into_iter().chain(all).chain(last).collect()
    }

    fn counts(&self) -> impl Iterator<Item = usize> {
        let further = self.further.iter().copied().filter(|&rows| rows > self.rows);
        (1..=self.rows).chain(further)
    }

    fn pass<E: Executor>(&self, rig: &mut Rig<'_, E>, kind: Kind) -> Result<f64, BenchError> {
        let Kind { weights, rows, choosing } = kind;
        let (nothing, verify) = (Wanted::default(), Wanted::greedy(false));
        // A draft's row is judged; of a verification, none that a draft stands beside.
        let judged = Wanted::greedy(true);
        let wanted = |number| match (weights, choosing) {
            (Weights::Draft, _) => &judged,
            (Weights::Full, Choosing::All) => &verify,
            (Weights::Full, Choosing::Last) if number + 1 == rows => &verify,
            (Weights::Full, Choosing::Last) => &nothing,
        };
        let one = |number| -> Row {
            let position = self.context + number;
            row(0, position, Input::Token(rig.token(position)), wanted(number))
        };
        let list = (0..rows).map(one).collect();
        let (time, results) = rig.run(weights, list)?;
        if let Some(result) = results.last() {
            chosen(result, weights, self.context + rows - 1)?;
        }
        Ok(time.as_secs_f64())
    }
}

fn ratios(seconds: &[f64], of: &[f64]) -> Vec<f64> {
    seconds.iter().zip(of).map(|(seconds, of)| seconds / of).collect()
}
