//! The files of a folder beside its weights: shape, tokenizer, chat template, suggestions.

use std::path::Path;

use rewind_checkpoint::{
    Architecture, Checkpoint, Container, Message, ModelSpec, RopeScaling, TensorName, Tokenizer,
};
use rewind_formats::Mixture;
use serde::Serialize;
use serde_json::{Value, json};

use crate::methods::archive;
use crate::methods::error::QuantizeError;

/// Text that two tokenizers are compared by.
const PROBE: &str = "The 1st café, 2024-05-17:\n\tx += don't  «日本» 🙂 \r\n\r\n  end ";

/// The one file of a tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Files that a Hugging Face folder may have, and that say the same of the quantized model.
const COPIED: [&str; 3] =
    ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// Files, their names first.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// All of them but the weights.
pub(crate) fn files(checkpoint: &Checkpoint) -> Result<Files, QuantizeError> {
    let path = checkpoint.path();
    let read = |name: &str| {
        let path = path.join(name);
        std::fs::read(&path).map_err(QuantizeError::file(&path))
    };
    let mut files = vec![("config.json", pretty(&config(checkpoint)?, path)?)];
    match checkpoint.container() {
        Container::HuggingFace => {
            files.push((TOKENIZER, read(TOKENIZER)?));
            for name in COPIED.into_iter().filter(|name| path.join(name).exists()) {
                files.push((name, read(name)?));
            }
        }
        Container::Gguf => {
            files.push((TOKENIZER, tokenizer(checkpoint)?));
            files.extend(template(checkpoint)?);
        }
    }
    Ok(files)
}

/// `tokenizer.json` of a model that has none, tried.
fn tokenizer(checkpoint: &Checkpoint) -> Result<Vec<u8>, QuantizeError> {
    let own = checkpoint.tokenizer();
    let wrong = |problem| QuantizeError::Tokenizer { path: checkpoint.path().into(), problem };
    let json = own.to_json().map_err(|error| wrong(error.to_string()))?;
    let written =
        Tokenizer::from_json(&json, own.vocab_size()).map_err(|error| wrong(error.to_string()))?;
    match difference(own, &written) {
        Some(problem) => Err(wrong(problem)),
        None => Ok(json.into_bytes()),
    }
}

/// What two tokenizers do differently; of texts, a probe of all kinds is compared.
fn difference(own: &Tokenizer, other: &Tokenizer) -> Option<String> {
    let ids = 0..own.vocab_size() as u32;
    if let Some(id) = ids.into_iter().find(|&id| own.piece(id) != other.piece(id)) {
        let [piece, found] =
            [own, other].map(|it| String::from_utf8_lossy(it.piece(id)).into_owned());
        return Some(format!("token {id} is {found:?} and not {piece:?}"));
    }
    if own.strips_leading_space() != other.strips_leading_space() {
        return Some("a space before the text is another matter to it".to_owned());
    }
    let texts = [(PROBE, false), ("", true), (PROBE, true)];
    texts.into_iter().find_map(|(text, special)| {
        let [expected, found] =
            [own, other].map(|it| it.encode(text, special).map_err(|error| error.to_string()));
        let around = if special { ", with the tokens around a prompt," } else { "" };
        (expected != found)
            .then(|| format!("{text:?}{around} becomes {found:?} and not {expected:?}"))
    })
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

/// What a GGUF file says of chats.
fn template(checkpoint: &Checkpoint) -> Result<Files, QuantizeError> {
    let Some(template) = checkpoint.chat_template() else { return Ok(Files::new()) };
    let mut settings = json!({});
    let tokens = [("bos_token", template.bos_token()), ("eos_token", template.eos_token())];
    for (key, token) in tokens.into_iter().filter(|(_, token)| !token.is_empty()) {
        settings[key] = json!(token);
    }
    Ok(vec![
        ("chat_template.jinja", template.source().as_bytes().to_vec()),
        ("tokenizer_config.json", pretty(&settings, checkpoint.path())?),
    ])
}

/// Writes a small file.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), QuantizeError> {
    archive::complete(path, |to| std::io::Write::write_all(to, content))
        .map_err(QuantizeError::file(path))
}

/// JSON as people read it. `of` is what it belongs to, to be named if it cannot be written.
pub(crate) fn pretty(value: &impl Serialize, of: &Path) -> Result<Vec<u8>, QuantizeError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(unwritable(of))?;
    text.push(b'\n');
    Ok(text)
}

/// What JSON cannot express.
pub(crate) fn unwritable(of: &Path) -> impl FnOnce(serde_json::Error) -> QuantizeError + '_ {
    |error| QuantizeError::file(of)(error.into())
}

/// Reads the folder as whoever uses it will, and compares what was not measured by any text.
pub(crate) fn check(
    folder: &Path,
    original: &Checkpoint,
    formats: &Mixture,
) -> Result<(), QuantizeError> {
    let found = Checkpoint::open(folder)?;
    let differs = |what| QuantizeError::ReadBack { path: folder.to_owned(), what };
    for tensor in original.spec().tensors() {
        let expected = match tensor {
            TensorName::Layer(layer, _) => formats.layer(layer),
            TensorName::Head if !original.spec().tied_head => formats.head(),
            _ => formats.embedding(),
        };
        let is_matrix = original.spec().shape(tensor).is_some_and(|shape| shape.len() == 2);
        if found.stored_format(tensor)? != is_matrix.then_some(expected) {
            return Err(differs("set of formats"));
        }
    }
    let turn = |role: &str| Message { role: role.into(), content: "x".into() };
    let turns = [turn("user"), turn("assistant"), turn("user")];
    let chat = |checkpoint: &Checkpoint| {
        let template = checkpoint.chat_template()?;
        Some((template.source().to_owned(), template.render(&turns, true)))
    };
    for (same, what) in [
        (found.spec() == original.spec(), "shape"),
        (found.generation() == original.generation(), "set of special tokens"),
        (difference(original.tokenizer(), found.tokenizer()).is_none(), "tokenizer"),
        (chat(&found) == chat(original), "chat template"),
    ] {
        if !same {
            return Err(differs(what));
        }
    }
    Ok(())
}
