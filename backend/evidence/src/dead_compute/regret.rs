//! How much less probable the shadow finds what was served than what it would have served.

use rewind_engine::{Executor, Token, Weights};

use crate::forced::{ForcedError, teacher_forced};

/// max ln p − ln p(served) for each served token, in nats, ≥ 0: the shadow reads prompt and answer from a clean cache.
///
/// The executor must hold no sequence.
///
/// # Errors
/// As [`teacher_forced`].
pub fn regret(
    executor: &mut impl Executor,
    prompt: &[Token],
    served: &[Token],
) -> Result<Vec<f64>, ForcedError> {
    let text = [prompt, served].concat();
    let fed = &text[..text.len().saturating_sub(1)];
    let wanted = prompt.len().saturating_sub(1)..fed.len();
    let mut found = Vec::with_capacity(served.len());
    teacher_forced(executor, Weights::Full, fed, wanted, |position, logits| {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The normalizer cancels: ln p − ln p' = l − l'.
        found.push(f64::from(best) - f64::from(logits[text[position + 1] as usize]));
    })?;
    Ok(found)
}
