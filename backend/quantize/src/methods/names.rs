//! What the written folder calls tensors: the names of Hugging Face's Llama, Mistral and Qwen.

use rewind_checkpoint::{LayerTensor, TensorName};

/// Name of a tensor in `model.safetensors`.
pub(crate) fn of(tensor: TensorName) -> String {
    let (layer, tensor) = match tensor {
        TensorName::Embedding => return "model.embed_tokens.weight".to_owned(),
        TensorName::FinalNorm => return "model.norm.weight".to_owned(),
        TensorName::Head => return "lm_head.weight".to_owned(),
        TensorName::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::AttentionNorm => "input_layernorm.weight",
        LayerTensor::Query => "self_attn.q_proj.weight",
        LayerTensor::Key => "self_attn.k_proj.weight",
        LayerTensor::Value => "self_attn.v_proj.weight",
        LayerTensor::QueryBias => "self_attn.q_proj.bias",
        LayerTensor::KeyBias => "self_attn.k_proj.bias",
        LayerTensor::ValueBias => "self_attn.v_proj.bias",
        LayerTensor::QueryNorm => "self_attn.q_norm.weight",
        LayerTensor::KeyNorm => "self_attn.k_norm.weight",
        LayerTensor::Output => "self_attn.o_proj.weight",
        LayerTensor::FeedForwardNorm => "post_attention_layernorm.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::Down => "mlp.down_proj.weight",
    };
    format!("model.layers.{layer}.{name}")
}
