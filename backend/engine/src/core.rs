//! The pure engine core: admission, planning, and the application of results.
//!
//! One iteration is `plan` → run the passes → `apply`. Nothing here knows the time, a thread or a
//! device, and equal histories give equal states, so this very code is model-checked
//! (`tests/model.rs`). Rejected: one task per sequence with channels between them. The rules of a
//! batch (budget, pooling, memory) are about all sequences at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::event::{Event, SequenceError};
use crate::executor::{ExecutorError, Limits, PageTable, Pass, Row, RowResult, Slot, Weights};
use crate::pages::{Kv, PageId, Pin, Pool};
use crate::request::{GateChoice, Policy, Refusal, Request, RequestId};
use crate::sequence::{Outcome, Phase, Sequence, Surroundings, Work};
use crate::text::Vocabulary;

/// Engine-wide settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Requests that may wait; beyond it [`Refusal::QueueFull`].
    pub max_queue: usize,
    /// Rows per pass, at most [`Limits::rows`], at least 1.
    pub max_batch_rows: u32,
    /// A pooled shadow pass starts when this many rows wait.
    pub verify_rows: u32,
    /// A pooled shadow pass starts when a row has waited this many iterations.
    pub verify_wait: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_queue: 1024, max_batch_rows: 256, verify_rows: 16, verify_wait: 1 }
    }
}

/// Which sequences take part in an iteration.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// All of them (in-flight driver).
    All,
    /// These only (iterative driver); unknown ids are ignored.
    Only(&'a [RequestId]),
}

impl Selection<'_> {
    fn has(self, id: RequestId) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.contains(&id),
        }
    }
}

/// Passes of one iteration, run in this order: draft, then full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Passes {
    /// Rows on the draft weights.
    pub draft: Option<Pass>,
    /// Rows on the shadow weights.
    pub full: Option<Pass>,
}

/// What the engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Load {
    /// Requests in the queue.
    pub waiting: usize,
    /// Sequences whose prompt is being read.
    pub prefilling: usize,
    /// Sequences that draft, or decode on the shadow.
    pub drafting: usize,
    /// Sequences that wait for a verification.
    pub verifying: usize,
    /// KV pages in use.
    pub pages_used: u32,
    /// KV pages there are.
    pub pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
}

/// Rows of one sequence inside a submitted pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Unit {
    id: RequestId,
    rows: Range<usize>,
}

/// A submitted pass as the core remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    weights: Weights,
    rows: Vec<Row>,
    units: Vec<Unit>,
}

/// The pure engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    settings: Settings,
    limits: Limits,
    pool: Pool,
    waiting: VecDeque<(RequestId, Arc<Request>)>,
    running: BTreeMap<RequestId, Sequence>,
    free_slots: BTreeSet<Slot>,
    next_id: u64,
    /// Passes between `plan` and `apply`.
    flights: Vec<Flight>,
    /// Events that `cancel` caused, told by the next `apply`.
    outbox: Vec<Event>,
}

impl Core {
    /// An empty engine over an executor with these limits.
    pub fn new(limits: Limits, mut settings: Settings) -> Self {
        settings.max_batch_rows = settings.max_batch_rows.min(limits.rows).max(1);
        let slots = limits.slots.min(settings.max_batch_rows);
        Self {
            pool: Pool::new(limits.pages),
            free_slots: (0..slots).map(Slot).collect(),
            settings,
            limits,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_id: 0,
            flights: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// The request can never run, or the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refusal> {
        self.check(&request)?;
        if self.waiting.len() >= self.settings.max_queue {
            return Err(Refusal::QueueFull {
                waiting: self.waiting.len(),
                limit: self.settings.max_queue,
            });
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back((id, Arc::new(request)));
        Ok(id)
    }

    /// Cancels a request; unknown and ended ones are ignored. [`Event::Cancelled`] comes with the
    /// next `apply`; a sequence in a submitted pass commits nothing more.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(index) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            self.waiting.remove(index);
            self.outbox.push(Event::Cancelled { id });
        } else if self.is_in_flight(id) {
            if let Some(sequence) = self.running.get_mut(&id) {
                sequence.cancelled = true;
            }
        } else if self.end(id) {
            self.outbox.push(Event::Cancelled { id });
        }
    }

    /// Admits what fits, and gives the passes of the next iteration; both are `None` when there is
    /// nothing to run. Each call must be followed by one [`Core::apply`].
    pub fn plan(&mut self, selection: Selection<'_>) -> Passes {
        debug_assert!(self.flights.is_empty(), "the last plan was not applied");
        self.admit(selection);
        let draft = self.gather(Weights::Draft, selection);
        let full = self.gather(Weights::Full, selection);
        let full = if draft.is_empty() || self.full_is_due(&full) { full } else { Vec::new() };

        let draft = self.build(Weights::Draft, &draft);
        let full = self.build(Weights::Full, &full);
        let flown: BTreeSet<RequestId> =
            self.flights.iter().flat_map(|flight| &flight.units).map(|unit| unit.id).collect();
        // A cap keeps the state finite. As many steps as there can be sequences keep them all apart:
        // with fewer, those that reach the cap together would be served by age, the youngest never.
        let cap = self.settings.verify_wait.max(3).max(self.limits.slots);
        for (id, sequence) in &mut self.running {
            if flown.contains(id) {
                sequence.waited = 0;
            } else if selection.has(*id) {
                sequence.waited = (sequence.waited + 1).min(cap);
            }
        }
        Passes { draft, full }
    }

    /// Takes the results of the passes of the last `plan`: `None` for a pass that there was not.
    /// A failed pass fails its sequences and no other.
    pub fn apply(
        &mut self,
        draft: Option<Result<Vec<RowResult>, ExecutorError>>,
        full: Option<Result<Vec<RowResult>, ExecutorError>>,
        vocabulary: &Vocabulary,
    ) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.outbox);
        for flight in std::mem::take(&mut self.flights) {
            let results = match flight.weights {
                Weights::Draft => &draft,
                Weights::Full => &full,
            };
            let results = match results {
                Some(Ok(results)) if results.len() == flight.rows.len() => Ok(&results[..]),
                Some(Ok(results)) => Err(format!(
                    "the executor answered {} of {} rows",
                    results.len(),
                    flight.rows.len()
                )),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("the pass was never run".to_owned()),
            };
            for Unit { id, rows } in &flight.units {
                let Some(sequence) = self.running.get_mut(id) else { continue };
                let outcome = match &results {
                    _ if sequence.cancelled => {
                        self.end(*id);
                        events.push(Event::Cancelled { id: *id });
                        continue;
                    }
                    Ok(results) => sequence.apply(
                        flight.weights,
                        &flight.rows[rows.clone()],
                        &results[rows.clone()],
                        &mut Surroundings { vocabulary, pool: &mut self.pool, events: &mut events },
                    ),
                    Err(error) => Outcome::Failed(SequenceError::Executor(error.clone())),
                };
                let last = match outcome {
                    Outcome::Runs => continue,
                    Outcome::Finished(reason, text) => Event::Finished { id: *id, reason, text },
                    Outcome::Failed(error) => Event::Failed { id: *id, error },
                };
                self.end(*id);
                events.push(last);
            }
        }
        events
    }

    /// Its settings, with defaults and limits applied.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What it holds.
    pub fn load(&self) -> Load {
        let mut load = Load {
            waiting: self.waiting.len(),
            pages_used: self.pool.used(),
            pages: self.pool.total(),
            page_tokens: self.limits.page_tokens,
            ..Load::default()
        };
        for sequence in self.running.values() {
            match sequence.phase {
                Phase::Prefilling => load.prefilling += 1,
                Phase::Drafting { .. } | Phase::Decoding => load.drafting += 1,
                Phase::Verifying { .. } => load.verifying += 1,
            }
        }
        load
    }

    /// Whether a request of this shape would start at the next `plan` that selects it, with
    /// nothing else arriving first.
    pub fn has_room(&self, prompt: usize, max_tokens: u32, policy: Policy) -> bool {
        let pages = self.pages_needed(prompt, max_tokens, policy);
        self.waiting.is_empty()
            && !self.free_slots.is_empty()
            && pages <= u64::from(self.pool.available())
    }

    /// Shares the KV pages of a running sequence with the caller, who may read them until
    /// [`Core::unpin`]. `None` if the sequence is not running, is in a submitted pass, or a copy of
    /// its pages could not be promised.
    pub fn pin(&mut self, id: RequestId) -> Option<Pin> {
        if self.is_in_flight(id) {
            return None;
        }
        self.running.get_mut(&id)?.kv.pin(&mut self.pool)
    }

    /// Gives pages back.
    pub fn unpin(&mut self, pin: Pin) {
        pin.release(&mut self.pool);
    }

    /// The state of each running sequence, for checks.
    pub fn audit(&self) -> impl Iterator<Item = Audit<'_>> {
        self.running.values().map(|sequence| Audit {
            id: sequence.id,
            tokens: sequence.tokens(),
            committed: sequence.committed(),
            kv: sequence.kv.provenance(),
            pages: sequence.kv.pages(),
            prefilling: sequence.phase == Phase::Prefilling,
            in_flight: self.is_in_flight(sequence.id),
        })
    }

    /// Whether no page is held or promised; with no request and no pin it must be so.
    pub fn is_pristine(&self) -> bool {
        self.pool.is_pristine()
    }

    /// Whether a request could run at all, were the engine empty: what [`Core::submit`] tests besides
    /// the length of its queue.
    ///
    /// # Errors
    /// Why it never can.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let Limits { vocabulary, positions, .. } = self.limits;
        if request.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if request.max_tokens == 0 {
            return Err(Refusal::NoTokens);
        }
        if request.prompt.len() as u64 >= u64::from(positions) {
            return Err(Refusal::TooLong { prompt: request.prompt.len() as u64, limit: positions });
        }
        let unknown = request.prompt.iter().position(|&token| token >= vocabulary);
        if let Some(index) = unknown {
            return Err(Refusal::UnknownToken { token: request.prompt[index], index, vocabulary });
        }
        if let Policy::Window { tokens: 0, .. } | Policy::Lossless { tokens: 0 } = request.policy {
            return Err(Refusal::BadPolicy("window is 0: hold back at least one token".into()));
        }
        let rows = request.policy.pass_rows();
        if rows > u64::from(self.settings.max_batch_rows) {
            return Err(Refusal::BadPolicy(format!(
                "a shadow pass of {} with its window and refresh has up to {rows} rows: at most \
                 max_batch_rows = {} are allowed",
                request.policy, self.settings.max_batch_rows
            )));
        }
        if let GateChoice::ByPrompt(candidates) = &request.gate
            && candidates.is_empty()
        {
            return Err(Refusal::NoGate);
        }
        let exact = matches!(request.policy, Policy::Lossless { .. } | Policy::Shadow);
        if exact && request.prefill == Weights::Draft {
            return Err(Refusal::BadPolicy(format!(
                "prefill draft cannot go with policy {}: use prefill full",
                request.policy
            )));
        }
        let needed = self.pages_needed(request.prompt.len(), request.max_tokens, request.policy);
        if needed > u64::from(self.pool.total()) {
            return Err(Refusal::NeverFits { needed, pages: self.pool.total() });
        }
        Ok(())
    }

    fn pages_needed(&self, prompt: usize, max_tokens: u32, policy: Policy) -> u64 {
        let window = match policy {
            Policy::Window { tokens, .. } | Policy::Lossless { tokens } => tokens,
            _ => 0,
        };
        let tokens = (prompt as u64 + u64::from(max_tokens)).min(u64::from(self.limits.positions));
        (tokens + u64::from(window)).div_ceil(u64::from(self.limits.page_tokens))
    }

    /// First come, first served: a request that does not fit holds up those behind it.
    fn admit(&mut self, selection: Selection<'_>) {
        let mut index = 0;
        while index < self.waiting.len() {
            let (id, request) = &self.waiting[index];
            if !selection.has(*id) {
                index += 1;
                continue;
            }
            let policy = request.policy;
            let pages = self.pages_needed(request.prompt.len(), request.max_tokens, policy) as u32;
            let Some(&slot) = self.free_slots.first() else { return };
            if !self.pool.reserve(pages) {
                return;
            }
            let Some((id, request)) = self.waiting.remove(index) else { return };
            self.free_slots.remove(&slot);
            let kv = Kv::new(self.limits.page_tokens, pages);
            let sequence = Sequence::new(id, slot, request, kv, self.limits.positions);
            self.running.insert(id, sequence);
        }
    }

    /// Who wants rows on these weights, in the order of service: the longest waiting first, so that
    /// nobody starves; then decode rows before verifications before prompts; then by age.
    fn gather(&self, weights: Weights, selection: Selection<'_>) -> Vec<RequestId> {
        let mut wanting: Vec<_> = self
            .running
            .values()
            .filter(|sequence| selection.has(sequence.id) && sequence.wants().0 == weights)
            .map(|sequence| (std::cmp::Reverse(sequence.waited), sequence.wants().1, sequence.id))
            .collect();
        wanting.sort_unstable();
        wanting.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Whether rows that wait for the shadow should be pooled no longer.
    fn full_is_due(&self, wanting: &[RequestId]) -> bool {
        let mut rows = 0;
        for sequence in wanting.iter().filter_map(|id| self.running.get(id)) {
            if sequence.wants().1 != Work::Verify || sequence.waited >= self.settings.verify_wait {
                return true;
            }
            rows += sequence.verified_rows();
        }
        rows > 0 && rows >= self.settings.verify_rows
    }

    fn build(&mut self, weights: Weights, order: &[RequestId]) -> Option<Pass> {
        let mut pass = Pass {
            weights,
            layers: 0..self.limits.layers,
            copies: Vec::new(),
            tables: Vec::new(),
            rows: Vec::new(),
        };
        let mut units = Vec::new();
        let mut budget = self.settings.max_batch_rows;
        let mut prompts = order
            .iter()
            .filter_map(|id| self.running.get(id))
            .filter(|sequence| sequence.wants().1 == Work::Prefill)
            .count() as u32;
        for id in order {
            let Some(sequence) = self.running.get_mut(id) else { continue };
            let mut most = sequence.wanted_rows();
            if sequence.wants().1 == Work::Prefill {
                // Prompts share what is left.
                most = most.min(budget.div_ceil(prompts));
                prompts -= 1;
            }
            if most == 0 || most > budget {
                continue;
            }
            let rows = sequence.rows(most);
            for row in &rows {
                sequence.kv.make_writable(row.position, &mut self.pool, &mut pass.copies);
            }
            pass.tables.push(PageTable { slot: sequence.slot, pages: sequence.kv.pages().into() });
            budget -= rows.len() as u32;
            let start = pass.rows.len();
            pass.rows.extend(rows);
            units.push(Unit { id: *id, rows: start..pass.rows.len() });
        }
        if units.is_empty() {
            return None;
        }
        self.flights.push(Flight { weights, rows: pass.rows.clone(), units });
        Some(pass)
    }

    fn is_in_flight(&self, id: RequestId) -> bool {
        self.flights.iter().flat_map(|flight| &flight.units).any(|unit| unit.id == id)
    }

    /// Takes a running sequence out and frees what it held.
    fn end(&mut self, id: RequestId) -> bool {
        let Some(sequence) = self.running.remove(&id) else { return false };
        sequence.kv.release(&mut self.pool);
        self.free_slots.insert(sequence.slot);
        true
    }
}

/// What a check may know of a running sequence.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    /// The request.
    pub id: RequestId,
    /// Prompt, committed and pending tokens.
    pub tokens: &'a [u32],
    /// How many of them are prompt or committed.
    pub committed: usize,
    /// Which weights wrote each KV entry.
    pub kv: &'a [Weights],
    /// Pages held, in order of position.
    pub pages: &'a [PageId],
    /// The prompt is still being read.
    pub prefilling: bool,
    /// Between `plan` and `apply`.
    pub in_flight: bool,
}
