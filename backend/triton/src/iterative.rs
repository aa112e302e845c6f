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
//!
//! Of Triton's two schedulers `direct` is the better one: it puts all sequences into each batch and
//! looks for cancelled ones before. With `oldest`, a request that is cancelled between its return and
//! its next batch is answered, but its place stays taken until `max_sequence_idle_microseconds` are over
//! ([`crate::config`] warns where that is long), and batches split.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rewind_engine::{Event, RequestId, Selection};
use rewind_serving::{AnyEngine, Observer, RequestError};

use crate::answer::{Answer, Part, Progress, Terms};
use crate::decode::request_error;
use crate::exchange::{Exchange, count};
use crate::ffi::{
    Cancellation, Error, Request, RequestKey, ResponseTimes, Span, catch, now, panic_text,
};
use crate::metrics::StepObserver;
use crate::model::{Admitted, Driver, Service};

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
    /// See [`crate::config::Scheduling::Iterative`].
    ready: Option<String>,
    state: Mutex<State>,
    /// Tells the reaper that there are sequences again, or that it shall end.
    changed: Condvar,
    /// Set once the engine panicked. Outside of the lock, which an iteration holds for long.
    death: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct State {
    engine: AnyEngine,
    observer: StepObserver,
    sequences: HashMap<RequestKey, Sequence>,
    /// That of [`Shared`]; from then on there are no sequences.
    death: Arc<OnceLock<String>>,
    /// Whether a sequence was forgotten since the last iteration.
    unsettled: bool,
    /// Up to when the observer knows how long there was work, in nanoseconds of [`now`]; `None` while there
    /// is none.
    since: Option<u64>,
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
    /// Nobody asked: Triton fills an empty place of the batch.
    Nothing,
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
    pub(crate) fn start(
        service: Arc<Service>,
        engine: AnyEngine,
        ready: Option<String>,
    ) -> Result<Self, Error> {
        let death = Arc::new(OnceLock::new());
        let state = State {
            engine,
            observer: StepObserver(Arc::clone(&service.metrics)),
            sequences: HashMap::new(),
            death: Arc::clone(&death),
            unsettled: false,
            since: None,
            closing: false,
        };
        let shared = Arc::new(Shared {
            service,
            ready,
            state: Mutex::new(state),
            changed: Condvar::new(),
            death,
        });
        let reaper = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("rewind-reaper".into())
                .spawn(move || shared.reap())
                .map_err(|error| Error::internal(format!("no thread for cancellations: {error}")))?
        };
        Ok(Self { shared, reaper: Some(reaper) })
    }
}

impl Driver for Iterative {
    /// One iteration over a batch of requests.
    fn execute(&self, batch: Vec<Exchange>) {
        let shared = &*self.shared;
        let begun = now();
        let mut turns: Vec<Turn> =
            batch.into_iter().map(|exchange| shared.receive(exchange)).collect();
        let compute_start = now();
        let end = shared.lock().run(&mut turns, begun, compute_start, &shared.service);
        shared.changed.notify_all();

        let running = turns.iter().filter(|turn| turn.id.is_some()).count();
        if let Some(turn) = turns.first()
            && running > 0
        {
            let span = Span { start: begun, compute_start, compute_end: end, end: now() };
            count(turn.exchange.hold().report_batch(running, span));
        }
        let stays =
            |turn: &Turn| matches!(turn.verdict, Some(Verdict::Again(_) | Verdict::Nothing));
        if !turns.iter().all(stays) {
            shared.service.metrics.push();
        }
        // First everything is said, then all go back at once: a request that goes back alone is put into
        // a batch of its own, and the others, whose responses are still being built, miss it.
        let again: Vec<Exchange> =
            turns.into_iter().filter_map(|turn| shared.deliver(turn, compute_start, end)).collect();
        for exchange in again {
            shared.reschedule(exchange);
        }
    }

    fn is_alive(&self) -> bool {
        self.shared.death.get().is_none()
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
    /// A panic is caught where it can happen (see [`State::guarded`]), so a poisoned lock means no more
    /// than what `death` says.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a request before the engine's lock is taken: tokenizing takes long. A panic over one
    /// request must not cost the others of the batch their sequences.
    fn receive(&self, exchange: Exchange) -> Turn {
        let mut turn =
            Turn { exchange, admitted: None, new: false, alone: false, id: None, verdict: None };
        match self.place(&turn.exchange) {
            Ok(Place::Empty) => {
                turn.verdict = Some(Verdict::Nothing);
                return turn;
            }
            Ok(Place::Starts { alone }) => {
                (turn.new, turn.alone) = (true, alone);
                match catch("starting a request", || self.service.admit(&turn.exchange)) {
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
        if let Some(ready) = &self.ready
            && is_empty(request, ready)?
        {
            return Ok(Place::Empty);
        }
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

    /// Sends what an iteration brought. Returns the request if it goes back to Triton.
    fn deliver(&self, turn: Turn, compute_start: u64, compute_end: u64) -> Option<Exchange> {
        let Turn { exchange, verdict, .. } = turn;
        let times = ResponseTimes { start: compute_start, output_start: compute_end, end: now() };
        let start = exchange.start();
        match verdict.unwrap_or(Verdict::Fail(Error::internal("the iteration skipped the request")))
        {
            Verdict::Again(Some(reply)) => return self.tell(exchange, reply, times),
            Verdict::Again(None) | Verdict::Cancelled => return Some(exchange),
            Verdict::Nothing => exchange.dismiss(),
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
        None
    }

    fn tell(&self, mut exchange: Exchange, reply: Reply, times: ResponseTimes) -> Option<Exchange> {
        let Reply { part, terms, first } = reply;
        let sent = exchange.send(first.then_some(times), |response| {
            self.service.encoder(&terms).fill(response, &part)
        });
        match sent {
            Ok(()) => Some(exchange),
            Err(error) => {
                self.fail(exchange, &error);
                None
            }
        }
    }

    fn reschedule(&self, exchange: Exchange) {
        if let Err((exchange, error)) = exchange.reschedule() {
            self.fail(exchange, &error.context("the request cannot go on"));
        }
    }

    /// Ends a request whose sequence may still run.
    fn fail(&self, exchange: Exchange, error: &Error) {
        if let Ok(key) = exchange.request().map(Request::key) {
            self.forget(key);
        }
        exchange.fail(error);
    }

    /// Drops the sequence of a request that is still ours, so that the key is not another's yet.
    fn forget(&self, key: RequestKey) {
        self.lock().guarded(|state| {
            state.forget(key);
            state.settle();
        });
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
            state.guarded(|state| {
                for &key in &gone {
                    state.forget(key);
                }
                state.settle();
            });
        }
    }
}

/// Whether Triton made up the request to fill a place of the batch. Requests that do not come from the
/// sequence batcher, as those of a warm-up, lack the tensor.
fn is_empty(request: &Request, ready: &str) -> Result<bool, Error> {
    let inputs = request.inputs()?;
    let input = inputs.iter().find(|input| input.name == ready);
    Ok(input.is_some_and(|input| input.bytes().iter().all(|&byte| byte == 0)))
}

/// Where a request stands in its sequence.
enum Place {
    /// In none.
    Empty,
    Starts {
        alone: bool,
    },
    Continues,
}

/// What an iteration brought, and when it ended.
struct Iteration {
    events: HashMap<RequestId, Vec<Event>>,
    end: u64,
}

impl State {
    /// One iteration over these requests; when it ended. After it, all have a verdict.
    fn run(
        &mut self,
        turns: &mut [Turn],
        begun: u64,
        compute_start: u64,
        service: &Service,
    ) -> u64 {
        let end = self.guarded(|state| {
            state.since.get_or_insert(begun);
            for turn in turns.iter_mut() {
                state.enter(turn, begun, compute_start);
            }
            let Iteration { mut events, end } = state.iterate(turns);
            for turn in turns.iter_mut() {
                state.judge(turn, &mut events, compute_start, end, service);
            }
            state.settle();
            end
        });
        if let Some(death) = self.death.get() {
            let unanswered =
                |turn: &&mut Turn| matches!(turn.verdict, None | Some(Verdict::Again(_)));
            for turn in turns.iter_mut().filter(unanswered) {
                let error = request_error(RequestError::EngineDead(death.clone()));
                turn.verdict = Some(Verdict::Fail(error));
            }
        }
        end.unwrap_or_else(now)
    }

    /// Works on a living engine; `None` where it is dead. A panic leaves the engine in no state to go
    /// on, so it is its death, and everything that it held is dropped: a sequence that stayed would
    /// keep the model loaded for ever.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.death.get().is_some() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => Some(done),
            Err(panic) => {
                let text = panic_text(&*panic).to_owned();
                std::mem::forget(panic);
                tracing::error!("the engine panicked: {text}");
                // Set nowhere else, and only once, as asked above.
                let _ = self.death.set(text);
                self.sequences.clear();
                None
            }
        }
    }

    /// Finds or makes the sequence of a request.
    fn enter(&mut self, turn: &mut Turn, begun: u64, compute_start: u64) {
        let Ok(key) = turn.exchange.request().map(Request::key) else { return };
        if turn.verdict.is_some() {
            self.forget(key);
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

    /// Runs the engine once over the sequences of a batch, and over warm-up requests until they end.
    fn iterate(&mut self, turns: &mut [Turn]) -> Iteration {
        let mut events: HashMap<RequestId, Vec<Event>> = HashMap::new();
        let running: Vec<RequestId> = turns.iter().filter_map(|turn| turn.id).collect();
        if !running.is_empty() {
            self.step(&running, &mut events);
        }
        self.refuse_unadmitted(turns);
        let alone = turns.iter().filter(|turn| turn.alone && turn.verdict.is_none());
        for id in alone.filter_map(|turn| turn.id) {
            let ended = |events: &HashMap<RequestId, Vec<Event>>| {
                events.get(&id).is_some_and(|events| events.iter().any(Event::is_final))
            };
            while !ended(&events) {
                self.step(&[id], &mut events);
            }
        }
        Iteration { events, end: now() }
    }

    fn step(&mut self, running: &[RequestId], events: &mut HashMap<RequestId, Vec<Event>>) {
        let step = self.engine.step(Selection::Only(running));
        let at = now();
        let active = at.saturating_sub(self.since.replace(at).unwrap_or(at));
        self.observer.step(&step, &self.engine.load(), Duration::from_nanos(active));
        for event in step.events {
            events.entry(event.id()).or_default().push(event);
        }
    }

    /// Refuses new sequences that the engine could not start. It starts them first come, first served,
    /// and none was left waiting before, so those that wait are the last ones.
    fn refuse_unadmitted(&mut self, turns: &mut [Turn]) {
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
                Verdict::Again(Some(Reply { part, terms: sequence.answer.terms().clone(), first }))
            }
            Progress::Last(part) => {
                service.finished(&sequence.answer);
                let terms = sequence.answer.terms().clone();
                Verdict::Last(Reply { part, terms, first: !sequence.begun }, sequence.spent)
            }
            Progress::Failed(error) => Verdict::Fail(error),
        };
        match verdict {
            Verdict::Again(_) => sequence.spent.since = now(),
            Verdict::Cancelled | Verdict::Nothing => self.forget(key),
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
        if std::mem::take(&mut self.unsettled) {
            self.step(&[], &mut HashMap::new());
        }
        if self.sequences.is_empty() {
            self.since = None;
        }
    }
}
