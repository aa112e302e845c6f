//! How much less probable the shadow finds what was served than what it would have served.

use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot,
    Token, Weights,
};

/// Rows of a pass, at most: a row of logits takes four bytes for each token of the vocabulary.
const ROWS: usize = 128;

/// Why regret cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegretError {
    /// The executor is too small.
    #[error(
        "prompt and answer have {tokens} tokens: the model is loaded for {positions} tokens and {pages} KV pages of {page_tokens}"
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
    /// A pass was refused or failed.
    #[error(transparent)]
    Pass(#[from] ExecutorError),
    /// A row of logits is missing, or is not finite.
    #[error("the shadow gave no finite logits at position {position}")]
    Logits {
        /// Where.
        position: usize,
    },
}

/// max ln p − ln p(served) for each served token, in nats, ≥ 0: the shadow reads prompt and answer from a clean cache.
///
/// The executor must hold no sequence: slot 0 and the first pages are used.
///
/// # Errors
/// The executor is too small, a pass fails, or logits are not finite.
pub fn regret(
    executor: &mut impl Executor,
    prompt: &[Token],
    served: &[Token],
) -> Result<Vec<f32>, RegretError> {
    let text = [prompt, served].concat();
    let fed = text.len().saturating_sub(1);
    let Limits { positions, pages, page_tokens, rows, layers, .. } = *executor.limits();
    let needed = fed.div_ceil(page_tokens.max(1) as usize);
    if fed > positions as usize || needed > pages as usize {
        return Err(RegretError::Room { tokens: fed, positions, pages, page_tokens });
    }
    let table: Arc<[PageId]> = (0..needed as u32).map(PageId).collect();
    let first_wanted = prompt.len().saturating_sub(1);
    let chunk = ROWS.min(rows as usize).max(1);
    let mut found = Vec::with_capacity(served.len());
    for first in (0..fed).step_by(chunk) {
        let range = first..(first + chunk).min(fed);
        let row = |position: usize| Row {
            slot: Slot(0),
            position: position as u32,
            class: RowClass::Prompt,
            input: Input::Token(text[position]),
            outputs: Outputs { logits: position >= first_wanted, ..Outputs::default() },
            gate: None,
            adapter: None,
        };
        let pass = Pass {
            weights: Weights::Full,
            layers: 0..layers,
            copies: Vec::new(),
            tables: vec![PageTable { slot: Slot(0), pages: Arc::clone(&table) }],
            rows: range.clone().map(row).collect(),
        };
        let ticket = executor.submit(pass)?;
        let results = executor.wait(ticket)?;
        for (position, result) in range.zip(&results).filter(|(p, _)| *p >= first_wanted) {
            let token = text[position + 1] as usize;
            let logits = result.logits.as_deref().filter(|_| result.statistics.finite);
            let served = logits.and_then(|logits| logits.get(token));
            let (Some(logits), Some(served)) = (logits, served) else {
                return Err(RegretError::Logits { position });
            };
            // The normalizer cancels: ln p − ln p' = l − l'.
            found.push(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) - served);
        }
    }
    Ok(found)
}
