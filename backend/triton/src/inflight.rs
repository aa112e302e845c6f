//! The in-flight driver: execution hands requests to the engine's own loop and returns.
//!
//! Three kinds of threads touch a request. Triton's instance thread decodes, tokenizes and submits it.
//! The engine's thread hands on its events, once an iteration. One sender thread for each model builds
//! responses and sends them, since sending runs the front end's code on the caller's thread, and the
//! engine must not wait for that. The request itself is kept until the end, so that its statistics and
//! its cancellation are true.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rewind_engine::Event;
use rewind_serving::{AnyEngine, Sink};

use crate::answer::{Answer, Progress};
use crate::decode::request_error;
use crate::exchange::{Exchange, count};
use crate::ffi::{Cancellation, Error, ResponseTimes, Span, catch, now};
use crate::metrics::StepObserver;
use crate::model::{Admitted, Driver, Service};
use crate::outbox::{Inbox, Outbox, outbox};

/// A running engine with its sender thread.
#[derive(Debug)]
pub(crate) struct Inflight {
    service: Arc<Service>,
    // In the order of shutdown: the engine ends first, and with it the last sender of messages.
    engine: Option<rewind_serving::Inflight>,
    outbox: Option<Outbox<Message>>,
    sender: Option<JoinHandle<()>>,
}

/// Events of one request in one iteration.
#[derive(Debug)]
struct Message {
    conversation: Arc<Conversation>,
    events: Vec<Event>,
    /// When the iteration ended, in nanoseconds of [`now`].
    at: u64,
}

/// A request in flight, as its sink and the sender thread see it.
#[derive(Debug)]
struct Conversation {
    /// `None` while the sender thread has it, and once it has its last answer: Triton is never called
    /// with the lock held, since sending runs the front end's code.
    live: Mutex<Option<Live>>,
    /// The client cannot be answered: the engine may stop.
    gone: AtomicBool,
}

#[derive(Debug)]
struct Live {
    exchange: Exchange,
    answer: Answer,
    /// When the engine got it, in nanoseconds of [`now`].
    compute_start: u64,
    /// Whether a response was sent.
    begun: bool,
}

impl Inflight {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub(crate) fn start(service: Arc<Service>, engine: AnyEngine) -> Result<Self, Error> {
        let (outbox, inbox) = outbox();
        let sender = {
            let service = Arc::clone(&service);
            std::thread::Builder::new()
                .name("rewind-sender".into())
                .spawn(move || run_sender(&service, &inbox))
                .map_err(|error| Error::internal(format!("no thread to send responses: {error}")))?
        };
        let observer = StepObserver(Arc::clone(&service.metrics));
        let engine = rewind_serving::Inflight::start(engine, Box::new(observer));
        Ok(Self { service, engine: Some(engine), outbox: Some(outbox), sender: Some(sender) })
    }

    fn begin(&self, exchange: Exchange) {
        // A panic over one request must not cost the others of the batch theirs; it drops the
        // exchange, which answers.
        let _ = catch("starting a request", || {
            self.submit(exchange);
            Ok(())
        });
    }

    fn submit(&self, exchange: Exchange) {
        if exchange.is_cancelled() {
            return exchange.fail(&Error::cancelled());
        }
        let (Some(engine), Some(outbox)) = (&self.engine, &self.outbox) else {
            return exchange.fail(&Error::unavailable("the model is shutting down"));
        };
        let prepared = self.service.admit(&exchange).and_then(|admitted| {
            let cancellation = Cancellation::new(exchange.request()?)?;
            Ok((admitted, cancellation))
        });
        let (Admitted { request, answer }, cancellation) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return exchange.fail(&error),
        };
        let live = Live { exchange, answer, compute_start: now(), begun: false };
        let conversation =
            Arc::new(Conversation { live: Mutex::new(Some(live)), gone: AtomicBool::new(false) });
        let outlet = Outlet {
            conversation: Arc::clone(&conversation),
            cancellation,
            events: Vec::new(),
            outbox: outbox.clone(),
        };
        if let Err(rejected) = engine.submit(request, Box::new(outlet))
            && let Some(live) = conversation.take()
        {
            live.exchange.fail(&request_error(rejected.error));
        }
    }
}

impl Driver for Inflight {
    fn execute(&self, batch: Vec<Exchange>) {
        for exchange in batch {
            self.begin(exchange);
        }
    }

    fn is_alive(&self) -> bool {
        self.engine.as_ref().is_some_and(rewind_serving::Inflight::is_alive)
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        // Waits until every accepted request had its final event, then frees the engine.
        drop(self.engine.take());
        // The sinks are gone, so this was the last sender: the thread ends when all is sent.
        drop(self.outbox.take());
        if let Some(sender) = self.sender.take()
            && sender.join().is_err()
        {
            tracing::error!("the sender thread panicked");
        }
    }
}

impl Conversation {
    fn take(&self) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_back(&self, live: Live) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
    }
}

/// The engine's end of a conversation. Gathers the events of an iteration, so that they become one
/// response, and the last of them the final one.
#[derive(Debug)]
struct Outlet {
    conversation: Arc<Conversation>,
    cancellation: Cancellation,
    events: Vec<Event>,
    outbox: Outbox<Message>,
}

impl Sink for Outlet {
    fn is_cancelled(&self) -> bool {
        self.conversation.gone.load(Ordering::Relaxed) || self.cancellation.is_cancelled()
    }

    fn event(&mut self, event: Event) {
        let last = event.is_final();
        self.events.push(event);
        if last {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let message = Message {
            conversation: Arc::clone(&self.conversation),
            events: std::mem::take(&mut self.events),
            at: now(),
        };
        // The receiver outlives the engine; were it gone, the message would be dropped, which answers.
        self.outbox.send(message);
    }
}

fn run_sender(service: &Service, inbox: &Inbox<Message>) {
    let mut messages = Vec::new();
    while inbox.receive(&mut messages) {
        for Message { conversation, events, at } in messages.drain(..) {
            // A panic drops what is left of the conversation, which answers the client.
            let told = catch("sending a response", || {
                tell(service, &conversation, events, at);
                Ok(())
            });
            if told.is_err() {
                conversation.gone.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Turns the events of one iteration into a response.
fn tell(service: &Service, conversation: &Conversation, events: Vec<Event>, at: u64) {
    let Some(mut live) = conversation.take() else { return };
    let mut progress = Progress::Nothing;
    service.metrics.record(|record| progress = live.answer.take(events, at, record));
    let times = ResponseTimes { start: live.compute_start, output_start: at, end: now() };
    match progress {
        Progress::Nothing => conversation.put_back(live),
        Progress::Part(part) => {
            let counted = (!live.begun).then_some(times);
            live.begun = true;
            let terms = live.answer.terms();
            let sent = live
                .exchange
                .send(counted, |response| service.encoder(terms).fill(response, &part));
            match sent {
                Ok(()) => conversation.put_back(live),
                Err(error) => {
                    conversation.gone.store(true, Ordering::Relaxed);
                    live.exchange.fail(&error);
                }
            }
        }
        Progress::Last(part) => {
            service.finished(&live.answer);
            let span = Span {
                start: live.exchange.start(),
                compute_start: live.compute_start,
                compute_end: at,
                end: times.end,
            };
            service.metrics.push();
            count(live.exchange.hold().report_batch(1, span));
            let terms = live.answer.terms();
            live.exchange
                .finish(span, times, |response| service.encoder(terms).fill(response, &part));
        }
        Progress::Failed(error) => {
            service.metrics.push();
            live.exchange.fail(&error);
        }
    }
}
