//! Special tokens, generation defaults and the chat template of a Hugging Face folder.

use std::path::Path;

use serde_json::Value;

use crate::error::{CheckpointError, Fault};
use crate::huggingface::{json_file, text_file};
use crate::template::ChatTemplate;
use crate::{GenerationDefaults, Tokenizer};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// The files around the weights, read once.
pub(crate) struct Settings {
    tokenizer: Value,
    generation: Value,
}

impl Settings {
    /// Reads `tokenizer_config.json` and `generation_config.json`; both may be absent.
    pub(crate) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        Ok(Self {
            tokenizer: json_file(folder, TOKENIZER_CONFIG)?.unwrap_or_default(),
            generation: json_file(folder, GENERATION_CONFIG)?.unwrap_or_default(),
        })
    }

    /// End-of-sequence ids from `generation_config.json`, else from `config.json`, and always the
    /// tokenizer's own: chat models often end turns with a token that only one of them knows.
    pub(crate) fn generation(
        &self,
        folder: &Path,
        config: &Value,
        tokenizer: &Tokenizer,
    ) -> Result<GenerationDefaults, CheckpointError> {
        let within = |name: &'static str| move |fault: Fault| fault.within(&folder.join(name));
        let limit = tokenizer.vocab_size();
        let ids = |key: &str| -> Result<Vec<u32>, CheckpointError> {
            let from_generation =
                ids(&self.generation, key, limit).map_err(within(GENERATION_CONFIG))?;
            if !from_generation.is_empty() {
                return Ok(from_generation);
            }
            ids(config, key, limit).map_err(within("config.json"))
        };
        let mut eos = ids("eos_token_id")?;
        let named = self.token("eos_token").and_then(|token| tokenizer.token_id(token));
        eos.extend(named);
        eos.sort_unstable();
        eos.dedup();
        let bos = ids("bos_token_id")?.first().copied();
        // Without sampling these numbers are left-overs that the library ignores.
        let samples = self.generation.get("do_sample").and_then(Value::as_bool) == Some(true);
        let number = |key: &str| {
            self.generation.get(key).filter(|_| samples).and_then(Value::as_f64).map(|n| n as f32)
        };
        let top_k = self.generation.get("top_k").filter(|_| samples).and_then(Value::as_u64);
        Ok(GenerationDefaults {
            eos,
            bos,
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: top_k.and_then(|k| u32::try_from(k).ok()),
        })
    }

    /// The chat template: `chat_template.jinja`, else the one in `tokenizer_config.json`.
    pub(crate) fn chat_template(
        &self,
        folder: &Path,
    ) -> Result<Option<ChatTemplate>, CheckpointError> {
        const FILE: &str = "chat_template.jinja";
        let (file, source) = match text_file(folder, FILE)? {
            Some(source) => (FILE, source),
            None => match self.named_template() {
                Some(source) => (TOKENIZER_CONFIG, source.to_owned()),
                None => return Ok(None),
            },
        };
        let token = |key: &str| self.token(key).unwrap_or_default().to_owned();
        let template = ChatTemplate::new(source, token("bos_token"), token("eos_token"));
        template
            .map(Some)
            .map_err(|source| CheckpointError::Template { file: folder.join(file), source })
    }

    /// Either one template, or a list of named ones of which "default" is meant.
    fn named_template(&self) -> Option<&str> {
        match self.tokenizer.get("chat_template")? {
            Value::String(source) => Some(source),
            Value::Array(list) => list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str()),
            _ => None,
        }
    }

    /// A special token's text, which may be wrapped in an object.
    fn token(&self, key: &str) -> Option<&str> {
        let token = self.tokenizer.get(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }
}

/// One id or a list of them, each below `limit`; none if absent or null.
fn ids(object: &Value, key: &str, limit: usize) -> Result<Vec<u32>, Fault> {
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < limit)
    };
    let found = match object.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    found.ok_or_else(|| {
        let problem = format!("is neither a token id below {limit} nor a list of such ids");
        Fault::malformed(format!("key {key}"), problem)
    })
}
