//! The files of a folder beside its weights: shape, tokenizer, chat template, suggestions.

use std::path::Path;

use rewind_checkpoint::{
    Architecture, ChatTemplate, Checkpoint, Container, Message, ModelSpec, RopeScaling,
};
use serde_json::{Value, json};

use crate::archive;
use crate::error::QuantizeError;

/// Text that two tokenizers are compared by.
const PROBE: &str = "The 1st café, 2024-05-17:\n\tx += don't  «日本» 🙂 \r\n\r\n  end ";

/// Files that a Hugging Face folder may have, and that say the same of the quantized model.
const COPIED: [&str; 3] =
    ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// Files, their names first.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// All of them but the weights.
pub(crate) fn files(
    checkpoint: &Checkpoint,
    tokenizer: Option<&Path>,
) -> Result<Files, QuantizeError> {
    let path = checkpoint.path();
    let read = |path: &Path| std::fs::read(path).map_err(QuantizeError::file(path));
    let json_of = match (tokenizer, checkpoint.container()) {
        (Some(tokenizer), _) => tokenizer.to_owned(),
        (None, Container::HuggingFace) => path.join("tokenizer.json"),
        (None, Container::Gguf) => {
            return Err(QuantizeError::NoTokenizer { path: path.to_owned() });
        }
    };
    let tokenizer = read(&json_of)?;
    let names = compare(checkpoint, &json_of, &tokenizer)?;
    let mut files =
        vec![("config.json", pretty(&config(checkpoint)?)), ("tokenizer.json", tokenizer)];
    match checkpoint.container() {
        Container::HuggingFace => {
            for name in COPIED.into_iter().filter(|name| path.join(name).exists()) {
                files.push((name, read(&path.join(name))?));
            }
        }
        Container::Gguf => files.extend(suggestions(checkpoint, &names)),
    }
    Ok(files)
}

/// Refuses a tokenizer that is not the model's.
fn compare(
    checkpoint: &Checkpoint,
    path: &Path,
    json: &[u8],
) -> Result<tokenizers::Tokenizer, QuantizeError> {
    let wrong = |problem: String| QuantizeError::Tokenizer { path: path.to_owned(), problem };
    let other = tokenizers::Tokenizer::from_bytes(json).map_err(|e| wrong(e.to_string()))?;
    for (text, special) in [(PROBE, false), ("", true), (PROBE, true)] {
        let own = checkpoint.tokenizer().encode(text, special).map_err(|e| wrong(e.to_string()))?;
        let encoding = other.encode_fast(text, special).map_err(|e| wrong(e.to_string()))?;
        if own != encoding.get_ids() {
            let around = if special { ", with the tokens around a prompt," } else { "" };
            return Err(wrong(format!(
                "{text:?}{around} becomes {:?}; the model's own makes {own:?} of it",
                encoding.get_ids()
            )));
        }
    }
    Ok(other)
}

/// What the reader makes the same [`ModelSpec`] of.
fn config(checkpoint: &Checkpoint) -> Result<Value, QuantizeError> {
    let spec: &ModelSpec = checkpoint.spec();
    let (model_type, class) = match spec.architecture {
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Mistral => ("mistral", "MistralForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_epsilon,
        "rope_theta": spec.rope.theta,
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tied_head,
        "quantization_config": {"quant_method": "rewind", "version": 1},
    });
    match &spec.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            config["rope_scaling"] = json!({"rope_type": "linear", "factor": factor});
        }
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            config["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_frequency_factor,
                "high_freq_factor": high_frequency_factor,
                "original_max_position_embeddings": original_context,
            });
        }
        RopeScaling::Divisors(_) => {
            return Err(QuantizeError::Config { what: "a divisor for each rotary frequency" });
        }
    }
    let generation = checkpoint.generation();
    if !generation.eos.is_empty() {
        config["eos_token_id"] = json!(generation.eos);
    }
    if let Some(bos) = generation.bos {
        config["bos_token_id"] = json!(bos);
    }
    Ok(config)
}

/// What a GGUF file says of special tokens, and its template.
fn suggestions(checkpoint: &Checkpoint, names: &tokenizers::Tokenizer) -> Files {
    let generation = checkpoint.generation();
    let text = |id: u32| names.id_to_token(id).unwrap_or_default();
    let bos = generation.bos.map(text).unwrap_or_default();
    // Of several ends, the one that the template was compiled with: it renders the same.
    let mut eos = generation.eos.iter().copied().map(text).chain([String::new()]);
    let mut files = Vec::new();
    let eos = match checkpoint.chat_template() {
        None => eos.next(),
        Some(template) => {
            files.push(("chat_template.jinja", template.source().as_bytes().to_vec()));
            let turn = |role: &str| Message { role: role.into(), content: "x".into() };
            let turns = [turn("user"), turn("assistant"), turn("user")];
            let rendered = template.render(&turns, true).ok();
            eos.find(|eos| {
                ChatTemplate::new(template.source().to_owned(), bos.clone(), eos.clone())
                    .is_ok_and(|other| other.render(&turns, true).ok() == rendered)
            })
        }
    };
    let mut settings = json!({});
    for (key, token) in [("bos_token", Some(bos)), ("eos_token", eos)] {
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            settings[key] = json!(token);
        }
    }
    files.push(("tokenizer_config.json", pretty(&settings)));
    files
}

/// Writes a small file.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), QuantizeError> {
    archive::complete(path, |to| std::io::Write::write_all(to, content))
        .map_err(QuantizeError::file(path))
}

/// As people read it.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

/// Reads the folder as whoever uses it will, and compares what does not depend on the weights.
pub(crate) fn check(folder: &Path, original: &Checkpoint) -> Result<(), QuantizeError> {
    let found = Checkpoint::open(folder)?;
    let source = |checkpoint: &Checkpoint| {
        checkpoint.chat_template().map(|template| template.source().to_owned())
    };
    for (same, what) in [
        (found.spec() == original.spec(), "shape"),
        (found.generation() == original.generation(), "set of special tokens"),
        (source(&found) == source(original), "chat template"),
    ] {
        if !same {
            return Err(QuantizeError::ReadBack { path: folder.to_owned(), what });
        }
    }
    Ok(())
}
