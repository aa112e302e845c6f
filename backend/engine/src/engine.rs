//! The engine core joined with an executor.

use std::time::{Duration, Instant};

use crate::core::{Core, Load, Selection, Settings};
use crate::event::Event;
use crate::executor::{Executor, ExecutorError, Pass, RowResult, Ticket, Weights};
use crate::request::{Policy, Refusal, Request, RequestId};
use crate::text::Vocabulary;

/// One pass as it ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassReport {
    /// Which weights.
    pub weights: Weights,
    /// Rows in it.
    pub rows: usize,
    /// From submission, or from the end of the pass in front of it, to results.
    pub time: Duration,
}

/// What one iteration brought.
#[derive(Debug, Default)]
pub struct Step {
    /// Events in order.
    pub events: Vec<Event>,
    /// Passes that ran, at most one of each kind.
    pub passes: Vec<PassReport>,
}

/// A core with its executor.
#[derive(Debug)]
pub struct Engine<E> {
    core: Core,
    executor: E,
    vocabulary: Vocabulary,
}

/// A pass that was handed to the executor, or could not be.
struct Submitted {
    weights: Weights,
    rows: usize,
    since: Instant,
    ticket: Result<Ticket, ExecutorError>,
}

impl<E: Executor> Engine<E> {
    /// Joins them.
    pub fn new(executor: E, vocabulary: Vocabulary, settings: Settings) -> Self {
        Self { core: Core::new(executor.limits().clone(), settings), executor, vocabulary }
    }

    /// As [`Core::submit`].
    ///
    /// # Errors
    /// As [`Core::submit`].
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refusal> {
        self.core.submit(request)
    }

    /// As [`Core::cancel`]; the event comes with the next [`Engine::step`].
    pub fn cancel(&mut self, id: RequestId) {
        self.core.cancel(id);
    }

    /// Runs one iteration. With nothing to run it returns at once.
    pub fn step(&mut self, selection: Selection<'_>) -> Step {
        let passes = self.core.plan(selection);
        // Both are queued before either is waited for, so that a device need not idle in between.
        let draft = passes.draft.map(|pass| self.submit_pass(pass));
        let full = passes.full.map(|pass| self.submit_pass(pass));
        let mut reports = Vec::new();
        let draft = draft.map(|submitted| self.wait(submitted, &mut reports));
        let full = full.map(|submitted| self.wait(submitted, &mut reports));
        Step { events: self.core.apply(draft, full, &self.vocabulary), passes: reports }
    }

    /// What it holds.
    pub fn load(&self) -> Load {
        self.core.load()
    }

    /// As [`Core::has_room`].
    pub fn has_room(&self, prompt: usize, max_tokens: u32, policy: Policy) -> bool {
        self.core.has_room(prompt, max_tokens, policy)
    }

    /// Whether no request is in it.
    pub fn is_idle(&self) -> bool {
        let load = self.load();
        load.waiting + load.prefilling + load.drafting + load.verifying == 0
    }

    /// The pure core.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The executor.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// The executor, to run passes of one's own; the engine must be idle.
    pub fn executor_mut(&mut self) -> &mut E {
        &mut self.executor
    }

    fn submit_pass(&mut self, pass: Pass) -> Submitted {
        let (weights, rows, since) = (pass.weights, pass.rows.len(), Instant::now());
        Submitted { weights, rows, since, ticket: self.executor.submit(pass) }
    }

    fn wait(
        &mut self,
        submitted: Submitted,
        reports: &mut Vec<PassReport>,
    ) -> Result<Vec<RowResult>, ExecutorError> {
        let Submitted { weights, rows, since, ticket } = submitted;
        // The queue is served in order: the pass in front has just been waited for.
        let since = if reports.is_empty() { since } else { Instant::now() };
        let results = self.executor.wait(ticket?)?;
        reports.push(PassReport { weights, rows, time: since.elapsed() });
        Ok(results)
    }
}
