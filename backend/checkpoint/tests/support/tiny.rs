//! A model of a few thousand weights, as a GGUF file and as a Hugging Face folder.

use half::{bf16, f16};
use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, Rope, RopeScaling, TensorName};

use super::gguf::{Gguf, Tensor, Value};

/// Bytes, three merges, two special tokens.
pub(crate) const MERGES: [(&str, &str); 3] = [("h", "e"), ("l", "l"), ("Ġ", "he")];
pub(crate) const SPECIAL: [&str; 2] = ["<|begin|>", "<|end|>"];

pub(crate) fn spec(architecture: Architecture) -> ModelSpec {
    ModelSpec {
        architecture,
        vocab_size: vocabulary().len(),
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: if architecture == Architecture::Qwen3 { 16 } else { 8 },
        rms_epsilon: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        max_positions: 512,
        tied_head: true,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
    }
}

/// Tokens by id.
pub(crate) fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
    tokens.extend(byte_alphabet().map(String::from));
    tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
    tokens
}

/// The character of each byte in byte-level vocabularies.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut shifted = 256_u32..;
    (0..=255_u32).map(move |byte| {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte } else { shifted.next().unwrap() };
        char::from_u32(code).unwrap()
    })
}

/// Weights that F16 and BF16 hold exactly and that differ between and within tensors.
pub(crate) fn weights(spec: &ModelSpec, name: TensorName) -> Vec<f32> {
    let seed = name.to_string().bytes().fold(7_u32, |h, b| h.wrapping_mul(31) + u32::from(b));
    (0..spec.elements(name).unwrap() as u32)
        .map(|i| {
            let mixed = i.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
            ((mixed >> 13) % 255) as f32 / 64.0 - 2.0
        })
        .collect()
}

/// Element types that both kinds of files can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub(crate) fn bytes(self, weights: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Self::F16 => weights.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect(),
            Self::Bf16 => weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn ggml_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
        }
    }
}

pub(crate) fn gguf_name(name: TensorName) -> String {
    let TensorName::Layer(layer, tensor) = name else {
        return match name {
            TensorName::Embedding => "token_embd.weight",
            TensorName::FinalNorm => "output_norm.weight",
            _ => "output.weight",
        }
        .to_owned();
    };
    let tensor = match tensor {
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
    format!("blk.{layer}.{tensor}")
}

/// What the converter of llama.cpp does to the rows of query and key heads.
fn permute(weights: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = weights.len() / heads / head_dim;
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..head_dim / 2 {
            for j in 0..2 {
                let row = head * head_dim + j * head_dim / 2 + i;
                out.extend(&weights[row * width..][..width]);
            }
        }
    }
    out
}

/// The model as a GGUF file.
pub(crate) fn gguf(spec: &ModelSpec, element: Element) -> Gguf {
    let mut file = Gguf::default();
    let arch = match spec.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    };
    file.set("general.architecture", Value::Str(arch.to_owned()));
    let mut number = |key: &str, value: usize| {
        file.set(&format!("{arch}.{key}"), Value::U32(value as u32));
    };
    number("block_count", spec.layers);
    number("context_length", spec.max_positions);
    number("embedding_length", spec.hidden_size);
    number("feed_forward_length", spec.intermediate_size);
    number("attention.head_count", spec.heads);
    number("attention.head_count_kv", spec.kv_heads);
    number("attention.key_length", spec.head_dim);
    number("attention.value_length", spec.head_dim);
    let epsilon = Value::F32(spec.rms_epsilon);
    file.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), epsilon);
    file.set(&format!("{arch}.rope.freq_base"), Value::F32(spec.rope.theta));
    byte_level_vocabulary(&mut file);
    let permuted = matches!(spec.architecture, Architecture::Llama | Architecture::Mistral);
    for name in spec.tensors() {
        if name == TensorName::Head && spec.tied_head {
            continue;
        }
        let mut weights = weights(spec, name);
        if permuted {
            weights = match name {
                TensorName::Layer(_, LayerTensor::Query) => {
                    permute(&weights, spec.heads, spec.head_dim)
                }
                TensorName::Layer(_, LayerTensor::Key) => {
                    permute(&weights, spec.kv_heads, spec.head_dim)
                }
                _ => weights,
            };
        }
        let mut dimensions: Vec<u64> =
            spec.shape(name).unwrap().iter().map(|&size| size as u64).collect();
        dimensions.reverse();
        file.tensors.push(Tensor {
            name: gguf_name(name),
            dimensions,
            ty: element.ggml_id(),
            data: element.bytes(&weights),
        });
    }
    file
}

fn byte_level_vocabulary(file: &mut Gguf) {
    let tokens = vocabulary();
    let types = (0..tokens.len()).map(|id| if id < SPECIAL.len() { 3 } else { 1 }).collect();
    let merges = MERGES.map(|(left, right)| format!("{left} {right}")).to_vec();
    file.set("tokenizer.ggml.model", Value::Str("gpt2".to_owned()));
    file.set("tokenizer.ggml.pre", Value::Str("gpt-2".to_owned()));
    file.set("tokenizer.ggml.tokens", Value::Strs(tokens));
    file.set("tokenizer.ggml.token_type", Value::I32s(types));
    file.set("tokenizer.ggml.merges", Value::Strs(merges));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(0));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    file.set("tokenizer.chat_template", Value::Str(template.to_owned()));
}
