//! A mock executor whose "model" is a hash of everything that a row attends to.
//!
//! A KV entry is the hash of the weights, the token and the entries before it; the chosen token is
//! a function of the tokens alone that one in four times departs by that hash. So drafts mostly
//! agree with the shadow, and any entry that is missing, stale or of the wrong provenance changes
//! what a later row says.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Limits, PageId, Pass, RowResult, Ticket, Weights,
};
use rewind_monitor::Statistics;

#[derive(Debug)]
pub(crate) struct HashModel {
    limits: Limits,
    memory: BTreeMap<(PageId, u32), (u32, u64)>,
    answers: BTreeMap<u64, Vec<RowResult>>,
    tickets: u64,
}

pub(crate) const EOS: u32 = 0;

pub(crate) fn limits(pages: u32, slots: u32) -> Limits {
    Limits { vocabulary: 16, layers: 1, slots, rows: 64, pages, page_tokens: 4, positions: 64 }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl HashModel {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, memory: BTreeMap::new(), answers: BTreeMap::new(), tickets: 0 }
    }

    fn run(&mut self, pass: &Pass) -> Vec<RowResult> {
        let page_tokens = self.limits.page_tokens;
        for copy in &pass.copies {
            for offset in 0..page_tokens {
                if let Some(&entry) = self.memory.get(&(copy.from, offset)) {
                    self.memory.insert((copy.to, offset), entry);
                }
            }
        }
        let mut results = Vec::new();
        for row in &pass.rows {
            let table = pass.tables.iter().find(|table| table.slot == row.slot);
            let pages = &table.expect("every slot has a table").pages;
            let place =
                |position: u32| (pages[(position / page_tokens) as usize], position % page_tokens);
            let Input::Token(token) = row.input else { panic!("only tokens are fed") };
            let before: Vec<(u32, u64)> =
                (0..row.position).map(|p| self.memory[&place(p)]).collect();
            let state = hash((pass.weights == Weights::Full, token, &before));
            self.memory.insert(place(row.position), (token, state));

            let tokens: Vec<u32> = before.iter().map(|entry| entry.0).chain([token]).collect();
            let plain = hash((&tokens, row.outputs.choose.as_ref().map(|c| c.sampling.seed)));
            let chosen = if state % 4 == 0 { state >> 8 } else { plain >> 8 };
            let uncertainty = (state >> 32) % 100;
            let entropy = uncertainty as f32 / 10.0;
            let statistics = Statistics {
                entropy,
                varentropy: 0.0,
                top1: 0.5,
                margin: 1.0,
                finite: (state >> 40) % 97 != 0 || pass.weights == Weights::Full,
            };
            let wanted = row.outputs.choose.is_some() && statistics.finite;
            results.push(RowResult {
                token: wanted.then_some((chosen % u64::from(self.limits.vocabulary)) as u32),
                runner_up: None,
                suspect: !statistics.finite
                    || row.gate.is_some_and(|gate| gate.is_suspect(&statistics)),
                statistics,
                logprobs: Arc::default(),
                logits: None,
                taps: Vec::new(),
            });
        }
        results
    }
}

impl Executor for HashModel {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, weights: Weights) -> String {
        format!("hash {weights:?}")
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let results = self.run(&pass);
        self.tickets += 1;
        self.answers.insert(self.tickets, results);
        Ok(Ticket(self.tickets))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        self.answers
            .remove(&ticket.0)
            .ok_or_else(|| ExecutorError::InvalidPass(format!("{ticket:?} is unknown")))
    }
}
