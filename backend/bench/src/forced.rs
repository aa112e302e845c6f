//! An executor whose verdicts are drawn.
//!
//! What a policy costs depends on how often the monitor fires, and a detector on one model and one text
//! gives one rate only. So the verdict of every row that is judged is thrown away, after it was computed
//! as always, and drawn anew at the wanted rate. The engine above notices no difference.

use std::collections::VecDeque;

use rewind_engine::{Executor, ExecutorError, Limits, Pass, RowResult, Ticket, Weights};

/// An executor over another one, which fires at a rate.
pub struct Forced<'a, E> {
    executor: &'a mut E,
    rate: f64,
    random: fastrand::Rng,
    /// For each pass that was submitted and not waited for, which rows are judged.
    judged: VecDeque<(u64, Vec<bool>)>,
    verdicts: Verdicts,
}

/// How often was judged and fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Rows with a gate.
    pub(crate) judged: u64,
    /// Those found suspect.
    pub(crate) fired: u64,
}

impl<'a, E> Forced<'a, E> {
    /// Rows with a gate are suspect with probability `rate`, 0 to 1, each on its own. The same seed and
    /// the same passes give the same verdicts.
    pub fn new(executor: &'a mut E, rate: f64, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let verdicts = Verdicts::default();
        Self { executor, rate, random, judged: VecDeque::new(), verdicts }
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        self.verdicts
    }
}

impl<E: Executor> Executor for Forced<'_, E> {
    fn limits(&self) -> &Limits {
        self.executor.limits()
    }

    fn identity(&self, weights: Weights) -> String {
        self.executor.identity(weights)
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let judged = pass.rows.iter().map(|row| row.gate.is_some()).collect();
        let ticket = self.executor.submit(pass)?;
        self.judged.push_back((ticket.0, judged));
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let place = self.judged.iter().position(|(number, _)| *number == ticket.0);
        let judged = place.and_then(|place| self.judged.remove(place));
        let mut results = self.executor.wait(ticket)?;
        for (result, judged) in results.iter_mut().zip(judged.map_or(Vec::new(), |(_, rows)| rows))
        {
            // What is not finite has no token to be trusted.
            if judged && result.statistics.finite {
                result.suspect = self.random.f64() < self.rate;
                self.verdicts.judged += 1;
                self.verdicts.fired += u64::from(result.suspect);
            }
        }
        Ok(results)
    }
}
