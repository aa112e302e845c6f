//! An executor that is watched: what it answered to each request is kept, and verdicts may be exchanged.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Pass, Row, RowClass, RowResult, Slot, Ticket, Token,
    Weights,
};
use rewind_monitor::Statistics;

use super::Verdict;

/// The answer to a row that chose a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// The token; `None` if the row was not finite.
    pub token: Option<Token>,
    /// Second best.
    pub runner_up: Option<Token>,
    /// As measured.
    pub statistics: Statistics,
    /// The verdict that the engine saw.
    pub suspect: bool,
}

/// All answers to the rows of one request, in the order of its rows: of the draft, and of the shadow.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    pub(crate) draft: VecDeque<Told>,
    pub(crate) shadow: VecDeque<Told>,
}

impl Answers {
    pub(crate) fn of(&mut self, weights: Weights) -> &mut VecDeque<Told> {
        match weights {
            Weights::Draft => &mut self.draft,
            Weights::Full => &mut self.shadow,
        }
    }
}

/// An executor over another one. Requests are told apart by their prompts, so no two may have the same.
pub struct Witness<'a, E> {
    executor: &'a mut E,
    verdict: Verdict,
    slots: HashMap<Slot, Vec<Token>>,
    flights: VecDeque<Flight>,
    answers: HashMap<Arc<[Token]>, Answers>,
    /// Of prompts that are complete.
    keys: HashMap<Slot, Arc<[Token]>>,
}

/// Whose row it is, and the verdict in place of the detector's.
type Noted = (Arc<[Token]>, Option<bool>);

struct Flight {
    ticket: u64,
    weights: Weights,
    /// For each row that chooses a token.
    rows: Vec<Option<Noted>>,
}

impl<'a, E: Executor> Witness<'a, E> {
    /// Over an executor that holds no sequence.
    pub fn new(executor: &'a mut E, verdict: Verdict) -> Self {
        Self {
            executor,
            verdict,
            slots: HashMap::new(),
            flights: VecDeque::new(),
            answers: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// What was answered to the request with this prompt; nothing if there was none.
    pub(crate) fn take(&mut self, prompt: &[Token]) -> Answers {
        self.answers.remove(prompt).unwrap_or_default()
    }

    /// Notes whose row this is, and what it is to be told.
    fn note(&mut self, row: &Row) -> Option<Noted> {
        if row.class == RowClass::Prompt {
            let prompt = self.slots.entry(row.slot).or_default();
            if row.position == 0 {
                prompt.clear();
                self.keys.remove(&row.slot);
            }
            if let Input::Token(token) = row.input {
                prompt.push(token);
            }
        }
        row.outputs.choose.as_ref()?;
        let key = self
            .keys
            .entry(row.slot)
            .or_insert_with(|| self.slots.get(&row.slot).map_or(&[][..], Vec::as_slice).into());
        let verdict = row.gate.and_then(|_| self.verdict.of(key, row.position));
        Some((Arc::clone(key), verdict))
    }
}

impl<E: Executor> Executor for Witness<'_, E> {
    fn limits(&self) -> &Limits {
        self.executor.limits()
    }

    fn identity(&self, weights: Weights) -> String {
        self.executor.identity(weights)
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let weights = pass.weights;
        let rows = pass.rows.iter().map(|row| self.note(row)).collect();
        let ticket = self.executor.submit(pass)?;
        self.flights.push_back(Flight { ticket: ticket.0, weights, rows });
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let place = self.flights.iter().position(|flight| flight.ticket == ticket.0);
        let flight = place.and_then(|place| self.flights.remove(place));
        let mut results = self.executor.wait(ticket)?;
        let Some(Flight { weights, rows, .. }) = flight else { return Ok(results) };
        for (result, row) in results.iter_mut().zip(rows) {
            let Some((key, verdict)) = row else { continue };
            // What is not finite has no token to be trusted, whoever judges.
            if let Some(suspect) = verdict.filter(|_| result.statistics.finite) {
                result.suspect = suspect;
            }
            let told = Told {
                token: result.token,
                runner_up: result.runner_up,
                statistics: result.statistics,
                suspect: result.suspect,
            };
            self.answers.entry(key).or_default().of(weights).push_back(told);
        }
        Ok(results)
    }
}
