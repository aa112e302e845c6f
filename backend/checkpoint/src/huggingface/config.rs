//! `config.json`: the shape of the model.

use serde_json::Value;

use crate::error::Fault;
use crate::{Architecture, LayerTensor, ModelSpec, Rope, RopeScaling, TensorName};

/// Reads the model's shape.
pub(crate) fn spec(config: &Value) -> Result<ModelSpec, Fault> {
    let architecture = match string(config, "model_type")? {
        Some("llama") => Architecture::Llama,
        Some("mistral") => Architecture::Mistral,
        Some("qwen2") => Architecture::Qwen2,
        Some("qwen3") => Architecture::Qwen3,
        Some(other) => {
            return Err(Fault::unsupported(
                "key model_type",
                format!("{other:?}"),
                "llama, mistral, qwen2, qwen3",
            ));
        }
        None => return Err(missing("model_type")),
    };
    refuse_variants(config, architecture)?;
    let hidden_size = whole(config, "hidden_size")?.ok_or_else(|| missing("hidden_size"))?;
    let required = |key| whole(config, key)?.ok_or_else(|| missing(key));
    let heads = required("num_attention_heads")?;
    let spec = ModelSpec {
        architecture,
        vocab_size: required("vocab_size")?,
        hidden_size,
        intermediate_size: required("intermediate_size")?,
        layers: required("num_hidden_layers")?,
        heads,
        kv_heads: whole(config, "num_key_value_heads")?.unwrap_or(heads),
        head_dim: match whole(config, "head_dim")? {
            Some(head_dim) => head_dim,
            // The library's own default for Qwen3.
            None if architecture == Architecture::Qwen3 => 128,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        },
        rms_epsilon: float(config, "rms_norm_eps")?.ok_or_else(|| missing("rms_norm_eps"))?,
        rope: rope(config)?,
        max_positions: max_positions(config)?,
        tied_head: boolean(config, "tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
    };
    spec.validate()?;
    Ok(spec)
}

/// What the safetensors files of Hugging Face's Llama, Mistral and Qwen call a tensor.
pub fn file_name(tensor: TensorName) -> String {
    match tensor {
        TensorName::Embedding => "model.embed_tokens.weight".to_owned(),
        TensorName::FinalNorm => "model.norm.weight".to_owned(),
        TensorName::Head => "lm_head.weight".to_owned(),
        TensorName::Layer(layer, tensor) => {
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
    }
}

/// Settings of these families that change the computation in ways Rewind does not follow.
fn refuse_variants(config: &Value, architecture: Architecture) -> Result<(), Fault> {
    let activation = string(config, "hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(Fault::unsupported("key hidden_act", format!("{activation:?}"), "silu"));
    }
    // Qwen2 has its biases without being asked, and no switch for them.
    let switches: &[&str] = match architecture {
        Architecture::Qwen2 => &["mlp_bias"],
        _ => &["attention_bias", "mlp_bias"],
    };
    for key in switches {
        if boolean(config, key)? == Some(true) {
            return Err(Fault::unsupported(format!("key {key}"), "true", "false"));
        }
    }
    let rotated = float(config, "partial_rotary_factor")?.unwrap_or(1.0);
    if rotated != 1.0 {
        return Err(Fault::unsupported("key partial_rotary_factor", rotated.to_string(), "1"));
    }
    Ok(())
}

fn rope(config: &Value) -> Result<Rope, Fault> {
    // Newer files gather everything under `rope_parameters`.
    let object = |key| config.get(key).filter(|value| !value.is_null()).map(|value| (key, value));
    let found = object("rope_parameters").or_else(|| object("rope_scaling"));
    let mut theta = float(config, "rope_theta")?;
    let mut scaling = RopeScaling::None;
    if let Some((key, found)) = found {
        if !found.is_object() {
            return Err(wrong(key, found, "an object"));
        }
        theta = float(found, "rope_theta")?.or(theta);
        scaling = rope_scaling(key, found)?;
    }
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
}

fn rope_scaling(at: &str, found: &Value) -> Result<RopeScaling, Fault> {
    let required = |key: &str| {
        float(found, key)?
            .ok_or_else(|| Fault::malformed(format!("key {at}"), format!("has no {key:?}")))
    };
    let ty = match string(found, "rope_type")? {
        Some(ty) => ty,
        None => string(found, "type")?.unwrap_or("default"),
    };
    match ty {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: required("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_frequency_factor: required("low_freq_factor")?,
            high_frequency_factor: required("high_freq_factor")?,
            original_context: required("original_max_position_embeddings")?,
        }),
        other => Err(Fault::unsupported(
            format!("key {at}.rope_type"),
            format!("{other:?}"),
            "default, linear, llama3",
        )),
    }
}

/// A sequence no longer than the sliding window never notices it, so the window bounds the context.
fn max_positions(config: &Value) -> Result<usize, Fault> {
    let key = "max_position_embeddings";
    let positions = whole(config, key)?.ok_or_else(|| missing(key))?;
    // Qwen files name a window and switch it off.
    let used = boolean(config, "use_sliding_window")?.unwrap_or(true);
    Ok(match whole(config, "sliding_window")? {
        Some(window) if used => positions.min(window),
        _ => positions,
    })
}

fn missing(key: &str) -> Fault {
    Fault::malformed(format!("key {key}"), "is missing")
}

fn wrong(key: &str, value: &Value, expected: &str) -> Fault {
    let mut shown = value.to_string();
    if shown.chars().count() > 80 {
        shown = shown.chars().take(80).chain("…".chars()).collect();
    }
    Fault::malformed(format!("key {key}"), format!("is {shown}, not {expected}"))
}

/// A value by key; null counts as absent.
fn value<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn whole(object: &Value, key: &str) -> Result<Option<usize>, Fault> {
    let Some(value) = value(object, key) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.map(Some).ok_or_else(|| wrong(key, value, "a whole number from 0 up"))
}

fn float(object: &Value, key: &str) -> Result<Option<f32>, Fault> {
    let Some(value) = value(object, key) else { return Ok(None) };
    value.as_f64().map(|number| Some(number as f32)).ok_or_else(|| wrong(key, value, "a number"))
}

fn boolean(object: &Value, key: &str) -> Result<Option<bool>, Fault> {
    let Some(value) = value(object, key) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| wrong(key, value, "true or false"))
}

fn string<'a>(object: &'a Value, key: &str) -> Result<Option<&'a str>, Fault> {
    let Some(value) = value(object, key) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| wrong(key, value, "a string"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "tie_word_embeddings": true,
            "hidden_act": "silu", "rope_theta": 500000.0,
        })
    }

    fn with(changes: Value) -> Result<ModelSpec, Fault> {
        let mut config = llama();
        let object = config.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        spec(&config)
    }

    #[test]
    fn a_plain_llama() {
        let spec = spec(&llama()).unwrap();
        assert_eq!(spec.architecture, Architecture::Llama);
        assert_eq!((spec.heads, spec.kv_heads, spec.head_dim), (4, 2, 16));
        assert_eq!(spec.rope, Rope { theta: 500_000.0, scaling: RopeScaling::None });
        assert!(spec.tied_head && !spec.qkv_bias && !spec.qk_norm);
    }

    #[test]
    fn families_differ_by_flags() {
        let qwen2 = with(json!({"model_type": "qwen2", "attention_bias": true})).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.qk_norm);
        let qwen3 = with(json!({"model_type": "qwen3"})).unwrap();
        assert!(!qwen3.qkv_bias && qwen3.qk_norm);
        assert_eq!(qwen3.head_dim, 128);
        let mistral = with(json!({"model_type": "mistral", "head_dim": 32})).unwrap();
        assert_eq!((mistral.architecture, mistral.head_dim), (Architecture::Mistral, 32));
    }

    #[test]
    fn rope_scaling_in_every_spelling() {
        let scaling = |changes| with(changes).unwrap().rope.scaling;
        assert_eq!(scaling(json!({"rope_scaling": null})), RopeScaling::None);
        assert_eq!(scaling(json!({"rope_scaling": {"rope_type": "default"}})), RopeScaling::None);
        assert_eq!(
            scaling(json!({"rope_scaling": {"type": "linear", "factor": 4}})),
            RopeScaling::Linear { factor: 4.0 }
        );
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 1000.0,
        });
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(scaling(json!({"rope_scaling": llama3})), expected);
        let newer = with(json!({"rope_parameters": llama3})).unwrap().rope;
        assert_eq!(newer, Rope { theta: 1000.0, scaling: expected });
    }

    #[test]
    fn sliding_windows_bound_the_context() {
        let positions = |changes| with(changes).unwrap().max_positions;
        assert_eq!(positions(json!({"sliding_window": null})), 512);
        assert_eq!(positions(json!({"sliding_window": 4096})), 512);
        assert_eq!(positions(json!({"sliding_window": 128})), 128);
        assert_eq!(positions(json!({"sliding_window": 128, "use_sliding_window": false})), 512);
    }

    #[test]
    fn faults_name_the_key() {
        for (changes, key) in [
            (json!({"model_type": "gpt_bigcode"}), "model_type"),
            (json!({"model_type": null}), "model_type"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "rope_scaling.rope_type"),
            (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "scaling factor"),
            (json!({"rope_scaling": 3}), "rope_scaling"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (json!({"hidden_size": null}), "hidden_size"),
            (json!({"hidden_size": -64}), "hidden_size"),
            (json!({"hidden_size": 64.5}), "hidden_size"),
            (json!({"vocab_size": 1u64 << 40}), "vocabulary size"),
            (json!({"num_attention_heads": 0}), "attention heads"),
            (json!({"num_key_value_heads": 3}), "key and value heads"),
            (json!({"num_key_value_heads": 0}), "key and value heads"),
            (json!({"head_dim": 5}), "head size"),
            (json!({"rms_norm_eps": -1e-5}), "epsilon"),
            (json!({"rms_norm_eps": "small"}), "rms_norm_eps"),
            (json!({"rope_theta": 0}), "RoPE base"),
            (json!({"num_hidden_layers": 1_000_000}), "layers"),
            (json!({"max_position_embeddings": 0}), "context length"),
            (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings"),
        ] {
            let shown = changes.to_string();
            match with(changes).unwrap_err() {
                Fault::Malformed { at, .. } | Fault::Unsupported { at, .. } => {
                    assert!(at.contains(key), "{shown}: {at}");
                }
            }
        }
    }
}
