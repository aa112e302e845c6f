//! Teacher-forced passes: the logits of given tokens, in the order of a clean prompt.

use std::ops::Range;
use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Token,
    Weights,
};

/// Rows of a pass, at most: a row of logits takes four bytes for each token of the vocabulary.
pub const FORCED_ROWS: usize = 128;

/// Why tokens could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForcedError {
    /// The executor is too small.
    #[error(
        "{tokens} tokens are too many: the model is loaded for {positions} tokens and {pages} KV pages of {page_tokens} \
         tokens"
    )]
    Room {
        /// Tokens to read.
        tokens: usize,
        /// Longest sequence of the executor.
        positions: u32,
        /// Its KV pages.
        pages: u32,
        /// Tokens of a page.
        page_tokens: u32,
    },
    /// A pass was refused.
    #[error("the pass was not taken")]
    Refused(#[source] ExecutorError),
    /// A pass failed.
    #[error("the pass failed")]
    Failed(#[source] ExecutorError),
    /// A row came without logits.
    #[error("the executor gave no logits at position {position}")]
    Missing {
        /// Where.
        position: usize,
    },
    /// A row of logits holds a NaN or an infinity.
    #[error("the logits at position {position} are not finite")]
    NotFinite {
        /// Where.
        position: usize,
    },
}

/// Feeds `tokens` from position 0 on and shows the raw logits at each position in `wanted`, in order.
///
/// The executor must hold no sequence: slot 0 and the first pages are used.
///
/// # Errors
/// The executor is too small, a pass fails, or logits are not finite.
pub fn teacher_forced(
    executor: &mut impl Executor,
    weights: Weights,
    tokens: &[Token],
    wanted: Range<usize>,
    mut visit: impl FnMut(usize, &[f32]),
) -> Result<(), ForcedError> {
    let limits = executor.limits().clone();
    let pages = tokens.len().div_ceil(limits.page_tokens as usize);
    if tokens.len() > limits.positions as usize || pages > limits.pages as usize {
        return Err(ForcedError::Room {
            tokens: tokens.len(),
            positions: limits.positions,
            pages: limits.pages,
            page_tokens: limits.page_tokens,
        });
    }
    let pages: Arc<[PageId]> = (0..pages as u32).map(PageId).collect();
    let chunk = FORCED_ROWS.min(limits.rows as usize).max(1);
    for first in (0..tokens.len()).step_by(chunk) {
        let last = (first + chunk).min(tokens.len());
        let rows = (first..last)
            .map(|position| Row {
                slot: Slot(0),
                position: position as u32,
                class: RowClass::Prompt,
                input: Input::Token(tokens[position]),
                outputs: Outputs { logits: wanted.contains(&position), ..Outputs::default() },
                gate: None,
                adapter: None,
            })
            .collect();
        let pass = Pass {
            weights,
            layers: 0..limits.layers,
            copies: Vec::new(),
            tables: vec![PageTable { slot: Slot(0), pages: Arc::clone(&pages) }],
            rows,
        };
        let ticket = executor.submit(pass).map_err(ForcedError::Refused)?;
        let results = executor.wait(ticket).map_err(ForcedError::Failed)?;
        for (position, result) in (first..last).zip(&results) {
            if !wanted.contains(&position) {
                continue;
            }
            let logits = result.logits.as_deref().ok_or(ForcedError::Missing { position })?;
            if !result.statistics.finite {
                return Err(ForcedError::NotFinite { position });
            }
            visit(position, logits);
        }
    }
    Ok(())
}
