//! What the keys and tensor names of a GGUF file say about the model.

use std::collections::BTreeMap;

use crate::error::Fault;
use crate::gguf::Keys;
use crate::weights::Stored;
use crate::{Architecture, LayerTensor, ModelSpec, Rope, RopeScaling, TensorName};

/// The tensor of per-pair frequency divisors that Llama 3's RoPE scaling becomes.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Reads the model's shape. RoPE divisors are left to the caller, who can read tensors.
pub(crate) fn spec(keys: &Keys, tensors: &BTreeMap<String, Stored>) -> Result<ModelSpec, Fault> {
    let prefix = keys.str("general.architecture")?;
    let architecture = match prefix {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        other => {
            return Err(Fault::unsupported(
                "key general.architecture",
                format!("{other:?}"),
                "llama (also Mistral), qwen2, qwen3",
            ));
        }
    };
    let key = |suffix: &str| format!("{prefix}.{suffix}");
    if let Some(experts) = keys.optional_u64(&key("expert_count"))?
        && experts > 0
    {
        return Err(Fault::unsupported(key("expert_count"), experts.to_string(), "0"));
    }
    let hidden_size = keys.usize(&key("embedding_length"))?;
    let heads = keys.usize(&key("attention.head_count"))?;
    let kv_heads = keys.optional_usize(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = head_dim(keys, &key, hidden_size, heads)?;
    let vocab_size = match tensors.get(&file_name(TensorName::Embedding)) {
        Some(embedding) => embedding.shape[0],
        // The error about the missing tensor comes later and says more.
        None => keys.strings("tokenizer.ggml.tokens")?.len(),
    };
    let spec = ModelSpec {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size: keys.usize(&key("feed_forward_length"))?,
        layers: keys.usize(&key("block_count"))?,
        heads,
        kv_heads,
        head_dim,
        rms_epsilon: keys.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope: Rope {
            theta: keys.optional_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            scaling: rope_scaling(keys, &key)?,
        },
        max_positions: max_positions(keys, &key)?,
        tied_head: !tensors.contains_key("output.weight"),
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
    };
    spec.validate()?;
    Ok(spec)
}

fn head_dim(
    keys: &Keys,
    key: &impl Fn(&str) -> String,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, Fault> {
    let by_default = hidden_size.checked_div(heads).unwrap_or(0);
    let head_dim = keys.optional_usize(&key("attention.key_length"))?.unwrap_or(by_default);
    // Values of another width and partial rotation exist elsewhere, not in these families.
    for other in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.optional_usize(&key(other))?.unwrap_or(head_dim);
        if found != head_dim {
            return Err(Fault::unsupported(
                format!("key {}", key(other)),
                found.to_string(),
                format!("{head_dim}, the head size"),
            ));
        }
    }
    Ok(head_dim)
}

fn rope_scaling(keys: &Keys, key: &impl Fn(&str) -> String) -> Result<RopeScaling, Fault> {
    match keys.optional_str(&key("rope.scaling.type"))? {
        // Files from before there were types.
        None => Ok(match keys.optional_f32(&key("rope.scale_linear"))? {
            None => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        }),
        Some("none") => Ok(RopeScaling::None),
        Some("linear") => {
            Ok(RopeScaling::Linear { factor: keys.f32(&key("rope.scaling.factor"))? })
        }
        Some(other) => Err(Fault::unsupported(
            format!("key {}", key("rope.scaling.type")),
            format!("{other:?}"),
            "none, linear",
        )),
    }
}

/// A sequence no longer than the sliding window never notices it, so the window bounds the context.
fn max_positions(keys: &Keys, key: &impl Fn(&str) -> String) -> Result<usize, Fault> {
    let context = keys.usize(&key("context_length"))?;
    Ok(match keys.optional_usize(&key("attention.sliding_window"))? {
        None | Some(0) => context,
        Some(window) => context.min(window),
    })
}

/// What GGUF calls a tensor. A tied head has no name of its own.
pub(crate) fn file_name(tensor: TensorName) -> String {
    match tensor {
        TensorName::Embedding => "token_embd.weight".to_owned(),
        TensorName::FinalNorm => "output_norm.weight".to_owned(),
        TensorName::Head => "output.weight".to_owned(),
        TensorName::Layer(layer, tensor) => {
            let name = match tensor {
                LayerTensor::AttentionNorm => "attn_norm.weight",
                LayerTensor::Query => "attn_q.weight",
                LayerTensor::Key => "attn_k.weight",
                LayerTensor::Value => "attn_v.weight",
                LayerTensor::QueryBias => "attn_q.bias",
                LayerTensor::KeyBias => "attn_k.bias",
                LayerTensor::ValueBias => "attn_v.bias",
                LayerTensor::QueryNorm => "attn_q_norm.weight",
                LayerTensor::KeyNorm => "attn_k_norm.weight",
                LayerTensor::Output => "attn_output.weight",
                LayerTensor::FeedForwardNorm => "ffn_norm.weight",
                LayerTensor::Gate => "ffn_gate.weight",
                LayerTensor::Up => "ffn_up.weight",
                LayerTensor::Down => "ffn_down.weight",
            };
            format!("blk.{layer}.{name}")
        }
    }
}

/// Number of heads whose rows are stored permuted in `tensor`, if any are.
///
/// Files of the llama family keep the rows of query and key heads in the order that rotating
/// *adjacent* pairs wants: row 2i + j of a head is what "rotate half" has at row i + j · half. The
/// Qwen families are stored as they are.
pub(crate) fn permuted_heads(spec: &ModelSpec, tensor: TensorName) -> Option<usize> {
    if !matches!(spec.architecture, Architecture::Llama | Architecture::Mistral) {
        return None;
    }
    match tensor {
        TensorName::Layer(_, LayerTensor::Query | LayerTensor::QueryBias) => Some(spec.heads),
        TensorName::Layer(_, LayerTensor::Key | LayerTensor::KeyBias) => Some(spec.kv_heads),
        _ => None,
    }
}

/// Undoes the permutation of [`permuted_heads`]: `data` holds `heads · head_dim` rows.
pub(crate) fn unpermute<T: Copy>(data: &[T], heads: usize, head_dim: usize) -> Vec<T> {
    let width = data.len() / (heads * head_dim);
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks_exact(head_dim * width) {
        for row in 0..head_dim {
            let stored = 2 * (row % half) + row / half;
            out.extend_from_slice(&head[stored * width..][..width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermute_inverts_the_converter() {
        // Two heads of four rows, two columns. The converter reshapes [heads, 2, half, columns] and
        // swaps the middle axes.
        let original: Vec<u32> = (0..16).collect();
        let (heads, half, columns) = (2, 2, 2);
        let mut stored = Vec::new();
        for head in 0..heads {
            for i in 0..half {
                for j in 0..2 {
                    let row = head * 2 * half + j * half + i;
                    stored.extend_from_slice(&original[row * columns..][..columns]);
                }
            }
        }
        assert_ne!(stored, original);
        assert_eq!(unpermute(&stored, heads, 2 * half), original);
    }
}
