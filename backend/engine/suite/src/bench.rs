//! An executor on the bench: passes over it in few words, and results compared bit for bit.

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rewind_engine::sampling::{History, Sampling};
use rewind_engine::{
    Choose, Executor, Input, Limits, Outputs, PageId, PageTable, Pass, Row, RowClass, RowResult,
    Slot, Ticket, Token, Weights,
};
use rewind_monitor::{Detector, Fused};

use crate::Machine;
use crate::model::TinyModel;

/// What an executor must have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences that run at once.
    pub slots: usize,
    /// Rows of a pass.
    pub rows: usize,
    /// Longest sequence, in tokens.
    pub positions: usize,
}

impl Sizes {
    /// KV pages of this many positions that let every slot hold a sequence of full length.
    pub fn pages(&self, page_tokens: usize) -> usize {
        self.slots * self.positions.div_ceil(page_tokens)
    }
}

/// Every detector, the fused one with weights of both signs.
pub const DETECTORS: [Detector; 4] = [
    Detector::Entropy,
    Detector::Top1,
    Detector::Margin,
    Detector::Fused(Fused {
        bias: -0.7,
        entropy: 0.31,
        varentropy: -0.17,
        ln_top1: -0.53,
        margin: -1.9,
    }),
];

/// Sequences that the cases run beside each other.
pub const SLOTS: usize = 8;

/// An executor on the bench.
pub struct Bench<E> {
    /// It.
    pub executor: E,
    /// What it can hold.
    pub limits: Limits,
}

impl<E: Executor> Bench<E> {
    /// An executor with room for the longest prompt of the machine's scale, in one pass, and for as
    /// many rows as the largest batch has.
    ///
    /// # Errors
    /// The machine cannot make it.
    pub fn new<M: Machine<Executor = E>>(machine: &M, model: &TinyModel) -> Result<Self> {
        let prompt = machine.scale().prompt;
        let sizes = Sizes { slots: SLOTS, rows: prompt.max(64) + 10, positions: prompt + 110 };
        Self::sized(machine, model, sizes)
    }

    /// An executor of these sizes.
    ///
    /// # Errors
    /// The machine cannot make it.
    pub fn sized<M: Machine<Executor = E>>(
        machine: &M,
        model: &TinyModel,
        sizes: Sizes,
    ) -> Result<Self> {
        Ok(Self::of(machine.make(model, sizes).context("the executor cannot be made")?))
    }

    /// Puts an executor on the bench.
    pub fn of(executor: E) -> Self {
        Self { limits: executor.limits().clone(), executor }
    }

    /// Pages of a slot, disjoint from those of others, in no particular order.
    pub fn table(&self, slot: usize) -> PageTable {
        let Limits { slots, positions, page_tokens, .. } = self.limits;
        let pages = positions.div_ceil(page_tokens);
        // A stride that shares no factor with the count visits every page once.
        let stride = (1..).map(|i| 6 * i + 1).find(|&stride| coprime(stride, pages)).unwrap_or(1);
        let page = |i: u32| PageId((i * stride + pages / 2) % pages * slots + slot as u32);
        PageTable { slot: Slot(slot as u32), pages: (0..pages).map(page).collect() }
    }

    /// A pass over all layers, with the tables of its rows' slots.
    pub fn pass(&self, weights: Weights, rows: Vec<Row>) -> Pass {
        let mut slots: Vec<_> = rows.iter().map(|row| row.slot.0 as usize).collect();
        slots.dedup();
        let tables = slots.into_iter().map(|slot| self.table(slot)).collect();
        Pass { weights, layers: 0..self.limits.layers, copies: Vec::new(), tables, rows }
    }

    /// Queues a pass.
    ///
    /// # Errors
    /// The executor refuses it.
    pub fn submit(&mut self, weights: Weights, rows: Vec<Row>) -> Result<Ticket> {
        let pass = self.pass(weights, rows);
        Ok(self.executor.submit(pass)?)
    }

    /// Waits for a pass; a result for each row.
    ///
    /// # Errors
    /// It failed.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>> {
        Ok(self.executor.wait(ticket)?)
    }

    /// Runs a pass; a result for each row.
    ///
    /// # Errors
    /// It is refused or fails.
    pub fn run(&mut self, weights: Weights, rows: Vec<Row>) -> Result<Vec<RowResult>> {
        let count = rows.len();
        let ticket = self.submit(weights, rows)?;
        let results = self.wait(ticket)?;
        ensure!(results.len() == count, "{} results for {count} rows", results.len());
        Ok(results)
    }

    /// Runs one row.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn one(&mut self, weights: Weights, row: Row) -> Result<RowResult> {
        self.run(weights, vec![row])?.pop().context("one row has one result")
    }

    /// Runs a prompt from its start, one pass for each chunk; everything that its rows can answer.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn feed(
        &mut self,
        weights: Weights,
        slot: usize,
        tokens: &[Token],
        chunk: usize,
    ) -> Result<Vec<RowResult>> {
        let rows: Vec<_> = prompt_rows(slot, tokens, everything);
        let mut results = Vec::new();
        for rows in rows.chunks(chunk) {
            results.extend(self.run(weights, rows.to_vec())?);
        }
        Ok(results)
    }

    /// Writes a prompt into the cache and asks for nothing.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn prefill(&mut self, weights: Weights, slot: usize, tokens: &[Token]) -> Result<()> {
        for rows in
            prompt_rows(slot, tokens, |_| Outputs::default()).chunks(self.limits.rows as usize)
        {
            self.run(weights, rows.to_vec())?;
        }
        Ok(())
    }
}

fn coprime(mut a: u32, mut b: u32) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// A greedy choice of the token after `position`.
pub fn greedy(position: usize) -> Choose {
    Choose {
        sampling: Arc::new(Sampling::GREEDY),
        history: History::default(),
        banned: Arc::new([]),
        mask: None,
        position: position as u32 + 1,
    }
}

/// Everything that a row can answer.
pub fn everything(position: usize) -> Outputs {
    Outputs { logits: true, taps: 1..2, ..decisions(position) }
}

/// Everything that a decode step can ask for.
pub fn decisions(position: usize) -> Outputs {
    Outputs {
        choose: Some(greedy(position)),
        statistics: true,
        logprobs: Some(3),
        logits: false,
        taps: 0..0,
    }
}

/// A row of a prompt.
pub fn row(slot: usize, position: usize, token: Token, outputs: Outputs) -> Row {
    Row {
        slot: Slot(slot as u32),
        position: position as u32,
        class: RowClass::Prompt,
        input: Input::Token(token),
        outputs,
        gate: None,
        adapter: None,
    }
}

/// A row of a decode step or of a verification.
pub fn generated(slot: usize, position: usize, token: Token, outputs: Outputs) -> Row {
    Row { class: RowClass::Generated, ..row(slot, position, token, outputs) }
}

/// All rows of a prompt.
pub fn prompt_rows(slot: usize, tokens: &[Token], outputs: impl Fn(usize) -> Outputs) -> Vec<Row> {
    let row = |(position, &token)| row(slot, position, token, outputs(position));
    tokens.iter().enumerate().map(row).collect()
}

/// A random prompt; a longer one starts with the shorter.
pub fn prompt(seed: usize, len: usize, vocabulary: usize) -> Vec<Token> {
    (0..len).map(|i| ((seed * 7919 + i * 104_729 + i * i * 31) % vocabulary) as Token).collect()
}

/// The logits of a row that was asked for them.
///
/// # Errors
/// There are none.
pub fn logits_of(result: &RowResult) -> Result<&[f32]> {
    result.logits.as_deref().context("a row that wanted logits came without")
}

/// Compares all bits of results.
///
/// # Errors
/// What differs, starting with `what`.
pub fn same(expected: &[RowResult], found: &[RowResult], what: &str) -> Result<()> {
    ensure!(expected.len() == found.len(), "{what}: {} rows, not {}", found.len(), expected.len());
    for (row, (expected, found)) in expected.iter().zip(found).enumerate() {
        same_row(expected, found).with_context(|| format!("{what}, row {row}"))?;
    }
    Ok(())
}

/// Compares all bits of two results.
///
/// # Errors
/// What differs.
pub fn same_row(expected: &RowResult, found: &RowResult) -> Result<()> {
    // Logits first: where they differ, so will the rest.
    same_numbers("logit", expected.logits.as_deref(), found.logits.as_deref())?;
    same_numbers("tap", Some(&expected.taps), Some(&found.taps))?;
    same_value("token", &expected.token, &found.token)?;
    same_value("runner-up", &expected.runner_up, &found.runner_up)?;
    same_value("statistics", &expected.statistics, &found.statistics)?;
    same_value("suspect", &expected.suspect, &found.suspect)?;
    let bits = |result: &RowResult| -> Vec<_> {
        result.logprobs.iter().map(|l| (l.token, l.logprob.to_bits(), l.rank)).collect()
    };
    if bits(expected) != bits(found) {
        bail!("log-probabilities are {:?}, not {:?}", found.logprobs, expected.logprobs);
    }
    Ok(())
}

fn same_value<T: PartialEq + Debug>(what: &str, expected: &T, found: &T) -> Result<()> {
    ensure!(expected == found, "{what} is {found:?}, not {expected:?}");
    Ok(())
}

fn same_numbers(what: &str, expected: Option<&[f32]>, found: Option<&[f32]>) -> Result<()> {
    let (expected, found) = (expected.unwrap_or(&[]), found.unwrap_or(&[]));
    ensure!(expected.len() == found.len(), "{} {what}s, not {}", found.len(), expected.len());
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(i) = expected.iter().zip(found).position(differs) {
        let count = expected.iter().zip(found).filter(|&pair| differs(pair)).count();
        bail!("{what} {i} is {:e}, not {:e} ({count} differ)", found[i], expected[i]);
    }
    Ok(())
}
