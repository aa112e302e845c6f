//! LIM: how much a layer changes what passes through it.

use std::ops::Range;
use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Token,
    Weights,
};

/// Why layers could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModificationError {
    /// Nothing to read.
    #[error("there is no text to read")]
    NoText,
    /// A chunk does not fit.
    #[error("a chunk of {tokens} tokens is too long: the model is loaded for {positions}")]
    TooLong {
        /// Tokens of the chunk.
        tokens: usize,
        /// Positions that the executor has room for.
        positions: usize,
    },
    /// A pass was refused or failed.
    #[error("a pass failed")]
    Pass(#[from] ExecutorError),
    /// The executor did not tap, or what passes between layers is not finite.
    #[error("after {layers} layers the hidden states are missing, zero, or not finite")]
    States {
        /// Layers before the place.
        layers: u16,
    },
}

/// −cos(x, y) for each layer, where x goes into it and y comes out, over all positions of a chunk as one
/// vector each; the mean over chunks.
///
/// The executor must hold no sequence: slot 0 and the first pages are used. `progress` is told how many
/// tokens were read, again and again.
///
/// # Errors
/// See [`ModificationError`].
pub fn input_modification(
    executor: &mut impl Executor,
    weights: Weights,
    chunks: &[&[Token]],
    mut progress: impl FnMut(usize),
) -> Result<Vec<f64>, ModificationError> {
    let limits = executor.limits().clone();
    let room = limits.positions.min(limits.pages.saturating_mul(limits.page_tokens)) as usize;
    if chunks.iter().all(|chunk| chunk.is_empty()) {
        return Err(ModificationError::NoText);
    }
    if let Some(long) = chunks.iter().find(|chunk| chunk.len() > room) {
        return Err(ModificationError::TooLong { tokens: long.len(), positions: room });
    }
    let layers = usize::from(limits.layers);
    let mut sums = vec![0.0; layers];
    let mut read = 0;
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        let pages = chunk.len().div_ceil(limits.page_tokens as usize) as u32;
        let pages: Arc<[PageId]> = (0..pages).map(PageId).collect();
        let mut products = vec![Products::default(); layers];
        for first in (0..chunk.len()).step_by(limits.rows.max(1) as usize) {
            let range = first..(first + limits.rows.max(1) as usize).min(chunk.len());
            let count = range.len();
            let ticket = executor.submit(pass(limits.layers, weights, chunk, range, &pages))?;
            for row in executor.wait(ticket)? {
                let hidden = row.taps.len() / (layers + 1);
                let states: Vec<_> = row.taps.chunks(hidden.max(1)).collect();
                if states.len() != layers + 1 {
                    return Err(ModificationError::States { layers: 0 });
                }
                for (products, pair) in products.iter_mut().zip(states.windows(2)) {
                    products.add(pair[0], pair[1]);
                }
            }
            progress(count);
        }
        for (number, (sum, products)) in (1..).zip(sums.iter_mut().zip(&products)) {
            *sum += products.cosine().ok_or(ModificationError::States { layers: number })?;
        }
        read += 1;
    }
    Ok(sums.into_iter().map(|sum| -sum / f64::from(read)).collect())
}

/// Of two vectors that come in parts.
#[derive(Clone, Copy, Debug, Default)]
struct Products {
    both: f64,
    first: f64,
    second: f64,
}

impl Products {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        for (&a, &b) in a.iter().zip(b) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.both += a * b;
            self.first += a * a;
            self.second += b * b;
        }
    }

    /// `None` if there is none.
    fn cosine(&self) -> Option<f64> {
        let cosine = self.both / (self.first * self.second).sqrt();
        cosine.is_finite().then_some(cosine)
    }
}

/// Reads some tokens, and asks for what is between all layers.
fn pass(
    layers: u16,
    weights: Weights,
    tokens: &[Token],
    range: Range<usize>,
    pages: &Arc<[PageId]>,
) -> Pass {
    let row = |position: usize| Row {
        slot: Slot(0),
        position: position as u32,
        class: RowClass::Prompt,
        input: Input::Token(tokens[position]),
        outputs: Outputs { taps: 0..layers + 1, ..Outputs::default() },
        gate: None,
        adapter: None,
    };
    Pass {
        weights,
        layers: 0..layers,
        copies: Vec::new(),
        tables: vec![PageTable { slot: Slot(0), pages: Arc::clone(pages) }],
        rows: range.map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_one_cosine() {
        let mut products = Products::default();
        products.add(&[3.0, 0.0], &[0.0, 1.0]);
        assert_eq!(products.cosine(), Some(0.0));
        products.add(&[4.0], &[1.0]);
        // (3, 0, 4) and (0, 1, 1).
        assert!((products.cosine().unwrap() - 4.0 / (5.0 * 2.0_f64.sqrt())).abs() < 1e-12);
        assert_eq!(Products::default().cosine(), None);
    }
}
