//! Names and contents of a model's tensors.

use std::fmt;

use half::{bf16, f16};
use rewind_formats::Packed;

/// One tensor of a decoder, whatever its file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorName {
    /// Token embedding, `[vocab_size, hidden_size]`.
    Embedding,
    /// RMS norm before the LM head, `[hidden_size]`.
    FinalNorm,
    /// LM head, `[vocab_size, hidden_size]`; the embedding where the model ties them.
    Head,
    /// A tensor of one decoder block, counted from 0.
    Layer(usize, LayerTensor),
}

/// A tensor of a decoder block. Matrices are `[outputs, inputs]`, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// RMS norm before attention, `[hidden_size]`.
    AttentionNorm,
    /// Query projection, `[heads * head_dim, hidden_size]`.
    Query,
    /// Key projection, `[kv_heads * head_dim, hidden_size]`.
    Key,
    /// Value projection, `[kv_heads * head_dim, hidden_size]`.
    Value,
    /// Bias of the query projection (Qwen2).
    QueryBias,
    /// Bias of the key projection (Qwen2).
    KeyBias,
    /// Bias of the value projection (Qwen2).
    ValueBias,
    /// RMS norm of each query head, `[head_dim]` (Qwen3).
    QueryNorm,
    /// RMS norm of each key head, `[head_dim]` (Qwen3).
    KeyNorm,
    /// Output projection of attention, `[hidden_size, heads * head_dim]`.
    Output,
    /// RMS norm before the feed-forward layer, `[hidden_size]`.
    FeedForwardNorm,
    /// Gate projection, `[intermediate_size, hidden_size]`.
    Gate,
    /// Up projection, `[intermediate_size, hidden_size]`.
    Up,
    /// Down projection, `[hidden_size, intermediate_size]`.
    Down,
}

impl LayerTensor {
    /// All of them, in the order of computation.
    pub const ALL: [Self; 14] = [
        Self::AttentionNorm,
        Self::Query,
        Self::QueryBias,
        Self::QueryNorm,
        Self::Key,
        Self::KeyBias,
        Self::KeyNorm,
        Self::Value,
        Self::ValueBias,
        Self::Output,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

impl fmt::Display for LayerTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AttentionNorm => "attention norm",
            Self::Query => "query projection",
            Self::Key => "key projection",
            Self::Value => "value projection",
            Self::QueryBias => "query bias",
            Self::KeyBias => "key bias",
            Self::ValueBias => "value bias",
            Self::QueryNorm => "query norm",
            Self::KeyNorm => "key norm",
            Self::Output => "attention output projection",
            Self::FeedForwardNorm => "feed-forward norm",
            Self::Gate => "gate projection",
            Self::Up => "up projection",
            Self::Down => "down projection",
        })
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::FinalNorm => f.write_str("final norm"),
            Self::Head => f.write_str("head"),
            Self::Layer(layer, tensor) => write!(f, "layer {layer} {tensor}"),
        }
    }
}

/// A tensor copied out of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: TensorData,
}

/// Elements of a tensor in the precision of the checkpoint. Quantized matrices arrive as F16, their exact
/// dequantization rounded once, or packed, where it is asked for what stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// A matrix in a format of drafts.
    Packed(Packed),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Packed(packed) => packed.rows() * packed.cols(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, upcast exactly; of a packed matrix, the exact values of its weights.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Packed(packed) => {
                let mut values = vec![0.0; self.len()];
                for (row, values) in values.chunks_exact_mut(packed.cols()).enumerate() {
                    packed.dequantize_row(row, values);
                }
                values
            }
        }
    }
}
