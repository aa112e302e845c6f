//! A decoder block: attention, then the feed-forward network, each added to the residual stream.

use super::{Own, Pass, SMALL_PRODUCT, columns};
use crate::arch::BLOCK;
use crate::attention::Attend;
use crate::kernels::{Head, Input, Product, Put, Quantize, SwiGlu};
use crate::kv::Place;
use crate::matrix::Matrix;
use crate::model::{Layer, Vectors};
use crate::pool::{Poisoned, Worker};
use crate::shared::SharedRows;

impl Pass<'_> {
    pub(super) fn attention(
        &self,
        worker: &mut Worker<'_>,
        own: &mut Own,
        number: usize,
        layer: &Layer,
    ) -> Result<(), Poisoned> {
        let count = self.count();
        let all = (count, |i| i);
        self.norm(worker, own, all, &layer.vectors.attention_norm, layer.qkv.is_integer())?;
        let input = self.normed(worker, own, count);
        // SAFETY: columns are dealt, and not read in this phase.
        unsafe { self.product(worker, &layer.qkv, input, Put::Store, &self.qkv) };
        worker.barrier()?;

        self.heads(worker, number, &layer.vectors);
        worker.barrier()?;

        self.attend(worker, number);
        worker.barrier()?;

        if layer.output.is_integer() {
            self.quantize_attended(worker, own)?;
        }
        // SAFETY: nobody writes to either in the phase after attention and quantization.
        let (rows, shared) = unsafe {
            (self.attended.part(worker, 0..count), self.attended_codes.part(worker, 0..count))
        };
        let quantized = if count == 1 { own.attended_codes.block() } else { shared };
        let input = Input { rows, quantized };
        // SAFETY: columns are dealt, and read by their worker only.
        unsafe { self.product(worker, &layer.output, input, Put::Add, &self.stream) };
        worker.barrier()
    }

    /// Turns projections into queries, and into keys and values in the cache.
    fn heads(&self, worker: &Worker<'_>, layer: usize, vectors: &Vectors) {
        let spec = self.task.spec;
        let (dim, epsilon) = (spec.head_dim, spec.rms_epsilon);
        let (queries, keys) = (spec.heads * dim, spec.kv_heads * dim);
        let page_tokens = self.cache.shape().page_tokens;
        for (i, row) in self.task.positions.iter().enumerate() {
            // SAFETY: nobody writes to the angles in this phase.
            let (cos, sin) = unsafe {
                (self.cos.part(worker, i..i + 1).row(0), self.sin.part(worker, i..i + 1).row(0))
            };
            let half = self.frequencies.len();
            let (cos, sin) = (&cos[..half], &sin[..half]);
            let page = self.task.tables[row.table].pages[row.position / page_tokens];
            let finish = |first: usize, norm: &[f32], cos: &[f32], sin: &[f32]| {
                let columns = first..first + dim;
                let bias = vectors.qkv_bias.get(columns.clone()).unwrap_or_default();
                // SAFETY: heads are dealt, and this worker has each once.
                let x = unsafe { self.qkv.piece_mut(worker, i, columns) };
                self.isa.run(Head { x, bias, norm, epsilon, cos, sin });
                x
            };
            for unit in worker.share(spec.heads + spec.kv_heads) {
                let Some(head) = unit.checked_sub(spec.heads) else {
                    finish(unit * dim, &vectors.query_norm, cos, sin);
                    continue;
                };
                let key = finish(queries + head * dim, &vectors.key_norm, cos, sin);
                let value = finish(queries + keys + head * dim, &[], &[], &[]);
                let place = Place { page, layer, head };
                // SAFETY: as above; nobody reads entries in this phase.
                unsafe {
                    self.cache.write(worker, place, row.position % page_tokens, key, value);
                }
            }
        }
    }

    fn attend(&self, worker: &Worker<'_>, layer: usize) {
        let (spec, count) = (self.task.spec, self.count());
        let group = spec.heads / spec.kv_heads;
        let multiplications = self.seen * spec.heads * spec.head_dim * 2;
        let workers = if multiplications < SMALL_PRODUCT { 1 } else { worker.workers() };
        if worker.number() >= workers {
            return;
        }
        // Heads that share keys stay together, unless that leaves workers idle.
        let pairs = count * spec.kv_heads;
        let even = pairs.is_multiple_of(workers) || pairs >= 4 * workers;
        let together = if even { group } else { 1 };
        let width = together * spec.head_dim;
        let units = spec.heads / together;
        // SAFETY: nobody writes to the cache in this phase.
        let cache = unsafe { self.cache.read(worker) };
        // Round-robin: later rows of a prompt see more.
        for item in (worker.number()..count * units).step_by(workers) {
            let (i, unit) = (item / units, item % units);
            let row = &self.task.positions[i];
            let columns = unit * width..(unit + 1) * width;
            // SAFETY: nobody writes to the queries in this phase; pairs of row and head are dealt.
            let (queries, out) = unsafe {
                let queries = self.qkv.part(worker, i..i + 1).row(0);
                (&queries[columns.clone()], self.attended.piece_mut(worker, i, columns))
            };
            self.isa.run(Attend {
                cache,
                layer,
                head: unit * together / group,
                pages: &self.task.tables[row.table].pages,
                position: row.position,
                queries,
                out,
            });
        }
    }

    fn quantize_attended(&self, worker: &mut Worker<'_>, own: &mut Own) -> Result<(), Poisoned> {
        let count = self.count();
        // SAFETY: nobody writes to it in this phase.
        let attended = unsafe { self.attended.part(worker, 0..count) };
        if count == 1 {
            self.isa.run(Quantize { x: attended.row(0), out: own.attended_codes.row_mut(0) });
            return Ok(());
        }
        for i in worker.share(count) {
            // SAFETY: rows are dealt, and not read in this phase.
            let out = unsafe { self.attended_codes.row_mut(worker, i) };
            self.isa.run(Quantize { x: attended.row(i), out });
        }
        worker.barrier()
    }

    pub(super) fn feed_forward(
        &self,
        worker: &mut Worker<'_>,
        own: &mut Own,
        layer: &Layer,
    ) -> Result<(), Poisoned> {
        let count = self.count();
        let integer = layer.gate.is_integer() || layer.up.is_integer();
        self.norm(worker, own, (count, |i| i), &layer.vectors.feed_forward_norm, integer)?;
        let input = self.normed(worker, own, count);
        self.gate_and_up(worker, layer, input);
        worker.barrier()?;

        // SAFETY: nobody writes to either in this phase.
        let input = unsafe {
            let rows = self.gate.part(worker, 0..count);
            Input { rows, quantized: self.gate_codes.part(worker, 0..count) }
        };
        // SAFETY: columns are dealt, and read by their worker only.
        unsafe { self.product(worker, &layer.down, input, Put::Add, &self.stream) };
        worker.barrier()
    }

    /// Both products, what they gate, and that in 8 bits if the next product wants it, while it is in
    /// the worker's cache.
    fn gate_and_up(&self, worker: &Worker<'_>, layer: &Layer, input: Input<'_>) {
        let (count, isa) = (self.count(), self.isa);
        let multiplications = 2 * count * layer.gate.rows() * layer.gate.cols();
        let rows = columns(worker, layer.gate.rows(), multiplications);
        if rows.is_empty() {
            return;
        }
        let blocks = rows.start / BLOCK..rows.end.div_ceil(BLOCK);
        for (weights, out) in [(&layer.gate, &self.gate), (&layer.up, &self.up)] {
            // SAFETY: columns are dealt, and not read in this phase.
            let out = unsafe { out.part_mut(worker, 0..count, rows.clone()) };
            Product { weights, rows: rows.clone(), input, put: Put::Store, out }.run(isa);
        }
        for i in 0..count {
            // SAFETY: the same columns again, which this worker has alone.
            let (gate, up, out) = unsafe {
                (
                    self.gate.piece_mut(worker, i, rows.clone()),
                    self.up.piece_mut(worker, i, rows.clone()),
                    self.gate_codes.piece_mut(worker, i, blocks.clone()),
                )
            };
            isa.run(SwiGlu { gate: &mut *gate, up });
            if layer.down.is_integer() {
                isa.run(Quantize { x: gate, out });
            }
        }
    }

    /// `out = weights · input`, or added to it, for the worker's columns.
    ///
    /// # Safety
    /// Nobody reads or writes other workers' columns of `out` before the next barrier.
    unsafe fn product(
        &self,
        worker: &Worker<'_>,
        weights: &Matrix,
        input: Input<'_>,
        put: Put,
        out: &SharedRows<'_, f32>,
    ) {
        let count = self.count();
        let multiplications = count * weights.rows() * weights.cols();
        let rows = columns(worker, weights.rows(), multiplications);
        if !rows.is_empty() {
            // SAFETY: columns are dealt; the caller vouches for the rest.
            let out = unsafe { out.part_mut(worker, 0..count, rows.clone()) };
            Product { weights, rows, input, put, out }.run(self.isa);
        }
    }
}
