//! One decoder block in f32, in the steps that quantization needs between: the rows that go into each projection.
//!
//! Rows are positions of chunks of text, each chunk a sequence of its own. The arithmetic is the plain one of
//! the model (RMS norm, rotary positions, causal attention with grouped heads, SwiGLU); how sums are ordered is
//! not what executors do, and need not be.

use std::collections::BTreeMap;

use rewind_checkpoint::{LayerTensor, ModelSpec};

use crate::methods::method::{View, add_product, map, product};

/// Weights of a block, `[outputs, inputs]` row-major.
pub(crate) type Weights = BTreeMap<LayerTensor, Vec<f32>>;

/// What does not change from block to block.
pub(crate) struct Forward<'a> {
    spec: &'a ModelSpec,
    /// Cosine and sine of each pair at each position, `[positions, head_dim / 2]`.
    turns: Vec<(f32, f32)>,
    threads: usize,
}

impl<'a> Forward<'a> {
    /// For chunks of at most so many positions.
    pub(crate) fn new(spec: &'a ModelSpec, positions: usize, threads: usize) -> Self {
        let frequencies = spec.rope.frequencies(spec.head_dim);
        let turns = (0..positions).flat_map(|position| {
            let angles = frequencies.iter().map(move |f| position as f32 * f);
            angles.map(|angle| (f64::from(angle).cos() as f32, f64::from(angle).sin() as f32))
        });
        Self { spec, turns: turns.collect(), threads }
    }

    /// The model's shape.
    pub(crate) fn spec(&self) -> &ModelSpec {
        self.spec
    }

    /// Something for each chunk.
    fn chunks(
        &self,
        states: &[Vec<f32>],
        of: impl Fn(usize, &[f32]) -> Vec<f32> + Sync,
    ) -> Vec<Vec<f32>> {
        map(self.threads, states.len(), |number| of(number, &states[number]))
    }

    /// What goes into the query, key and value projections, or into gate and up: `[positions, hidden]`.
    pub(crate) fn normed(
        &self,
        states: &[Vec<f32>],
        weights: &Weights,
        norm: LayerTensor,
    ) -> Vec<Vec<f32>> {
        self.chunks(states, |_, states| {
            let mut normed = states.to_vec();
            self.norm(&mut normed, part(weights, norm));
            normed
        })
    }

    /// What goes into the output projection, of normed rows: `[positions, heads * head_dim]`.
    pub(crate) fn attended(&self, normed: &[Vec<f32>], weights: &Weights) -> Vec<Vec<f32>> {
        self.chunks(normed, |_, normed| {
            let [queries, keys, values] = [
                (LayerTensor::Query, LayerTensor::QueryBias, LayerTensor::QueryNorm),
                (LayerTensor::Key, LayerTensor::KeyBias, LayerTensor::KeyNorm),
                // Values have no norm, and are not turned.
                (LayerTensor::Value, LayerTensor::ValueBias, LayerTensor::Value),
            ]
            .map(|(matrix, bias, norm)| {
                let mut out = self.project(normed, part(weights, matrix));
                let width = out.len() / (normed.len() / self.spec.hidden_size);
                if let Some(bias) = weights.get(&bias) {
                    for row in out.chunks_mut(bias.len()) {
                        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                    }
                }
                if norm != LayerTensor::Value {
                    if let Some(norm) = weights.get(&norm) {
                        self.norm(&mut out, norm);
                    }
                    self.rotate(&mut out, width);
                }
                out
            });
            self.attend(&queries, &keys, &values)
        })
    }

    /// What goes into the down projection, of normed rows: `[positions, intermediate]`.
    pub(crate) fn gated(&self, normed: &[Vec<f32>], weights: &Weights) -> Vec<Vec<f32>> {
        self.chunks(normed, |_, normed| {
            let mut gate = self.project(normed, part(weights, LayerTensor::Gate));
            let up = self.project(normed, part(weights, LayerTensor::Up));
            gate.iter_mut()
                .zip(up)
                .for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
            gate
        })
    }

    /// Adds what a projection makes of its inputs to the states.
    pub(crate) fn add(
        &self,
        states: &mut Vec<Vec<f32>>,
        inputs: &[Vec<f32>],
        weights: &Weights,
        matrix: LayerTensor,
    ) {
        let matrix = part(weights, matrix);
        *states = self.chunks(states, |number, states| {
            let mut out = product(
                View::dense(
                    &inputs[number],
                    inputs[number].len() * self.spec.hidden_size / states.len(),
                ),
                View::dense(matrix, matrix.len() / self.spec.hidden_size),
            );
            out.iter_mut().zip(states).for_each(|(out, state)| *out += state);
            out
        });
    }

    /// The whole block.
    pub(crate) fn block(&self, states: &mut Vec<Vec<f32>>, weights: &Weights) {
        let normed = self.normed(states, weights, LayerTensor::AttentionNorm);
        let attended = self.attended(&normed, weights);
        self.add(states, &attended, weights, LayerTensor::Output);
        let normed = self.normed(states, weights, LayerTensor::FeedForwardNorm);
        let gated = self.gated(&normed, weights);
        self.add(states, &gated, weights, LayerTensor::Down);
    }

    /// `rows · matrixᵀ`, of rows as wide as the model.
    fn project(&self, rows: &[f32], matrix: &[f32]) -> Vec<f32> {
        let hidden = self.spec.hidden_size;
        product(View::dense(rows, hidden), View::dense(matrix, hidden))
    }

    /// x / √(mean x² + ε) · weight, over rows as long as the weight.
    fn norm(&self, rows: &mut [f32], weight: &[f32]) {
        for row in rows.chunks_mut(weight.len()) {
            let squares = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            let mean = squares / weight.len() as f64 + f64::from(self.spec.rms_epsilon);
            let factor = (1.0 / mean.sqrt()) as f32;
            row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * factor * w);
        }
    }

    /// Turns the pairs (i, i + head_dim / 2) of every head by their position; rows are `width` long.
    fn rotate(&self, rows: &mut [f32], width: usize) {
        let half = self.spec.head_dim / 2;
        for (row, turns) in rows.chunks_mut(width).zip(self.turns.chunks(half)) {
            for head in row.chunks_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// Σ softmax(q · k / √head_dim) · v over the positions up to each row's own, head by head.
    fn attend(&self, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let ModelSpec { heads, kv_heads, head_dim, .. } = *self.spec;
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let rows = queries.len() / wide;
        let head = |values, stride: usize, number: usize| {
            let values: &[f32] = values;
            View { values: &values[number * head_dim..], rows, cols: head_dim, stride }
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut out = vec![0.0; queries.len()];
        for number in 0..heads {
            let shared = number * kv_heads / heads;
            let mut scores = product(head(queries, wide, number), head(keys, narrow, shared));
            for (position, scores) in scores.chunks_mut(rows).enumerate() {
                let (seen, hidden) = scores.split_at_mut(position + 1);
                hidden.fill(0.0);
                let largest = seen.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                let mut sum = 0.0;
                for score in &mut *seen {
                    *score = ((*score - largest) * scale).exp();
                    sum += *score;
                }
                seen.iter_mut().for_each(|score| *score /= sum);
            }
            let to = &mut out[number * head_dim..];
            add_product(to, wide, View::dense(&scores, rows), head(values, narrow, shared), 1.0);
        }
        out
    }
}

/// A part that every block has; nothing if it is absent, which makes products of no rows.
fn part(weights: &Weights, tensor: LayerTensor) -> &[f32] {
    weights.get(&tensor).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests;
