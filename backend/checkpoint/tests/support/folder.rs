//! Writes Hugging Face folders.

use std::path::Path;

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, TensorName};
use serde_json::{Map, Value, json};

use super::tiny::{Element, MERGES, SPECIAL, vocabulary, weights};

/// A folder in the making. Fields are open, so that tests can break them.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    pub(crate) tokenizer_config: Value,
    pub(crate) generation_config: Option<Value>,
    pub(crate) tensors: Vec<Tensor>,
    /// Files that the tensors are spread over.
    pub(crate) shards: usize,
    /// What the header of each file says besides.
    pub(crate) metadata: Map<String, Value>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn hf_name(name: TensorName) -> String {
    let TensorName::Layer(layer, tensor) = name else {
        return match name {
            TensorName::Embedding => "model.embed_tokens.weight",
            TensorName::FinalNorm => "model.norm.weight",
            _ => "lm_head.weight",
        }
        .to_owned();
    };
    let tensor = match tensor {
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
    format!("model.layers.{layer}.{tensor}")
}

impl Folder {
    pub(crate) fn new(spec: &ModelSpec, element: Element) -> Self {
        let model_type = match spec.architecture {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        };
        let config = json!({
            "model_type": model_type,
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "rms_norm_eps": spec.rms_epsilon,
            "rope_theta": spec.rope.theta,
            "max_position_embeddings": spec.max_positions,
            "tie_word_embeddings": spec.tied_head,
            "hidden_act": "silu",
            "eos_token_id": 1,
        });
        let dtype = match element {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
        };
        let tensors = spec
            .tensors()
            .filter(|&name| !(name == TensorName::Head && spec.tied_head))
            .map(|name| Tensor {
                name: hf_name(name),
                dtype,
                shape: spec.shape(name).unwrap(),
                data: element.bytes(&weights(spec, name)),
            })
            .collect();
        Self {
            config,
            tokenizer: tokenizer(),
            tokenizer_config: json!({"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[1]}}),
            generation_config: None,
            tensors,
            shards: 1,
            metadata: Map::new(),
        }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub(crate) fn write(&self, folder: &Path) {
        let json = |name: &str, value: &Value| {
            std::fs::write(folder.join(name), value.to_string()).unwrap();
        };
        json("config.json", &self.config);
        json("tokenizer.json", &self.tokenizer);
        json("tokenizer_config.json", &self.tokenizer_config);
        if let Some(generation) = &self.generation_config {
            json("generation_config.json", generation);
        }
        if self.shards == 1 {
            std::fs::write(
                folder.join("model.safetensors"),
                safetensors_with(&self.tensors, &self.metadata),
            )
            .unwrap();
            return;
        }
        let mut places = Map::new();
        for (shard, tensors) in
            self.tensors.chunks(self.tensors.len().div_ceil(self.shards)).enumerate()
        {
            let name = format!("model-{shard}.safetensors");
            std::fs::write(folder.join(&name), safetensors_with(tensors, &self.metadata)).unwrap();
            for tensor in tensors {
                places.insert(tensor.name.clone(), name.clone().into());
            }
        }
        json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": places}));
    }
}

pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    safetensors_with(tensors, &Map::new())
}

fn safetensors_with(tensors: &[Tensor], metadata: &Map<String, Value>) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), metadata.clone().into());
    }
    let mut offset = 0;
    for Tensor { name, dtype, shape, data } in tensors {
        let offsets = [offset, offset + data.len()];
        offset = offsets[1];
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    tensors.iter().for_each(|tensor| out.extend(&tensor.data));
    out
}

/// The vocabulary of [`super::tiny`] with GPT-2's rules and a begin token before prompts.
fn tokenizer() -> Value {
    let vocab: Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let special: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]},
            },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": MERGES.map(|(left, right)| json!([left, right])),
        },
    })
}
