//! A model that needs no weights: logits are drawn from the token that is fed, and the draft's are moved by noise.

use std::collections::VecDeque;

use rewind_engine::sampling::{History, Scratch, choose};
use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Pass, RowResult, Ticket, Token, Weights, validate,
};
use rewind_monitor::oracle;

/// Such a model, as an executor. Its logits depend on the last two tokens, so that a wrong past shows.
pub(crate) struct Toy {
    limits: Limits,
    /// Deviation of the draft's logits, nats.
    pub(crate) noise: f64,
    /// Tokens of each slot so far.
    past: Vec<Vec<Token>>,
    results: VecDeque<Vec<RowResult>>,
    /// Rows of the passes so far.
    pub(crate) passes: Vec<(Weights, usize)>,
    /// Answers NaN at this position.
    pub(crate) broken_at: Option<u32>,
}

pub(crate) const VOCABULARY: u32 = 40;

impl Toy {
    pub(crate) fn new(noise: f64) -> Self {
        let limits = Limits {
            vocabulary: VOCABULARY,
            layers: 2,
            slots: 2,
            rows: 24,
            pages: 16,
            page_tokens: 16,
            positions: 128,
        };
        let past = vec![Vec::new(); 2];
        Self { limits, noise, past, results: VecDeque::new(), passes: Vec::new(), broken_at: None }
    }

    /// Logits after a past: of a sharpness that depends on the last token.
    pub(crate) fn logits(&self, weights: Weights, past: &[Token]) -> Vec<f32> {
        let [.., before, last] = *[&[0, 0], past].concat() else {
            unreachable!("two are put before")
        };
        let mut random = fastrand::Rng::with_seed(u64::from(1000 * last + before));
        let mut noise = fastrand::Rng::with_seed(u64::from(7_000_000 + 1000 * last + before));
        let sharpness = 1.0 + f64::from(last % 5);
        (0..VOCABULARY)
            .map(|_| {
                let clean = sharpness * (random.f64() + random.f64() + random.f64() - 1.5);
                let moved = self.noise * (noise.f64() + noise.f64() + noise.f64() - 1.5) * 2.0;
                (clean + if weights == Weights::Draft { moved } else { 0.0 }) as f32
            })
            .collect()
    }
}

impl Executor for Toy {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, weights: Weights) -> String {
        format!("toy {weights:?}")
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        validate(&pass, &self.limits, |_| true)?;
        self.passes.push((pass.weights, pass.rows.len()));
        let mut results = Vec::new();
        for row in &pass.rows {
            let Input::Token(token) = row.input else {
                return Err(ExecutorError::InvalidPass("tokens only".into()));
            };
            let past = &mut self.past[row.slot.0 as usize];
            past.truncate(row.position as usize);
            assert_eq!(past.len(), row.position as usize, "a position was left out");
            past.push(token);
            let past = past.clone();
            let mut logits = self.logits(pass.weights, &past);
            if self.broken_at == Some(row.position) {
                logits[3] = f32::NAN;
            }
            let mut result = RowResult::empty();
            if row.outputs.needs_head() {
                result.statistics = oracle::statistics(&logits);
            }
            if let Some(wanted) = row.outputs.choose.as_ref().filter(|_| result.statistics.finite) {
                let (history, mut scratch) = (History::default(), Scratch::default());
                let sampling = &wanted.sampling;
                let choice =
                    choose(&logits, sampling, &history, &[], None, wanted.position, &mut scratch);
                result.token = Some(choice.token);
            }
            result.logits = row.outputs.logits.then_some(logits);
            results.push(result);
        }
        self.results.push_back(results);
        Ok(Ticket(self.passes.len() as u64))
    }

    fn wait(&mut self, _: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        self.results
            .pop_front()
            .ok_or_else(|| ExecutorError::PassFailed("nothing submitted".into()))
    }
}
