//! Requests run to their end on the calling thread, with a trace of each.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rewind_engine::{
    Committed, Event, FinishReason, Request, RequestId, RewindReason, Selection, Weights,
};
use rewind_serving::AnyEngine;

/// What one request brought.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Committed tokens.
    pub(crate) tokens: Vec<Committed>,
    /// All of their text.
    pub(crate) text: String,
    /// Why it ended.
    pub(crate) finish: FinishReason,
    /// Rewinds, each with the number of tokens committed before it and of drafts thrown away.
    pub(crate) rewinds: Vec<Rewind>,
    /// Which of the profiles that it could choose from the prompt chose; `None` if there was one.
    pub(crate) candidate: Option<usize>,
    /// From submission to the first token.
    pub(crate) first_token: Duration,
    /// From the first token to the last.
    pub(crate) decode: Duration,
    /// Shadow passes after the first token; of all requests that ran together.
    pub(crate) shadow_passes: usize,
    /// Rows of these.
    pub(crate) shadow_rows: usize,
}

/// One rewind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewind {
    /// Tokens that were committed before.
    pub(crate) at: usize,
    /// Drafts thrown away.
    pub(crate) tokens: u32,
    /// Why.
    pub(crate) reason: RewindReason,
}

impl Trace {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|committed| committed.token).collect()
    }

    /// Tokens per second after the first; `None` if there was only one.
    pub(crate) fn decode_rate(&self) -> Option<f64> {
        let seconds = self.decode.as_secs_f64();
        (self.tokens.len() > 1 && seconds > 0.0).then(|| (self.tokens.len() - 1) as f64 / seconds)
    }
}

/// A request on its way.
struct Open {
    id: RequestId,
    trace: Trace,
    ended: bool,
}

/// Runs `requests` side by side, showing every event to `watch` with the index of its request.
pub(crate) fn run_all(
    engine: &mut AnyEngine,
    requests: Vec<Request>,
    mut watch: impl FnMut(usize, &Event),
) -> Result<Vec<Trace>> {
    let start = Instant::now();
    let mut open = Vec::with_capacity(requests.len());
    for request in requests {
        let trace = Trace {
            tokens: Vec::new(),
            text: String::new(),
            finish: FinishReason::Length,
            rewinds: Vec::new(),
            candidate: None,
            first_token: Duration::ZERO,
            decode: Duration::ZERO,
            shadow_passes: 0,
            shadow_rows: 0,
        };
        open.push(Open { id: engine.submit(request)?, trace, ended: false });
    }
    while open.iter().any(|request| !request.ended) {
        let step = engine.step(Selection::All);
        if step.events.is_empty() && step.passes.is_empty() {
            bail!("the engine stands still with requests in it: this is a defect");
        }
        let now = start.elapsed();
        for request in open.iter_mut().filter(|r| !r.ended && !r.trace.tokens.is_empty()) {
            let full = step.passes.iter().filter(|pass| pass.weights == Weights::Full);
            for pass in full {
                request.trace.shadow_passes += 1;
                request.trace.shadow_rows += pass.rows;
            }
        }
        for event in step.events {
            let Some(index) = open.iter().position(|request| request.id == event.id()) else {
                bail!("the engine told of request {:?}, which does not exist", event.id());
            };
            watch(index, &event);
            record(&mut open[index], event, now)?;
        }
    }
    Ok(open.into_iter().map(|request| request.trace).collect())
}

fn record(request: &mut Open, event: Event, now: Duration) -> Result<()> {
    let trace = &mut request.trace;
    match event {
        Event::Token { committed, .. } => {
            if trace.tokens.is_empty() {
                trace.first_token = now;
            }
            trace.decode = now - trace.first_token;
            trace.text.push_str(&committed.text);
            trace.tokens.push(committed);
        }
        Event::GateChosen { candidate, .. } => trace.candidate = Some(candidate),
        Event::Rewound { reason, tokens, .. } => {
            trace.rewinds.push(Rewind { at: trace.tokens.len(), tokens, reason });
        }
        Event::Finished { reason, text, .. } => {
            trace.text.push_str(&text);
            trace.finish = reason;
            request.ended = true;
        }
        Event::Cancelled { .. } => bail!("the request was cancelled"),
        Event::Failed { error, .. } => bail!("generation failed: {error}"),
    }
    Ok(())
}

/// As [`run_all`], for one request that nobody watches.
pub(crate) fn run_one(engine: &mut AnyEngine, request: Request) -> Result<Trace> {
    let mut traces = run_all(engine, vec![request], |_, _| ())?;
    match traces.pop() {
        Some(trace) => Ok(trace),
        None => bail!("the engine lost the request"),
    }
}
