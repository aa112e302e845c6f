//! Whether two checkpoints can be draft and shadow of each other.
//!
//! They share one KV cache and one vocabulary, so shape, rotary positions and tokens must agree
//! exactly. Whether they hold the same *model* cannot be told from outside; a wrong pair shows as a
//! draft that the shadow never agrees with.

use std::fmt::Debug;

use rewind_checkpoint::{Checkpoint, ModelSpec, Tokenizer};

use crate::load_error::LoadError;

/// Checks a model and the separate shadow for it.
///
/// # Errors
/// They differ in something that the pair must share; it is named.
pub fn check_pair(model: &Checkpoint, shadow: &Checkpoint) -> Result<(), LoadError> {
    check_specs(model.spec(), shadow.spec())?;
    check_tokenizers(model.tokenizer(), shadow.tokenizer())
}

fn check_specs(model: &ModelSpec, shadow: &ModelSpec) -> Result<(), LoadError> {
    // All fields by name: a new one must be thought about here. Tied heads may differ, since a
    // quantizer may write out what was tied, and so may the advertised length.
    let ModelSpec {
        architecture: _,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_epsilon,
        rope,
        max_positions: _,
        tied_head: _,
        qkv_bias,
        qk_norm,
    } = model;
    same("the vocabulary size", vocab_size, &shadow.vocab_size)?;
    same("the hidden size", hidden_size, &shadow.hidden_size)?;
    same("the feed-forward size", intermediate_size, &shadow.intermediate_size)?;
    same("the number of layers", layers, &shadow.layers)?;
    same("the number of heads", heads, &shadow.heads)?;
    same("the number of key-value heads", kv_heads, &shadow.kv_heads)?;
    same("the head size", head_dim, &shadow.head_dim)?;
    same("the epsilon of RMS norms", rms_epsilon, &shadow.rms_epsilon)?;
    same("the use of query, key and value biases", qkv_bias, &shadow.qkv_bias)?;
    same("the use of query and key norms", qk_norm, &shadow.qk_norm)?;
    // Two files may write the same rotation differently; the frequencies are what counts.
    let (ours, theirs) = (rope.frequencies(*head_dim), shadow.rope.frequencies(*head_dim));
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    if !ours.iter().zip(&theirs).all(|(a, b)| close(*a, *b)) {
        return mismatch("the rotary position embedding", rope, &shadow.rope);
    }
    Ok(())
}

fn check_tokenizers(model: &Tokenizer, shadow: &Tokenizer) -> Result<(), LoadError> {
    let ids = 0..model.vocab_size() as u32;
    match ids.into_iter().find(|&id| model.piece(id) != shadow.piece(id)) {
        Some(id) => mismatch(
            format!("token {id}"),
            &String::from_utf8_lossy(model.piece(id)),
            &String::from_utf8_lossy(shadow.piece(id)),
        ),
        None => Ok(()),
    }
}

fn same<T: PartialEq + Debug>(what: &str, model: &T, shadow: &T) -> Result<(), LoadError> {
    if model == shadow { Ok(()) } else { mismatch(what, model, shadow) }
}

fn mismatch<T: Debug>(what: impl Into<String>, model: &T, shadow: &T) -> Result<(), LoadError> {
    Err(LoadError::Mismatch {
        what: what.into(),
        model: format!("{model:?}"),
        shadow: format!("{shadow:?}"),
    })
}
