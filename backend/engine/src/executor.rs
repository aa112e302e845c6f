//! The seam between the engine and a device.
//!
//! A [`Pass`] is one run over one set of weights with any mixture of rows: prompt chunks, decode
//! steps, verification rows. The engine says which rows; an executor owns weights and KV memory and
//! answers with one [`RowResult`] for each row. Page tables travel with the pass, so an executor
//! keeps no bookkeeping of its own but the last token of each slot.

use std::ops::Range;
use std::sync::Arc;

use rewind_monitor::{Gate, Statistics};

use crate::pages::PageId;
use crate::sampling::{History, Sampling};

/// A token id.
pub type Token = u32;

/// Index of a running sequence in the executor, below [`Limits::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Which copy of the weights a pass reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weights {
    /// The quantized copy.
    Draft,
    /// The full-precision shadow.
    Full,
}

/// Part of a sequence that a row belongs to; kernels may use one K-order for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowClass {
    /// A row of the prompt.
    Prompt,
    /// A row of a decode step or of a verification.
    Generated,
}

/// What a row is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The embedding of this token.
    Token(Token),
    /// The embedding of the token that this slot chose last, known to the device only.
    LastOf(Slot),
    /// The hidden state that this slot left at the first layer of the pass (early exits).
    Hidden(Slot),
}

/// A low-rank adapter; none exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adapter(pub u32);

/// Allowed tokens, one bit each (bit `id % 64` of word `id / 64`); constrained decoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenMask(pub Arc<[u64]>);

/// How a row's next token is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choose {
    /// The sampling parameters.
    pub sampling: Arc<Sampling>,
    /// Tokens before the one to choose, pending ones included; empty when no penalty reads them.
    pub history: History,
    /// Tokens that may not be chosen now (min_tokens); sorted.
    pub banned: Arc<[Token]>,
    /// Tokens that may be chosen, if constrained.
    pub mask: Option<TokenMask>,
    /// Absolute position of the token to choose: the row's position + 1.
    pub position: u32,
}

/// What a row must answer. Default: nothing, the row only writes its KV entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outputs {
    /// Choose the next token; needs the LM head.
    pub choose: Option<Choose>,
    /// Entropy and companions. Without it only `finite` (and `margin`, if a token is chosen) is told.
    pub statistics: bool,
    /// Log-probabilities (raw p) of the chosen token and of this many best ones, at most 20.
    pub logprobs: Option<u8>,
    /// The whole row of raw logits.
    pub logits: bool,
    /// The residual stream after each of these numbers of layers, up to all of them; 0 is the embedding.
    pub taps: Range<u16>,
}

impl Outputs {
    /// Whether the LM head must run for this row.
    pub fn needs_head(&self) -> bool {
        self.choose.is_some() || self.statistics || self.logprobs.is_some() || self.logits
    }
}

/// One token position of one sequence in a pass. It writes the KV entry at `position`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The sequence.
    pub slot: Slot,
    /// Absolute position, from 0.
    pub position: u32,
    /// Prompt or generated.
    pub class: RowClass,
    /// What is fed.
    pub input: Input,
    /// What is wanted back.
    pub outputs: Outputs,
    /// When to flag the row's result as suspect.
    pub gate: Option<Gate>,
    /// Adapter to add.
    pub adapter: Option<Adapter>,
}

impl Row {
    /// Whether sums over all logits are needed: for statistics, log-probabilities, or a gate on anything
    /// but the margin.
    pub fn needs_sums(&self) -> bool {
        let gated = self.gate.is_some_and(|gate| gate.detector.reads_sums());
        self.outputs.statistics || self.outputs.logprobs.is_some() || gated
    }
}

/// Pages of one sequence: entry `i` holds positions `i * page_tokens ..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageTable {
    /// The sequence.
    pub slot: Slot,
    /// Its pages in order of position.
    pub pages: Arc<[PageId]>,
}

/// A copy of a whole KV page at every layer, done before any row of the pass (copy on write).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageCopy {
    /// Page to read.
    pub from: PageId,
    /// Page to write.
    pub to: PageId,
}

/// One run of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Which weights.
    pub weights: Weights,
    /// Which layers, from the first up to the end, not included.
    pub layers: Range<u16>,
    /// Page copies to do first, in this order.
    pub copies: Vec<PageCopy>,
    /// Page table of every slot that has a row here.
    pub tables: Vec<PageTable>,
    /// Rows; those of one slot are neighbours and ascend in position. A row attends to the entries
    /// 0 ..= its own position, entries written by this same pass included.
    pub rows: Vec<Row>,
}

/// Log-probability of one token under the raw distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: Token,
    /// ln p, ≤ 0.
    pub logprob: f32,
    /// 1 for the most probable token.
    pub rank: u32,
}

impl Eq for TokenLogprob {}

impl std::hash::Hash for TokenLogprob {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.token, self.logprob.to_bits(), self.rank).hash(state);
    }
}

/// Answer to one [`Row`].
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    /// The chosen token; `None` if none was wanted or the row was not finite.
    pub token: Option<Token>,
    /// Second best in the same ranking, if there was one.
    pub runner_up: Option<Token>,
    /// What was measured; fields that were not wanted are 0.
    pub statistics: Statistics,
    /// The gate's verdict; a row that is not finite is suspect even without a gate.
    pub suspect: bool,
    /// The chosen token first, then the best ones in order of rank; empty if not wanted.
    pub logprobs: Arc<[TokenLogprob]>,
    /// Raw logits, length vocabulary, if wanted.
    pub logits: Option<Vec<f32>>,
    /// Residual streams in ascending order, hidden size each; empty if none is wanted.
    pub taps: Vec<f32>,
}

impl RowResult {
    /// The answer to a row that wants nothing.
    pub fn empty() -> Self {
        Self {
            token: None,
            runner_up: None,
            statistics: Statistics::UNMEASURED,
            suspect: false,
            logprobs: Arc::default(),
            logits: None,
            taps: Vec::new(),
        }
    }
}

/// Names a submitted pass until it is waited for.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What an executor can hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Decoder layers.
    pub layers: u16,
    /// Sequences that can run at once.
    pub slots: u32,
    /// Rows in a pass, at most.
    pub rows: u32,
    /// KV pages.
    pub pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// Longest sequence, in tokens.
    pub positions: u32,
}

/// Why a pass could not run. The engine fails the sequences of that pass and goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// The pass broke a rule of this module; a defect of the engine.
    #[error("invalid pass: {0}")]
    InvalidPass(String),
    /// The device failed; later passes will fail too.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// This pass failed, others may run.
    #[error("pass failed: {0}")]
    PassFailed(String),
}

/// A device with the weights of one model.
///
/// Passes run in the order of submission. The bits of a row's result depend only on the weights,
/// their format, the executor, and the row's class and inputs: never on the other rows of the pass.
pub trait Executor {
    /// What it can hold; constant.
    fn limits(&self) -> &Limits;

    /// Numeric identity: weights format, activation type, executor, instruction set.
    fn identity(&self, weights: Weights) -> String;

    /// Queues a pass.
    ///
    /// # Errors
    /// [`ExecutorError::InvalidPass`] when the pass breaks a rule; nothing was queued then.
    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError>;

    /// Waits for a pass; one result for each row, in order.
    ///
    /// # Errors
    /// The pass failed; its rows' KV entries are undefined.
    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError>;
}
