//! From raw to processed logits: bias, penalties, and the tokens that may not be chosen.

use crate::executor::{Token, TokenMask};

use super::{History, Sampling};

/// Marks a token of the prompt in the count of a token; the other bits count the answer.
const IN_PROMPT: u32 = 1 << 31;

/// Fills `processed` with the logits after bias and penalties. `counts` is all zero before and
/// after.
///
/// The penalties are vLLM's: repetition looks at prompt and answer, and divides positive but
/// multiplies other logits; frequency and presence look at the answer only.
pub(super) fn process(
    logits: &[f32],
    sampling: &Sampling,
    history: &History,
    processed: &mut Vec<f32>,
    counts: &mut Vec<u32>,
) {
    processed.clear();
    processed.extend_from_slice(logits);
    for &(token, bias) in &sampling.bias {
        if let Some(logit) = processed.get_mut(token as usize) {
            *logit = bounded(*logit + bias);
        }
    }
    if !sampling.reads_history() {
        return;
    }

    if counts.len() < processed.len() {
        counts.resize(processed.len(), 0);
    }
    let (prompt, answer) = history.tokens.split_at(history.prompt.min(history.tokens.len()));
    for &token in prompt {
        if let Some(count) = counts.get_mut(token as usize) {
            *count |= IN_PROMPT;
        }
    }
    for &token in answer {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    for &token in history.tokens.iter() {
        let Some(count) = counts.get_mut(token as usize) else { continue };
        // Taking the count leaves a clean table behind and applies the penalty once per token.
        let count = std::mem::take(count);
        if let (Some(logit), 1..) = (processed.get_mut(token as usize), count) {
            *logit = penalized(*logit, count & !IN_PROMPT, sampling);
        }
    }
}

/// Takes away the tokens that mask and bans forbid, by setting them to −∞.
///
/// Comes after the penalties, not before as in the contract's list: to exclude a token commutes with
/// them, and −∞ then never enters arithmetic.
pub(super) fn exclude(processed: &mut [f32], banned: &[Token], mask: Option<&TokenMask>) {
    let vocabulary = processed.len() as Token;
    let mask = mask.filter(|mask| (0..vocabulary).any(|token| allows(mask, token)));
    let usable = |token: Token| mask.is_none_or(|mask| allows(mask, token));
    let bans_leave_some =
        (0..vocabulary).any(|token| usable(token) && banned.binary_search(&token).is_err());

    if let Some(mask) = mask {
        for (token, logit) in processed.iter_mut().enumerate() {
            if !allows(mask, token as Token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if bans_leave_some {
        for &token in banned {
            if let Some(logit) = processed.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalized(logit: f32, in_answer: u32, sampling: &Sampling) -> f32 {
    let mut logit = if logit > 0.0 {
        logit / sampling.repetition_penalty
    } else {
        logit * sampling.repetition_penalty
    };
    if in_answer > 0 {
        logit -= sampling.frequency_penalty * in_answer as f32;
        logit -= sampling.presence_penalty;
    }
    bounded(logit)
}

/// An extreme but valid penalty may overflow; differences of processed logits must stay numbers.
fn bounded(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

/// Tokens past the end of a mask are not allowed.
fn allows(mask: &TokenMask, token: Token) -> bool {
    mask.0.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
}
