//! The engine on a thread of its own: continuous batching.
//!
//! Callers hand over requests with a [`Sink`] each and go on; the thread runs iteration after iteration
//! and hands every event to its sink. What can be refused is refused on the caller's thread, from the
//! pure part of the engine, so that nobody waits for an iteration to learn of a bad request.
//!
//! One promise matters most: an accepted sink gets exactly one final event, whatever happens. It is
//! kept by ownership. A sink lives inside a [`Live`] from acceptance on; handing it its final event
//! consumes the `Live`, and dropping one in any other way (a panic, a closed channel) sends
//! [`Event::Failed`]. Rejected: a list of open requests that shutdown code walks, which every new early
//! return can break.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use rewind_engine::{
    Core, Engine, Event, Executor, Load, Refusal, Request, RequestId, Selection, SequenceError,
    Step,
};

use crate::error::RequestError;

/// Where the events of one request go. Called on the engine's thread, between iterations: every
/// microsecond here is one that no sequence advances.
pub trait Sink: Send {
    /// Whether nobody wants the answer any more. Asked once in every iteration.
    fn is_cancelled(&self) -> bool;

    /// Takes an event; the last one is final and nothing is called after it.
    fn event(&mut self, event: Event);

    /// Called after the events of an iteration, unless the final one was among them: a sink that hands
    /// on its events together does so now.
    fn flush(&mut self) {}
}

/// Sees every iteration, before its events reach the sinks: whoever has an answer can rely on the
/// figures to include it.
pub trait Observer: Send {
    /// Takes what an iteration brought and what the engine holds after it. `active`: how long there was
    /// work, since the iteration before or since the request arrived for which the engine was waiting;
    /// its passes are a part of that.
    fn step(&mut self, step: &Step, load: &Load, active: Duration);
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn step(&mut self, _: &Step, _: &Load, _: Duration) {}
}

/// A request that was not taken, with its sink given back untouched.
pub struct Rejected {
    /// The sink; no event was or will be sent to it.
    pub sink: Box<dyn Sink>,
    /// Why.
    pub error: RequestError,
}

impl std::fmt::Debug for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rejected").field("error", &self.error).finish_non_exhaustive()
    }
}

/// A running engine. Dropping it is [`Inflight::shutdown`].
#[derive(Debug)]
pub struct Inflight {
    /// `None` only while dropping.
    inbox: Option<Sender<Submission>>,
    thread: Option<JoinHandle<()>>,
    /// The engine's core as it was when empty: it knows all the limits, and is never stepped.
    rules: Core,
    shared: Arc<Shared>,
}

/// What callers and the engine's thread both see.
#[derive(Debug, Default)]
struct Shared {
    /// Requests accepted and not yet admitted: in the channel or in the engine's queue.
    waiting: AtomicUsize,
    /// As of the end of the last iteration.
    load: Mutex<Load>,
    /// Set once, when the thread dies of a panic.
    death: OnceLock<String>,
}

struct Submission {
    request: Request,
    live: Live,
    at: Instant,
}

/// Id of the events of requests that never reached the engine.
const UNASSIGNED: RequestId = RequestId(u64::MAX);

/// With no pass to run and no message, how long to sleep between looks at the sinks' cancel flags.
const IDLE_POLL: Duration = Duration::from_millis(5);

impl Inflight {
    /// Moves the engine to a new thread. The engine must be idle.
    ///
    /// # Panics
    /// If the operating system cannot start a thread.
    pub fn start<E>(engine: Engine<E>, observer: Box<dyn Observer>) -> Self
    where
        E: Executor + Send + 'static,
    {
        let rules = engine.core().clone();
        let shared = Arc::new(Shared { load: Mutex::new(engine.load()), ..Shared::default() });
        let (inbox, outbox) = unbounded();
        let driver = Driver {
            engine,
            observer,
            inbox: outbox,
            shared: Arc::clone(&shared),
            sinks: BTreeMap::new(),
            queued: 0,
            since: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("rewind-engine".into())
            .spawn(move || driver.run())
            .expect("the operating system has a thread left for the engine");
        Self { inbox: Some(inbox), thread: Some(thread), rules, shared }
    }

    /// Hands over a request. Returns at once; everything else is told to the sink.
    ///
    /// # Errors
    /// The request can never run, the queue is full, or the engine is dead. The sink comes back.
    pub fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<(), Rejected> {
        if let Err(refusal) = self.rules.check(&request) {
            return Err(Rejected { sink, error: refusal.into() });
        }
        if let Some(death) = self.shared.death.get() {
            return Err(Rejected { sink, error: RequestError::EngineDead(death.clone()) });
        }
        let limit = self.rules.settings().max_queue;
        let claimed = self
            .shared
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        if let Err(waiting) = claimed {
            return Err(Rejected { sink, error: Refusal::QueueFull { waiting, limit }.into() });
        }
        let live = Live { sink: Some(sink) };
        let submission = Submission { request, live, at: Instant::now() };
        let sent = match &self.inbox {
            Some(inbox) => inbox.send(submission).map_err(|returned| returned.into_inner()),
            None => Err(submission),
        };
        sent.map_err(|returned| {
            let death = self.shared.death.get().cloned().unwrap_or_default();
            Rejected { sink: returned.live.into_sink(), error: RequestError::EngineDead(death) }
        })
    }

    /// Whether the engine's thread still works.
    pub fn is_alive(&self) -> bool {
        self.shared.death.get().is_none()
    }

    /// What the engine held after its last iteration; `waiting` is up to date.
    pub fn load(&self) -> Load {
        let mut load = *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.waiting = self.shared.waiting.load(Ordering::Acquire);
        load
    }

    /// Takes no more requests, waits until all that were accepted have ended, and frees the engine.
    /// Cancels nothing: whoever is in a hurry lets the sinks say that they are cancelled.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // `Driver::run` catches panics; only a panic in the destructor of the engine comes here.
            tracing::error!("the engine's thread panicked while it was freed");
        }
    }
}

/// An accepted sink that still owes its final event.
struct Live {
    /// `None` once the final event was handed over.
    sink: Option<Box<dyn Sink>>,
}

impl Live {
    fn is_cancelled(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.is_cancelled())
    }

    fn event(&mut self, event: Event) {
        if let Some(sink) = &mut self.sink {
            sink.event(event);
        }
    }

    fn flush(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.flush();
        }
    }

    fn finish(mut self, event: Event) {
        // Taken first: should the sink panic, it has had its final event.
        if let Some(mut sink) = self.sink.take() {
            sink.event(event);
        }
    }

    fn fail(self, id: RequestId, why: &str) {
        self.finish(Event::Failed { id, error: SequenceError::Executor(why.into()) });
    }

    fn into_sink(mut self) -> Box<dyn Sink> {
        self.sink.take().expect("only `finish` empties it, and consumes it")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(mut sink) = self.sink.take() {
            let error = SequenceError::Executor("the engine stopped before the end".into());
            // One sink that panics must not take the others' final events with it.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                sink.event(Event::Failed { id: UNASSIGNED, error });
            }));
        }
    }
}

/// The thread's side.
struct Driver<E> {
    engine: Engine<E>,
    observer: Box<dyn Observer>,
    inbox: Receiver<Submission>,
    shared: Arc<Shared>,
    sinks: BTreeMap<RequestId, Live>,
    /// Requests in the engine's own queue.
    queued: usize,
    /// Up to when the observer knows how long there was work.
    since: Instant,
}

impl<E: Executor> Driver<E> {
    fn run(mut self) {
        // The state is not used again after a panic, but to fail the sinks and to be dropped.
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work())) else { return };
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        tracing::error!("the engine's thread panicked: {text}");
        let why = format!("the engine stopped after an internal error: {text}");
        // Before the sinks hear of it, so that whoever hears can see it.
        let _ = self.shared.death.set(text.to_owned());
        for (id, live) in std::mem::take(&mut self.sinks) {
            let _ = catch_unwind(AssertUnwindSafe(|| live.fail(id, &why)));
        }
        // What is still in the channel fails as it is dropped with the receiver.
    }

    fn work(&mut self) {
        let mut open = true;
        loop {
            open &= self.receive_all();
            if self.sinks.is_empty() {
                if !open {
                    return;
                }
                match self.inbox.recv() {
                    Ok(submission) => {
                        self.since = submission.at;
                        self.accept(submission);
                    }
                    Err(_) => return,
                }
                continue;
            }
            for (id, live) in &self.sinks {
                if live.is_cancelled() {
                    self.engine.cancel(*id);
                }
            }
            if !self.iterate() {
                // Everyone waits for something that is not ours to bring about: do not spin.
                if open {
                    match self.inbox.recv_timeout(IDLE_POLL) {
                        Ok(submission) => self.accept(submission),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => open = false,
                    }
                } else {
                    std::thread::sleep(IDLE_POLL);
                }
            }
        }
    }

    /// Takes what has arrived; false once nothing more can arrive.
    fn receive_all(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.accept(submission),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn accept(&mut self, Submission { request, live, .. }: Submission) {
        match self.engine.submit(request) {
            Ok(id) => {
                self.queued += 1;
                self.sinks.insert(id, live);
            }
            // `Inflight::submit` asked the same rules; if they ever differ, the sink learns why.
            Err(refusal) => {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                live.fail(UNASSIGNED, &refusal.to_string());
            }
        }
    }

    /// One iteration; whether it did anything.
    fn iterate(&mut self) -> bool {
        let step = self.engine.step(Selection::All);
        let load = self.engine.load();
        let left = self.queued.saturating_sub(load.waiting);
        self.queued = load.waiting;
        self.shared.waiting.fetch_sub(left, Ordering::AcqRel);
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
        let now = Instant::now();
        self.observer.step(&step, &load, now - std::mem::replace(&mut self.since, now));
        let worked = !(step.events.is_empty() && step.passes.is_empty());
        let mut open = Vec::new();
        for event in step.events {
            let id = event.id();
            if event.is_final() {
                if let Some(live) = self.sinks.remove(&id) {
                    live.finish(event);
                }
            } else if let Some(live) = self.sinks.get_mut(&id) {
                live.event(event);
                if open.last() != Some(&id) {
                    open.push(id);
                }
            }
        }
        for id in open {
            if let Some(live) = self.sinks.get_mut(&id) {
                live.flush();
            }
        }
        worked
    }
}
