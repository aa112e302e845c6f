//! One pass: from tokens to answers, through all layers, for any mixture of rows.
//!
//! Every worker runs the whole pass, phase by phase, with a barrier between two. Products deal their
//! output columns, attention its heads, everything else its rows. A single row is normed and quantized
//! by every worker for itself, which is quicker than to wait for one that does it for all. Who
//! computes what changes no bits, so the dealing is free to follow sizes.
//!
//! # Phases
//!
//! What is written in a phase is dealt, so that each worker has its own part, and is not read in it
//! beyond that part:
//!
//! | phase | reads | writes |
//! | --- | --- | --- |
//! | embedding | weights | stream, angles: rows |
//! | norm, if there are several rows | stream | normed: rows |
//! | queries, keys, values | normed | qkv: columns |
//! | heads | angles | qkv: heads; cache: heads |
//! | attention | qkv, cache | attended: heads |
//! | quantization, if there are several rows | attended | its codes: rows |
//! | output | attended | stream: columns |
//! | norm, if there are several rows | stream | normed: rows |
//! | gate and up | normed | gate, its codes, up: columns |
//! | down | gate | stream: columns |
//!
//! and at the end, for some rows at a time, final norm, LM head (logits and tiles: columns) and answers
//! (rows). Keys and values of all rows are written before any row of that layer attends: so a
//! verification row sees the entries that its own pass has just overwritten.

mod head;
mod layer;

use std::ops::Range;

use rewind_checkpoint::ModelSpec;
use rewind_engine::sampling::Scratch;
use rewind_engine::{PageTable, Row, RowResult};

use crate::arch::Isa;
use crate::kernels::{Input, Norm, Quantize};
use crate::kv::{Cache, SharedCache};
use crate::model::Weights;
use crate::pool::{Panicked, Poisoned, Pool, Worker, share};
use crate::rows::{ActivationBlock, Quantized, Rows};
use crate::shared::SharedRows;
use crate::statistics::{TILE, Tile};

/// What a pass computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) weights: &'a Weights,
    /// What is wanted of each row.
    pub(crate) rows: &'a [Row],
    /// Where each row is.
    pub(crate) positions: &'a [Position],
    pub(crate) tables: &'a [PageTable],
    /// Rows that need the LM head, ascending.
    pub(crate) with_head: &'a [usize],
}

/// A row of a pass, as the model sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) token: usize,
    pub(crate) position: usize,
    /// Index of its sequence's table, which has enough pages for `position`.
    pub(crate) table: usize,
}

/// Buffers that passes run with.
#[derive(Debug)]
pub(crate) struct Machine {
    isa: Isa,
    frequencies: Vec<f32>,
    /// The residual stream.
    stream: Rows,
    normed: Rows,
    normed_codes: Quantized,
    qkv: Rows,
    attended: Rows,
    attended_codes: Quantized,
    gate: Rows,
    gate_codes: Quantized,
    up: Rows,
    /// Cosines and sines of the rows' angles, half a head to a row.
    cos: Rows,
    sin: Rows,
    logits: Rows,
    /// `[row][tile]`.
    tiles: Vec<Tile>,
    /// One for each worker.
    own: Vec<Own>,
}

/// What a worker has for itself.
#[derive(Debug)]
struct Own {
    normed: Rows,
    normed_codes: Quantized,
    attended_codes: Quantized,
    scratch: Scratch,
}

/// A pass that runs, as its workers share it.
#[derive(Debug)]
struct Pass<'a> {
    isa: Isa,
    task: Task<'a>,
    /// Entries that the rows see, all together.
    seen: usize,
    frequencies: &'a [f32],
    stream: SharedRows<'a, f32>,
    normed: SharedRows<'a, f32>,
    normed_codes: SharedRows<'a, ActivationBlock>,
    qkv: SharedRows<'a, f32>,
    attended: SharedRows<'a, f32>,
    attended_codes: SharedRows<'a, ActivationBlock>,
    gate: SharedRows<'a, f32>,
    gate_codes: SharedRows<'a, ActivationBlock>,
    up: SharedRows<'a, f32>,
    cos: SharedRows<'a, f32>,
    sin: SharedRows<'a, f32>,
    logits: SharedRows<'a, f32>,
    tiles: SharedRows<'a, Tile>,
    cache: SharedCache<'a>,
    results: SharedRows<'a, RowResult>,
}

/// Rows that go through the LM head at once; bounds the memory for logits.
const HEAD_ROWS: usize = 32;

/// Multiplications that are not worth dealing.
const SMALL_PRODUCT: usize = 1 << 15;

/// Output columns are dealt in units of this: whole panels of any width, and whole blocks of what
/// the next product reads.
const COLUMN_UNIT: usize = 32;

impl Machine {
    /// Buffers for passes of up to `rows` rows.
    pub(crate) fn new(spec: &ModelSpec, isa: Isa, threads: usize, rows: usize) -> Self {
        let (heads, half) = (spec.heads * spec.head_dim, spec.head_dim / 2);
        let qkv = heads + 2 * spec.kv_heads * spec.head_dim;
        let head_rows = HEAD_ROWS.min(rows);
        let own = || Own {
            normed: Rows::new(1, spec.hidden_size),
            normed_codes: Quantized::new(1, spec.hidden_size),
            attended_codes: Quantized::new(1, heads),
            scratch: Scratch::default(),
        };
        Self {
            isa,
            frequencies: spec.rope.frequencies(spec.head_dim),
            stream: Rows::new(rows, spec.hidden_size),
            normed: Rows::new(rows, spec.hidden_size),
            normed_codes: Quantized::new(rows, spec.hidden_size),
            qkv: Rows::new(rows, qkv),
            attended: Rows::new(rows, heads),
            attended_codes: Quantized::new(rows, heads),
            gate: Rows::new(rows, spec.intermediate_size),
            gate_codes: Quantized::new(rows, spec.intermediate_size),
            up: Rows::new(rows, spec.intermediate_size),
            cos: Rows::new(rows, half),
            sin: Rows::new(rows, half),
            logits: Rows::new(head_rows, spec.vocab_size),
            tiles: vec![Tile::EMPTY; spec.vocab_size.div_ceil(TILE) * head_rows],
            own: (0..threads).map(|_| own()).collect(),
        }
    }

    /// Memory of the buffers, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let own = self.own.iter();
        let rows = [
            &self.stream,
            &self.normed,
            &self.qkv,
            &self.attended,
            &self.gate,
            &self.up,
            &self.cos,
            &self.sin,
            &self.logits,
        ];
        let codes = [&self.normed_codes, &self.attended_codes, &self.gate_codes];
        rows.into_iter().chain(own.clone().map(|own| &own.normed)).map(Rows::bytes).sum::<usize>()
            + codes
                .into_iter()
                .chain(own.flat_map(|own| [&own.normed_codes, &own.attended_codes]))
                .map(Quantized::bytes)
                .sum::<usize>()
            + size_of_val::<[Tile]>(&self.tiles)
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn threads(&self) -> usize {
        self.own.len()
    }

    /// Runs a pass and writes an answer for each row to `results`.
    ///
    /// # Errors
    /// A worker panicked; the entries of these rows and the answers mean nothing then.
    pub(crate) fn run(
        &mut self,
        pool: &mut Pool,
        task: Task<'_>,
        cache: &mut Cache,
        results: &mut [RowResult],
    ) -> Result<(), Panicked> {
        let tiles = task.spec.vocab_size.div_ceil(TILE);
        let pass = Pass {
            isa: self.isa,
            task,
            seen: task.positions.iter().map(|row| row.position + 1).sum(),
            frequencies: &self.frequencies,
            stream: self.stream.share(),
            normed: self.normed.share(),
            normed_codes: self.normed_codes.share(),
            qkv: self.qkv.share(),
            attended: self.attended.share(),
            attended_codes: self.attended_codes.share(),
            gate: self.gate.share(),
            gate_codes: self.gate_codes.share(),
            up: self.up.share(),
            cos: self.cos.share(),
            sin: self.sin.share(),
            logits: self.logits.share(),
            tiles: SharedRows::new(&mut self.tiles, tiles, tiles),
            cache: cache.share(),
            results: SharedRows::new(results, 1, 1),
        };
        pool.run(&mut self.own, |worker, own| pass.run(worker, own))
    }
}

impl Pass<'_> {
    fn run(&self, worker: &mut Worker<'_>, own: &mut Own) -> Result<(), Poisoned> {
        self.embed(worker);
        worker.barrier()?;
        self.tap(worker, 0);
        for (number, layer) in self.task.weights.layers.iter().enumerate() {
            self.attention(worker, own, number, layer)?;
            self.feed_forward(worker, own, layer)?;
            self.tap(worker, number + 1);
        }
        self.head(worker, own)
    }

    fn count(&self) -> usize {
        self.task.rows.len()
    }

    fn embed(&self, worker: &Worker<'_>) {
        for i in worker.share(self.count()) {
            let row = self.task.positions[i];
            // SAFETY: rows are dealt, and nothing is read.
            let (stream, cos, sin) = unsafe {
                let stream = self.stream.row_mut(worker, i);
                (stream, self.cos.row_mut(worker, i), self.sin.row_mut(worker, i))
            };
            self.task.weights.embedding.row_values(row.token, stream);
            for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
                // In f64, so that far positions keep their fraction of a turn.
                let (s, c) = (row.position as f64 * f64::from(*frequency)).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }

    /// Copies the stream of rows that want it after this many layers.
    fn tap(&self, worker: &Worker<'_>, layers: usize) {
        if worker.number() > 0 {
            return;
        }
        for (i, row) in self.task.rows.iter().enumerate() {
            if row.outputs.taps.contains(&(layers as u16)) {
                // SAFETY: until the barrier of the next phase, which only reads the stream; and worker 0
                // alone writes answers before the LM head.
                let (stream, result) = unsafe {
                    (self.stream.part(worker, i..i + 1), self.results.row_mut(worker, i))
                };
                result[0].taps.extend(&stream.row(0)[..self.task.spec.hidden_size]);
            }
        }
    }

    /// Norms `count` rows of the residual stream, those that `row` names, and quantizes the results if
    /// an integer matrix reads them. [`normed`](Self::normed) has them then.
    fn norm(
        &self,
        worker: &mut Worker<'_>,
        own: &mut Own,
        (count, row): (usize, impl Fn(usize) -> usize),
        weight: &[f32],
        quantize: bool,
    ) -> Result<(), Poisoned> {
        let norm = |i: usize, out: &mut [f32], codes: &mut [ActivationBlock]| {
            let from = row(i);
            // SAFETY: nobody writes to the stream in this phase.
            let stream = unsafe { self.stream.part(worker, from..from + 1) };
            let (x, epsilon) = (stream.row(0), self.task.spec.rms_epsilon);
            self.isa.run(Norm { x, weight, epsilon, out: &mut out[..weight.len()] });
            if quantize {
                self.isa.run(Quantize { x: out, out: codes });
            }
        };
        if count == 1 {
            norm(0, own.normed.row_mut(0), own.normed_codes.row_mut(0));
            return Ok(());
        }
        for i in worker.share(count) {
            // SAFETY: rows are dealt, and not read in this phase.
            let (out, codes) =
                unsafe { (self.normed.row_mut(worker, i), self.normed_codes.row_mut(worker, i)) };
            norm(i, out, codes);
        }
        worker.barrier()
    }

    /// The rows that [`norm`](Self::norm) made.
    fn normed<'w>(&'w self, worker: &'w Worker<'_>, own: &'w Own, count: usize) -> Input<'w> {
        if count == 1 {
            return Input { rows: own.normed.block(), quantized: own.normed_codes.block() };
        }
        // SAFETY: nobody writes to them in the phase after a norm, where this is called.
        unsafe {
            Input {
                rows: self.normed.part(worker, 0..count),
                quantized: self.normed_codes.part(worker, 0..count),
            }
        }
    }
}

/// The output columns of a product that a worker computes.
fn columns(worker: &Worker<'_>, rows: usize, multiplications: usize) -> Range<usize> {
    let workers = if multiplications < SMALL_PRODUCT { 1 } else { worker.workers() };
    if worker.number() >= workers {
        return rows..rows;
    }
    let units = share(rows.div_ceil(COLUMN_UNIT), workers, worker.number());
    (units.start * COLUMN_UNIT).min(rows)..(units.end * COLUMN_UNIT).min(rows)
}
