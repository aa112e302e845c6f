//! The iterative driver: Triton's sequence batcher puts requests together, one execution is one
//! iteration of the engine over them, and unfinished requests go back to Triton to be executed again.
//!
//! Sequences are known by the request itself, which Triton hands back unchanged, not by the
//! correlation id: a client may use an id twice at once, and then only the request tells which
//! sequence goes on.
//!
//! Triton answers a cancelled request itself, as soon as it has it back, and never shows it again. So
//! execution gives cancelled requests back without an answer, and a thread looks for sequences whose
//! requests were cancelled while they waited in Triton's queue.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rewind_engine::{Event, RequestId, Selection, Step};
use rewind_serving::{CpuEngine, Observer, RequestError};

use crate::answer::{Answer, Part, Progress, Terms};
use crate::decode::request_error;
use crate::exchange::{Exchange, count};
use crate::ffi::{Cancellation, Error, Request, RequestKey, ResponseTimes, Span, now, panic_text};
use crate::metrics::StepObserver;
use crate::model::{Admitted, Service};

/// How often cancelled requests that wait in Triton's queue are looked for.
const CANCEL_POLL: Duration = Duration::from_millis(10);

/// An engine that Triton's executions step.
#[derive(Debug)]
pub(crate) struct Iterative {
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    service: Arc<Service>,
    state: Mutex<State>,
    /// Tells the reaper that there are sequences again, or that it shall end.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    engine: CpuEngine,
    observer: StepObserver,
    sequences: HashMap<RequestKey, Sequence>,
    /// Set once the engine panicked.
    death: Option<String>,
    /// Whether a sequence was forgotten since the last iteration.
    unsettled: bool,
    closing: bool,
}

/// A request that Triton executes again and again.
#[derive(Debug)]
struct Sequence {
    id: RequestId,
    answer: Answer,
    cancellation: Cancellation,
    /// Whether a response was sent.
    begun: bool,
    spent: Spent,
}

/// Time of all iterations so far, in nanoseconds. Triton counts a request once, with the durations of
/// its last execution unless it is told those of all.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// In Triton's queue, but for the last wait, which Triton knows.
    queued: u64,
    /// The last wait.
    last_wait: u64,
    input: u64,
    compute: u64,
    /// When the request went back to Triton.
    since: u64,
}

/// What execution does with a request once the engine's lock is free.
enum Verdict {
    /// Nothing to tell yet, or this part: again.
    Again(Option<Reply>),
    /// Its last answer.
    Last(Reply, Spent),
    /// An error as its last answer.
    Fail(Error),
    /// Taken back by the client: Triton answers.
    Cancelled,
}

/// A part with what a response of it is built with.
struct Reply {
    part: Part,
    terms: Terms,
    first: bool,
}

/// A request of a batch on its way through an iteration.
struct Turn {
    exchange: Exchange,
    /// A new sequence, decoded and tokenized before the engine's lock is taken.
    admitted: Option<Admitted>,
    /// Starts a sequence now.
    new: bool,
    /// Outside of a sequence: a warm-up request, which Triton cannot reschedule.
    alone: bool,
    /// Its sequence in the engine.
    id: Option<RequestId>,
    verdict: Option<Verdict>,
}

impl Iterative {
    /// Starts the thread that looks for cancelled requests.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub(crate) fn start(service: Arc<Service>, engine: CpuEngine) -> Result<Self, Error> {
        let state = State {
            engine,
            observer: StepObserver(Arc::clone(&service.metrics)),
            sequences: HashMap::new(),
            death: None,
            unsettled: false,
            closing: false,
        };
        let shared =
            Arc::new(Shared { service, state: Mutex::new(state), changed: Condvar::new() });
        let reaper = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("rewind-reaper".into())
                .spawn(move || shared.reap())
                .map_err(|error| Error::internal(format!("no thread for cancellations: {error}")))?
        };
        Ok(Self { shared, reaper: Some(reaper) })
    }

    /// Whether the engine still works.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.lock().death.is_none()
    }

    /// One iteration over a batch of requests.
    pub(crate) fn execute(&self, batch: Vec<Exchange>) {
        let shared = &*self.shared;
        let begun = now();
        let mut turns: Vec<Turn> =
            batch.into_iter().map(|exchange| shared.receive(exchange)).collect();
        let compute_start = now();
        let mut state = shared.lock();
        for turn in &mut turns {
            state.enter(turn, begun, compute_start);
        }
        let running: Vec<RequestId> = turns.iter().filter_map(|turn| turn.id).collect();
        let Iteration { mut events, end } = state.iterate(&running, &mut turns);
        for turn in &mut turns {
            state.judge(turn, &mut events, compute_start, end, &shared.service);
        }
        state.settle();
        drop(state);
        shared.changed.notify_all();

        if let Some(turn) = turns.first()
            && !running.is_empty()
        {
            let span = Span { start: begun, compute_start, compute_end: end, end: now() };
            count(turn.exchange.hold().report_batch(running.len(), span));
        }
        if turns.iter().any(|turn| !matches!(turn.verdict, Some(Verdict::Again(_)))) {
            shared.service.metrics.push();
        }
        for turn in turns {
            shared.deliver(turn, compute_start, end);
        }
    }
}

impl Drop for Iterative {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(reaper) = self.reaper.take()
            && reaper.join().is_err()
        {
            tracing::error!("the thread for cancellations panicked");
        }
    }
}

impl Shared {
    /// A panic is caught where it can happen (see [`State::iterate`]), so a poisoned lock means no more
    /// than what `death` says.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a request before the engine's lock is taken: tokenizing takes long.
    fn receive(&self, exchange: Exchange) -> Turn {
        let mut turn =
            Turn { exchange, admitted: None, new: false, alone: false, id: None, verdict: None };
        match self.place(&turn.exchange) {
            Ok(Place::Starts { alone }) => {
                (turn.new, turn.alone) = (true, alone);
                match self.service.admit(&turn.exchange) {
                    Ok(admitted) => turn.admitted = Some(admitted),
                    Err(error) => turn.verdict = Some(Verdict::Fail(error)),
                }
            }
            Ok(Place::Continues) => {}
            Err(error) => turn.verdict = Some(Verdict::Fail(error)),
        }
        if turn.exchange.is_cancelled() && !turn.alone {
            turn.verdict = Some(Verdict::Cancelled);
        }
        turn
    }

    fn place(&self, exchange: &Exchange) -> Result<Place, Error> {
        let request = exchange.request()?;
        let flags = request.flags()?;
        if flags.start && flags.end {
            return Err(Error::invalid(
                "the request says that it starts and ends a sequence: here Triton executes each request \
                 many times, one token each, so leave sequence_id, sequence_start and sequence_end out",
            ));
        }
        let alone = request.correlation_id()?.is_none();
        Ok(if flags.start || alone { Place::Starts { alone } } else { Place::Continues })
    }

    /// Sends what an iteration brought, and gives the request back or releases it.
    fn deliver(&self, turn: Turn, compute_start: u64, compute_end: u64) {
        let Turn { exchange, verdict, .. } = turn;
        let times = ResponseTimes { start: compute_start, output_start: compute_end, end: now() };
        let start = exchange.start();
        match verdict.unwrap_or(Verdict::Fail(Error::internal("the iteration skipped the request")))
        {
            Verdict::Again(reply) => self.again(exchange, reply, times),
            Verdict::Cancelled => self.again(exchange, None, times),
            Verdict::Fail(error) => exchange.fail(&error),
            Verdict::Last(Reply { part, terms, .. }, spent) => {
                // Triton subtracts neighbours only: so the sums of all iterations are laid out one
                // after the other, from a start that makes its queue time the sum of all waits.
                let start = start + spent.queued;
                let compute_start = start + spent.input;
                let compute_end = compute_start + spent.compute;
                let end = compute_end + times.end.saturating_sub(times.output_start);
                let span = Span { start, compute_start, compute_end, end };
                exchange.finish(span, times, |response| {
                    self.service.encoder(&terms).fill(response, &part)
                });
            }
        }
    }

    fn again(&self, mut exchange: Exchange, reply: Option<Reply>, times: ResponseTimes) {
        let Ok(key) = exchange.request().map(Request::key) else { return };
        if let Some(Reply { part, terms, first }) = reply {
            let sent = exchange.send(first.then_some(times), |response| {
                self.service.encoder(&terms).fill(response, &part)
            });
            if let Err(error) = sent {
                self.lock().forget(key);
                return exchange.fail(&error);
            }
        }
        if let Err((exchange, error)) = exchange.reschedule() {
            self.lock().forget(key);
            exchange.fail(&error.context("the request cannot go on"));
        }
    }

    /// Frees the sequences of requests that were cancelled while they waited in Triton's queue.
    fn reap(&self) {
        let mut state = self.lock();
        while !state.closing {
            if state.sequences.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            std::thread::sleep(CANCEL_POLL);
            state = self.lock();
            let gone: Vec<RequestKey> = state
                .sequences
                .iter()
                .filter(|(_, sequence)| sequence.cancellation.is_cancelled())
                .map(|(key, _)| *key)
                .collect();
            for &key in &gone {
                state.forget(key);
            }
            state.settle();
        }
    }
}

/// Where a request stands in its sequence.
enum Place {
    Starts { alone: bool },
    Continues,
}

/// What an iteration brought, and when it ended.
struct Iteration {
    events: HashMap<RequestId, Vec<Event>>,
    end: u64,
}

impl State {
    /// Finds or makes the sequence of a request.
    fn enter(&mut self, turn: &mut Turn, begun: u64, compute_start: u64) {
        let Ok(key) = turn.exchange.request().map(Request::key) else { return };
        if turn.verdict.is_some() {
            self.forget(key);
            return;
        }
        if let Some(death) = &self.death {
            let error = request_error(RequestError::EngineDead(death.clone()));
            turn.verdict = Some(Verdict::Fail(error));
            return;
        }
        let entered = match turn.admitted.take() {
            Some(admitted) => self.begin(&turn.exchange, key, admitted),
            None => self.resume(key, begun),
        };
        match entered {
            Ok(id) => {
                turn.id = Some(id);
                if let Some(sequence) = self.sequences.get_mut(&key) {
                    sequence.spent.input += compute_start - begun;
                }
            }
            Err(error) => turn.verdict = Some(Verdict::Fail(error)),
        }
    }

    fn begin(
        &mut self,
        exchange: &Exchange,
        key: RequestKey,
        Admitted { request, answer }: Admitted,
    ) -> Result<RequestId, Error> {
        // A request that ended behind our back, whose memory the new one got.
        self.forget(key);
        let cancellation = Cancellation::new(exchange.request()?)?;
        let id = self.engine.submit(request).map_err(|refusal| request_error(refusal.into()))?;
        let spent = Spent::default();
        self.sequences.insert(key, Sequence { id, answer, cancellation, begun: false, spent });
        Ok(id)
    }

    fn resume(&mut self, key: RequestKey, begun: u64) -> Result<RequestId, Error> {
        let sequence = self.sequences.get_mut(&key).ok_or_else(|| {
            Error::invalid(
                "the request continues a sequence that it did not start: here each request is a whole \
                 sequence, so leave sequence_id, sequence_start and sequence_end out",
            )
        })?;
        sequence.spent.queued += sequence.spent.last_wait;
        sequence.spent.last_wait = begun.saturating_sub(sequence.spent.since);
        Ok(sequence.id)
    }

    /// Runs the engine once over these sequences, and over warm-up requests until they end.
    fn iterate(&mut self, running: &[RequestId], turns: &mut [Turn]) -> Iteration {
        let mut events: HashMap<RequestId, Vec<Event>> = HashMap::new();
        if !running.is_empty() {
            self.step(running, &mut events);
        }
        self.refuse_unadmitted(turns);
        let alone = turns.iter().filter(|turn| turn.alone && turn.verdict.is_none());
        for id in alone.filter_map(|turn| turn.id) {
            let ended = |events: &HashMap<RequestId, Vec<Event>>| {
                events.get(&id).is_some_and(|events| events.iter().any(Event::is_final))
            };
            while !ended(&events) && self.death.is_none() {
                self.step(&[id], &mut events);
            }
        }
        Iteration { events, end: now() }
    }

    fn step(&mut self, running: &[RequestId], events: &mut HashMap<RequestId, Vec<Event>>) {
        let stepped = catch_unwind(AssertUnwindSafe(|| self.engine.step(Selection::Only(running))));
        let step = match stepped {
            Ok(step) => step,
            Err(panic) => {
                let text = panic_text(&*panic).to_owned();
                std::mem::forget(panic);
                tracing::error!("the engine panicked: {text}");
                self.death = Some(text);
                return;
            }
        };
        self.observe(&step);
        for event in step.events {
            events.entry(event.id()).or_default().push(event);
        }
    }

    fn observe(&mut self, step: &Step) {
        let load = self.engine.load();
        self.observer.step(step, &load);
    }

    /// Refuses new sequences that the engine could not start. It starts them first come, first served,
    /// and none was left waiting before, so those that wait are the last ones.
    fn refuse_unadmitted(&mut self, turns: &mut [Turn]) {
        if self.death.is_some() {
            return;
        }
        let load = self.engine.load();
        let new = turns.iter_mut().rev().filter(|turn| turn.new && turn.id.is_some());
        for turn in new.take(load.waiting) {
            turn.verdict = Some(Verdict::Fail(Error::unavailable(format!(
                "the engine has no room for another sequence ({} of {} KV pages in use): try again later",
                load.pages_used, load.pages
            ))));
            if let Ok(key) = turn.exchange.request().map(Request::key) {
                self.forget(key);
            }
        }
    }

    /// Decides what becomes of a request after an iteration.
    fn judge(
        &mut self,
        turn: &mut Turn,
        events: &mut HashMap<RequestId, Vec<Event>>,
        compute_start: u64,
        at: u64,
        service: &Service,
    ) {
        let (None, Some(id)) = (&turn.verdict, turn.id) else { return };
        let Ok(key) = turn.exchange.request().map(Request::key) else { return };
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        if let Some(death) = &self.death {
            let error = request_error(RequestError::EngineDead(death.clone()));
            turn.verdict = Some(Verdict::Fail(error));
            self.sequences.remove(&key);
            return;
        }
        sequence.spent.compute += at - compute_start;
        let mut progress = Progress::Nothing;
        service.metrics.record(|record| {
            progress = sequence.answer.take(events.remove(&id).unwrap_or_default(), at, record);
        });
        // Asked again at the last moment: for a request that is released here while its flag is up,
        // Triton would not free its place in the sequence batcher.
        let cancelled = turn.exchange.is_cancelled() && !turn.alone;
        let verdict = match progress {
            _ if cancelled => Verdict::Cancelled,
            Progress::Nothing => Verdict::Again(None),
            Progress::Part(part) => {
                let first = !std::mem::replace(&mut sequence.begun, true);
                Verdict::Again(Some(Reply { part, terms: *sequence.answer.terms(), first }))
            }
            Progress::Last(part) => {
                let terms = *sequence.answer.terms();
                Verdict::Last(Reply { part, terms, first: !sequence.begun }, sequence.spent)
            }
            Progress::Failed(error) => Verdict::Fail(error),
        };
        match verdict {
            Verdict::Again(_) => sequence.spent.since = now(),
            Verdict::Cancelled => self.forget(key),
            // The engine is done with it.
            Verdict::Last(..) | Verdict::Fail(_) => drop(self.sequences.remove(&key)),
        }
        turn.verdict = Some(verdict);
    }

    /// Drops a sequence and frees what the engine holds of it.
    fn forget(&mut self, key: RequestKey) {
        if let Some(sequence) = self.sequences.remove(&key) {
            self.engine.cancel(sequence.id);
            self.unsettled = true;
        }
    }

    /// Lets the engine, and the metrics, take note of what was forgotten, when no iteration may follow.
    fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) && self.death.is_none() {
            self.step(&[], &mut HashMap::new());
        }
    }
}
