//! One pass: from tokens to logits, through all layers, for any mixture of rows.
//!
//! A pass is a sequence of phases with a barrier after each. Products deal their output columns to
//! the workers, attention its (row, head) pairs, everything else its rows, or runs on the calling
//! thread when that is quicker than waking the others. Who computes what changes no bits, so the
//! dealing is free to follow sizes.
//!
//! Keys and values of all rows are written before any row of that layer attends: so a verification
//! row sees the entries that its own pass has just overwritten.

use std::ops::Range;

use rewind_checkpoint::ModelSpec;
use rewind_engine::PageId;

use crate::arch::Isa;
use crate::attention::Attend;
use crate::kernels::{Heads, Input, Norm, Product, Put, Quantize, SwiGlu};
use crate::kv::Cache;
use crate::matrix::Matrix;
use crate::model::Weights;
use crate::pool::{Panicked, Pool, share};
use crate::rows::{ActivationBlock, Quantized, Rows};
use crate::statistics::{Measure, TILE, Tile};

/// A row of a pass, as the model sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position<'a> {
    pub(crate) token: usize,
    pub(crate) position: usize,
    /// Pages of the row's sequence, enough for `position`.
    pub(crate) pages: &'a [PageId],
}

/// Buffers that passes run with.
#[derive(Debug)]
pub(crate) struct Machine {
    isa: Isa,
    /// Of the pool that passes run on.
    threads: usize,
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
    cos: Vec<f32>,
    sin: Vec<f32>,
    head_rows: Rows,
    head_codes: Quantized,
    logits: Rows,
    /// Tile by tile, [`HEAD_ROWS`] for each.
    tiles: Vec<Tile>,
}

/// Rows that go through the LM head at once; bounds the memory for logits.
pub(crate) const HEAD_ROWS: usize = 32;

/// Multiplications below which a product is not worth a barrier.
const SMALL_PRODUCT: usize = 1 << 15;

/// Rows below which row-wise work is not worth a barrier.
const FEW_ROWS: usize = 4;

/// Output columns are dealt in units of this: whole panels of any width, and whole blocks of what
/// the next product reads.
const COLUMN_UNIT: usize = 32;

impl Machine {
    /// Buffers for passes of up to `rows` rows.
    pub(crate) fn new(spec: &ModelSpec, isa: Isa, threads: usize, rows: usize) -> Self {
        let (heads, half) = (spec.heads * spec.head_dim, spec.head_dim / 2);
        let qkv = heads + 2 * spec.kv_heads * spec.head_dim;
        let head_rows = HEAD_ROWS.min(rows);
        Self {
            isa,
            frequencies: spec.rope.frequencies(spec.head_dim),
            threads,
            stream: Rows::new(rows, spec.hidden_size),
            normed: Rows::new(rows, spec.hidden_size),
            normed_codes: Quantized::new(rows, spec.hidden_size),
            qkv: Rows::new(rows, qkv),
            attended: Rows::new(rows, heads),
            attended_codes: Quantized::new(rows, heads),
            gate: Rows::new(rows, spec.intermediate_size),
            gate_codes: Quantized::new(rows, spec.intermediate_size),
            up: Rows::new(rows, spec.intermediate_size),
            cos: vec![0.0; rows * half],
            sin: vec![0.0; rows * half],
            head_rows: Rows::new(head_rows, spec.hidden_size),
            head_codes: Quantized::new(head_rows, spec.hidden_size),
            logits: Rows::new(head_rows, spec.vocab_size),
            tiles: vec![Tile::EMPTY; spec.vocab_size.div_ceil(TILE) * head_rows],
        }
    }

    /// Memory of the buffers, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let rows = [
            &self.stream,
            &self.normed,
            &self.qkv,
            &self.attended,
            &self.gate,
            &self.up,
            &self.head_rows,
            &self.logits,
        ];
        let codes = [&self.normed_codes, &self.attended_codes, &self.gate_codes, &self.head_codes];
        rows.map(Rows::bytes).iter().sum::<usize>()
            + codes.map(Quantized::bytes).iter().sum::<usize>()
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs all layers; the residual stream stays for [`head`](Self::head).
    ///
    /// `tap(layers, row, stream)` is called for each row before the first layer and after each.
    ///
    /// # Errors
    /// A worker panicked; the entries of these rows are undefined then.
    pub(crate) fn layers(
        &mut self,
        pool: &mut Pool,
        spec: &ModelSpec,
        weights: &Weights,
        cache: &mut Cache,
        rows: &[Position<'_>],
        mut tap: impl FnMut(usize, usize, &[f32]),
    ) -> Result<(), Panicked> {
        let count = rows.len();
        for (row, out) in rows.iter().zip(self.stream.iter_mut(count)) {
            weights.embedding.row_values(row.token, out);
        }
        self.angles(rows);
        let hidden = spec.hidden_size;
        let mut tap_all = |layers: usize, stream: &Rows| {
            (0..count).for_each(|row| tap(layers, row, &stream.row(row)[..hidden]));
        };
        tap_all(0, &self.stream);

        for (number, layer) in weights.layers.iter().enumerate() {
            self.attention(pool, spec, layer, number, cache, rows)?;
            self.feed_forward(pool, spec, layer, count)?;
            tap_all(number + 1, &self.stream);
        }
        Ok(())
    }

    fn attention(
        &mut self,
        pool: &mut Pool,
        spec: &ModelSpec,
        layer: &crate::model::Layer,
        number: usize,
        cache: &mut Cache,
        rows: &[Position<'_>],
    ) -> Result<(), Panicked> {
        let (count, isa) = (rows.len(), self.isa);
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let vectors = &*layer.vectors;
        self.norm(pool, &vectors.attention_norm, spec.rms_epsilon, layer.qkv.is_integer(), count)?;
        let input = Input { rows: &self.normed, quantized: &self.normed_codes, first: 0 };
        product(pool, isa, &layer.qkv, input, Put::Store, count, &mut self.qkv)?;

        let half = spec.head_dim / 2;
        let angles = self.cos.chunks(half).zip(self.sin.chunks(half));
        let items = self.qkv.iter_mut(count).zip(angles);
        each_row(pool, count, items, |(row, (cos, sin))| {
            isa.run(Heads {
                row,
                bias: &vectors.qkv_bias,
                query_norm: &vectors.query_norm,
                key_norm: &vectors.key_norm,
                epsilon: spec.rms_epsilon,
                queries,
                keys,
                cos,
                sin,
            });
        })?;

        let page_tokens = cache.shape().page_tokens;
        for (i, row) in rows.iter().enumerate() {
            let (key, value) = self.qkv.row(i)[queries..][..2 * keys].split_at(keys);
            let page = row.pages[row.position / page_tokens];
            cache.write(page, number, row.position % page_tokens, key, value);
        }

        self.attend(pool, spec, number, cache, rows)?;
        if layer.output.is_integer() {
            let items = self.attended_codes.iter_mut(count).enumerate();
            let attended = &self.attended;
            each_row(pool, count, items, |(i, out)| {
                isa.run(Quantize { x: attended.row(i), out });
            })?;
        }
        let input = Input { rows: &self.attended, quantized: &self.attended_codes, first: 0 };
        product(pool, isa, &layer.output, input, Put::Add, count, &mut self.stream)
    }

    fn attend(
        &mut self,
        pool: &mut Pool,
        spec: &ModelSpec,
        layer: usize,
        cache: &Cache,
        rows: &[Position<'_>],
    ) -> Result<(), Panicked> {
        let (isa, count, workers) = (self.isa, rows.len(), pool.threads());
        let group = spec.heads / spec.kv_heads;
        let seen: usize = rows.iter().map(|row| row.position + 1).sum();
        let small = seen * spec.heads * spec.head_dim * 2 < SMALL_PRODUCT;
        let workers = if small { 1 } else { workers };
        // Heads that share keys stay together, unless that leaves workers idle.
        let pairs = count * spec.kv_heads;
        let even = pairs.is_multiple_of(workers) || pairs >= 4 * workers;
        let together = if even { group } else { 1 };
        let width = together * spec.head_dim;

        let qkv = &self.qkv;
        let items = self.attended.iter_mut(count).enumerate().flat_map(|(i, out)| {
            out.chunks_mut(width).enumerate().map(move |(unit, out)| (i, unit, out))
        });
        // Round-robin: later rows of a prompt see more.
        let mut parts: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        items.enumerate().for_each(|(number, item)| parts[number % workers].push(item));
        pool.each(parts, |items| {
            for (i, unit, out) in items {
                isa.run(Attend {
                    cache,
                    layer,
                    head: unit * together / group,
                    pages: rows[i].pages,
                    position: rows[i].position,
                    queries: &qkv.row(i)[unit * width..][..width],
                    out,
                });
            }
        })
    }

    fn feed_forward(
        &mut self,
        pool: &mut Pool,
        spec: &ModelSpec,
        layer: &crate::model::Layer,
        count: usize,
    ) -> Result<(), Panicked> {
        let isa = self.isa;
        let integer = layer.gate.is_integer() || layer.up.is_integer();
        self.norm(pool, &layer.vectors.feed_forward_norm, spec.rms_epsilon, integer, count)?;
        let input = Input { rows: &self.normed, quantized: &self.normed_codes, first: 0 };
        let multiplications = 2 * count * layer.gate.rows() * layer.gate.cols();
        let ranges = columns(layer.gate.rows(), multiplications, pool.threads());
        let gates = self.gate.columns_mut(count, &ranges);
        let ups = self.up.columns_mut(count, &ranges);
        let codes = self.gate_codes.columns_mut(count, &ranges);
        let quantize = layer.down.is_integer();
        let parts = ranges.into_iter().zip(gates).zip(ups).zip(codes);
        pool.each(parts.collect(), |(((range, mut gate), mut up), codes)| {
            for (weights, out) in [(&layer.gate, &mut gate), (&layer.up, &mut up)] {
                let rows = range.clone();
                Product { weights, rows, input, put: Put::Store, out }.run(isa);
            }
            for ((gate, up), out) in gate.into_iter().zip(up).zip(codes) {
                isa.run(SwiGlu { gate: &mut *gate, up });
                if quantize {
                    isa.run(Quantize { x: gate, out });
                }
            }
        })?;
        let input = Input { rows: &self.gate, quantized: &self.gate_codes, first: 0 };
        product(pool, isa, &layer.down, input, Put::Add, count, &mut self.stream)
    }

    /// Norms the residual stream, and quantizes the result if an integer matrix reads it.
    fn norm(
        &mut self,
        pool: &mut Pool,
        weight: &[f32],
        epsilon: f32,
        quantize: bool,
        count: usize,
    ) -> Result<(), Panicked> {
        let (isa, stream) = (self.isa, &self.stream);
        let items =
            self.normed.padded_mut(count).zip(self.normed_codes.iter_mut(count)).enumerate();
        each_row(pool, count, items, |(i, (normed, codes))| {
            norm_row(isa, stream.row(i), weight, epsilon, normed, quantize.then_some(codes));
        })
    }

    /// Runs the LM head for up to [`HEAD_ROWS`] rows of the last pass.
    ///
    /// `sums[i]` says whether row i's statistics are wanted.
    ///
    /// # Errors
    /// A worker panicked.
    pub(crate) fn head(
        &mut self,
        pool: &mut Pool,
        spec: &ModelSpec,
        weights: &Weights,
        rows: &[usize],
        sums: &[bool],
    ) -> Result<(), Panicked> {
        let (isa, count, head) = (self.isa, rows.len(), &*weights.head);
        let stream = &self.stream;
        let items = self.head_rows.padded_mut(count).zip(self.head_codes.iter_mut(count)).zip(rows);
        each_row(pool, count, items, |((normed, codes), &row)| {
            let codes = head.is_integer().then_some(codes);
            let weight = &weights.final_norm;
            norm_row(isa, stream.row(row), weight, spec.rms_epsilon, normed, codes);
        })?;

        let input = Input { rows: &self.head_rows, quantized: &self.head_codes, first: 0 };
        let tile_count = spec.vocab_size.div_ceil(TILE);
        let workers = pool.threads();
        let shares: Vec<_> = (0..workers).map(|w| share(tile_count, workers, w)).collect();
        let ranges: Vec<_> = shares
            .iter()
            .map(|tiles| tiles.start * TILE..(tiles.end * TILE).min(spec.vocab_size))
            .collect();
        let mut rest = &mut self.tiles[..tile_count * count];
        let tiles = shares.iter().map(|tiles| {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(tiles.len() * count);
            rest = tail;
            own
        });
        let logits = self.logits.columns_mut(count, &ranges);
        let parts = ranges.iter().zip(logits).zip(tiles);
        pool.each(parts.collect(), |((range, mut logits), tiles)| {
            for (number, tiles) in tiles.chunks_mut(count).enumerate() {
                let first = range.start + number * TILE;
                let rows = first..(first + TILE).min(range.end);
                // What is behind this tile stays for the next round.
                let mut out = Vec::with_capacity(count);
                for row in &mut logits {
                    let (tile, tail) = std::mem::take(row).split_at_mut(rows.len());
                    out.push(tile);
                    *row = tail;
                }
                let put = Put::Store;
                Product { weights: head, rows, input, put, out: &mut out }.run(isa);
                for ((tile, logits), &sums) in tiles.iter_mut().zip(&out).zip(sums) {
                    *tile = isa.run(Measure { logits, sums });
                }
            }
        })
    }

    /// Gives the logits and tiles of each row of the last [`head`](Self::head) to `job`, together with
    /// an item for it, and collects what it returns. Rows are dealt to the workers if `spread`.
    ///
    /// # Errors
    /// A worker panicked.
    pub(crate) fn conclude<W: Send, R: Send>(
        &mut self,
        pool: &mut Pool,
        count: usize,
        spread: bool,
        workers: &mut [W],
        job: impl Fn(usize, &[f32], &[Tile], &mut W) -> R + Sync,
    ) -> Result<Vec<R>, Panicked> {
        let dealt = if spread { pool.threads().min(count) } else { 1 };
        let (logits, tiles) = (&self.logits, &self.tiles);
        let tile_count = logits.cols().div_ceil(TILE);
        let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
        let mut rest = &mut results[..];
        let mut parts = Vec::with_capacity(dealt);
        for (number, worker) in workers.iter_mut().enumerate().take(dealt) {
            let rows = share(count, dealt, number);
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(rows.len());
            parts.push((rows, own, worker));
            rest = tail;
        }
        pool.each(parts, |(rows, results, worker)| {
            let mut own = Vec::with_capacity(tile_count);
            for (row, result) in rows.zip(results) {
                own.clear();
                own.extend((0..tile_count).map(|tile| tiles[tile * count + row]));
                *result = Some(job(row, &logits.row(row)[..logits.cols()], &own, worker));
            }
        })?;
        Ok(results.into_iter().flatten().collect())
    }

    /// Angles in f64, so that far positions keep their fraction of a turn.
    fn angles(&mut self, rows: &[Position<'_>]) {
        let half = self.frequencies.len();
        let angles = self.cos.chunks_mut(half).zip(self.sin.chunks_mut(half));
        for (row, (cos, sin)) in rows.iter().zip(angles) {
            for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
                let (s, c) = (row.position as f64 * f64::from(*frequency)).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }
}

fn norm_row(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
    codes: Option<&mut [ActivationBlock]>,
) {
    isa.run(Norm { x, weight, epsilon, out: &mut out[..weight.len()] });
    if let Some(codes) = codes {
        isa.run(Quantize { x: out, out: codes });
    }
}

/// `out = weights · input`, or added to it.
fn product(
    pool: &mut Pool,
    isa: Isa,
    weights: &Matrix,
    input: Input<'_>,
    put: Put,
    count: usize,
    out: &mut Rows,
) -> Result<(), Panicked> {
    let ranges = columns(weights.rows(), count * weights.rows() * weights.cols(), pool.threads());
    let outs = out.columns_mut(count, &ranges);
    let parts = ranges.into_iter().zip(outs);
    pool.each(parts.collect(), |(rows, mut out)| {
        Product { weights, rows, input, put, out: &mut out }.run(isa);
    })
}

/// Deals the output columns of a product.
fn columns(rows: usize, multiplications: usize, threads: usize) -> Vec<Range<usize>> {
    let workers = if multiplications < SMALL_PRODUCT { 1 } else { threads };
    let units = rows.div_ceil(COLUMN_UNIT);
    let bound = |unit: usize| (unit * COLUMN_UNIT).min(rows);
    (0..workers)
        .map(|worker| share(units, workers, worker))
        .map(|units| bound(units.start)..bound(units.end))
        .collect()
}

/// Runs row-wise work, on all workers if there are enough rows.
fn each_row<T: Send>(
    pool: &mut Pool,
    count: usize,
    items: impl Iterator<Item = T>,
    job: impl Fn(T) + Sync,
) -> Result<(), Panicked> {
    let workers = if count < FEW_ROWS { 1 } else { pool.threads() };
    let mut items = items.take(count);
    let parts = (0..workers)
        .map(|worker| items.by_ref().take(share(count, workers, worker).len()).collect::<Vec<_>>());
    pool.each(parts.collect(), |items| items.into_iter().for_each(&job))
}
