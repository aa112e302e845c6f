//! A device that needs no weights: each row's token is a hash of its input and position.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Engine, Executor, ExecutorError, Input, Limits, Pass, Policy, Request, RowResult, Settings,
    Stop, Ticket, Weights,
};
use rewind_monitor::{Detector, Gate, Statistics};

/// Token ids are below this; id `i` reads as the letter number `i`.
pub(crate) const VOCABULARY: u32 = 26;

/// What a test can do to a running [`Mock`].
#[derive(Debug, Default)]
pub(crate) struct Lever {
    /// The next pass panics.
    pub panic: AtomicBool,
    /// Every pass fails.
    pub fail: AtomicBool,
    /// Every pass takes this many microseconds.
    pub slow: AtomicU64,
    /// Passes run so far.
    pub passes: AtomicU64,
}

/// The device.
pub(crate) struct Mock {
    limits: Limits,
    lever: Arc<Lever>,
    next: u64,
    queue: Vec<(u64, Pass)>,
}

impl Mock {
    /// A device with `pages` pages of 4 positions.
    pub(crate) fn new(pages: u32, lever: Arc<Lever>) -> Self {
        let limits = Limits {
            vocabulary: VOCABULARY,
            layers: 1,
            slots: 16,
            rows: 64,
            pages,
            page_tokens: 4,
            positions: 64,
        };
        Self { limits, lever, next: 0, queue: Vec::new() }
    }
}

/// The token after `token` at `position`; draft and shadow differ now and then.
fn follow(weights: Weights, token: u32, position: u32) -> u32 {
    let mut x = u64::from(token) << 32 | u64::from(position);
    x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let differs = weights == Weights::Draft && x >> 60 == 0;
    ((x >> 20) as u32 + u32::from(differs)) % VOCABULARY
}

impl Executor for Mock {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, weights: Weights) -> String {
        format!("mock {weights:?}")
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        self.next += 1;
        self.queue.push((self.next, pass));
        Ok(Ticket(self.next))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let index = self.queue.iter().position(|(id, _)| *id == ticket.0).unwrap();
        let (_, pass) = self.queue.remove(index);
        self.lever.passes.fetch_add(1, Ordering::Relaxed);
        assert!(!self.lever.panic.load(Ordering::Relaxed), "pulled the lever");
        if self.lever.fail.load(Ordering::Relaxed) {
            return Err(ExecutorError::PassFailed("pulled the lever".into()));
        }
        std::thread::sleep(Duration::from_micros(self.lever.slow.load(Ordering::Relaxed)));
        Ok(pass.rows.iter().map(|row| answer(pass.weights, row)).collect())
    }
}

fn answer(weights: Weights, row: &rewind_engine::Row) -> RowResult {
    let Input::Token(token) = row.input else { panic!("the engine feeds tokens") };
    let next = follow(weights, token, row.position);
    let statistics = Statistics {
        entropy: next as f32 / 10.0,
        varentropy: 0.0,
        top1: 0.5,
        margin: 1.0,
        finite: true,
    };
    RowResult {
        token: row.outputs.choose.is_some().then_some(next),
        runner_up: None,
        statistics,
        suspect: row.gate.is_some_and(|gate| gate.is_suspect(&statistics)),
        logprobs: Arc::new([]),
        logits: None,
        taps: Vec::new(),
    }
}

/// An engine over a [`Mock`].
pub(crate) fn engine(pages: u32, max_queue: usize, lever: &Arc<Lever>) -> Engine<Mock> {
    let letters: Vec<[u8; 1]> = (0..VOCABULARY as u8).map(|i| [b'a' + i]).collect();
    let vocabulary = Vocabulary::new(letters.iter().map(|letter| &letter[..]));
    let settings = Settings { max_queue, ..Settings::default() };
    Engine::new(Mock::new(pages, Arc::clone(lever)), vocabulary, settings)
}

/// A request that runs to its full length.
pub(crate) fn request(prompt: &[u32], max_tokens: u32, policy: Policy) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        min_tokens: 0,
        stop: Stop::default(),
        sampling: Sampling::GREEDY,
        policy,
        gate: Gate { detector: Detector::Entropy, threshold: 2.0 }.into(),
        prefill: Weights::Full,
        logprobs: None,
    }
}
