//! Teacher-forced passes: the logits of given tokens, in the order of a clean prompt.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rewind_engine::{
    Executor, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Token, Weights,
};

/// Rows of a pass, at most: a row of logits takes four bytes for each token of the vocabulary.
pub(crate) const ROWS: usize = 128;

/// Feeds `tokens` from position 0 on and shows the raw logits at each position in `wanted`.
///
/// The executor must hold no sequence: slot 0 and the first pages are used.
pub(crate) fn teacher_forced(
    executor: &mut impl Executor,
    weights: Weights,
    tokens: &[Token],
    wanted: Range<usize>,
    mut visit: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let limits = executor.limits().clone();
    let pages = tokens.len().div_ceil(limits.page_tokens as usize);
    ensure!(
        tokens.len() <= limits.positions as usize && pages <= limits.pages as usize,
        "{} tokens are too many: the model is loaded for {} tokens and {} KV pages of {} tokens",
        tokens.len(),
        limits.positions,
        limits.pages,
        limits.page_tokens
    );
    let pages: Arc<[PageId]> = (0..pages as u32).map(PageId).collect();
    let chunk = ROWS.min(limits.rows as usize).max(1);
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
        let ticket = executor.submit(pass).context("the pass was not taken")?;
        let results = executor.wait(ticket).context("the pass failed")?;
        for (position, result) in (first..last).zip(&results) {
            if !wanted.contains(&position) {
                continue;
            }
            let logits = result.logits.as_deref().context("the executor gave no logits")?;
            if !result.statistics.finite {
                bail!("the logits at position {position} are not finite");
            }
            visit(position, logits)?;
        }
    }
    Ok(())
}

/// ln Σ e^l over a row of finite logits, in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(most)).exp()).sum();
    f64::from(most) + sum.ln()
}

/// Mean of many numbers with its standard error.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Mean {
    pub(crate) fn add(&mut self, x: f64) {
        self.count += 1;
        self.sum += x;
        self.squares += x * x;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// NaN of nothing.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// √(variance / (n − 1)), the variance over n; 0 with fewer than two numbers.
    pub(crate) fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let n = self.count as f64;
        let variance = self.squares / n - self.mean() * self.mean();
        (variance.max(0.0) / (n - 1.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_survives_large_logits() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2.0_f64.ln())).abs() < 1e-9);
        assert!((log_sum_exp(&[0.0, -1e30]) - 0.0).abs() < 1e-9);
    }

    #[test]
    fn mean_and_error() {
        let mut mean = Mean::default();
        for x in [1.0, 2.0, 3.0, 4.0] {
            mean.add(x);
        }
        assert_eq!(mean.mean(), 2.5);
        // Variance over n is 1.25.
        assert!((mean.standard_error() - (1.25_f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
