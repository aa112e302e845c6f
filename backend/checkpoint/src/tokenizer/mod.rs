//! Text to token ids and back, whatever file the vocabulary came from.
//!
//! Encoding is the `tokenizers` crate's. Decoding is a table: every token stands for fixed bytes, so
//! the text of a sequence is the concatenation of its tokens' [pieces](Tokenizer::piece), and a
//! stream needs no state but the UTF-8 tail. Rejected: the crate's decoder, which works on whole
//! sequences and replaces incomplete UTF-8.

mod pieces;

use std::collections::BTreeSet;
use std::fmt;

pub(crate) use pieces::{Alphabet, Pieces};
use serde_json::json;

/// Keys of `tokenizer.json`.
const DECODER: &str = "decoder";
const POST_PROCESSOR: &str = "post_processor";

/// Tokenizer of a model.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    around: Around,
    vocab_size: usize,
    strips_leading_space: bool,
}

/// Tokens that go around a prompt, where the wrapped tokenizer does not add them itself.
#[derive(Clone, Default)]
pub(crate) struct Around {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

impl Tokenizer {
    /// Token ids of `text`. Special tokens written in the text become themselves. `add_special` puts
    /// around it what the model was trained to see around a prompt: a begin-of-sequence token, often
    /// nothing.
    ///
    /// # Errors
    ///
    /// If the text maps to an id beyond the model's embedding, or cannot be mapped at all.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(TokenizerError::Encode)?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special {
            ids = [&self.around.before[..], &ids, &self.around.after].concat();
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&id) => Err(TokenizerError::OutOfVocabulary { id, vocab_size: self.vocab_size }),
            None => Ok(ids),
        }
    }

    /// The bytes that a token adds to the text. Empty for special tokens and for ids that stand for
    /// nothing. A piece need not be valid UTF-8 by itself.
    pub fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// Length of the longest piece, in bytes.
    pub fn max_piece_len(&self) -> usize {
        self.pieces.max_len()
    }

    /// Text of a whole sequence. Bytes that are not valid UTF-8 become U+FFFD, and the leading space
    /// that [encoding adds](Self::strips_leading_space) is taken off.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.piece(id)).copied().collect();
        let text = match bytes.strip_prefix(b" ") {
            Some(rest) if self.strips_leading_space => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Whether encoding puts a space before the text, as SentencePiece vocabularies do. The pieces of
    /// a *whole* sequence then start with a space that the text did not have; those of a continuation
    /// do not.
    pub fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    /// Number of ids of the model: one more than the largest that [`encode`](Self::encode) returns.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its text in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token).filter(|&id| (id as usize) < self.vocab_size)
    }

    /// The text of a `tokenizer.json` that [`from_json`](Self::from_json) makes the same tokenizer of, whatever file
    /// this one came from.
    ///
    /// # Errors
    ///
    /// If the wrapped tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        let failed = |error: serde_json::Error| TokenizerError::Load(Box::new(error));
        let mut json = serde_json::to_value(&self.inner).map_err(failed)?;
        if json[DECODER].is_null() {
            json[DECODER] = self.sentence_piece_decoder();
        }
        let Around { before, after } = &self.around;
        if !(before.is_empty() && after.is_empty()) {
            json[POST_PROCESSOR] = self.template(before, after);
        }
        serde_json::to_string(&json).map_err(failed)
    }

    /// What tokens of SentencePiece vocabularies become text by. The vocabularies of bytes bring theirs.
    fn sentence_piece_decoder(&self) -> serde_json::Value {
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": pieces::SPACE.to_string()}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.strips_leading_space {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }

    /// Tokens around a prompt as a post-processor.
    fn template(&self, before: &[u32], after: &[u32]) -> serde_json::Value {
        let text = |id: u32| self.inner.id_to_token(id).unwrap_or_default();
        let special = |&id: &u32| json!({"SpecialToken": {"id": text(id), "type_id": 0}});
        let sequence = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
        let around = |sequences: Vec<serde_json::Value>| -> Vec<_> {
            before.iter().map(special).chain(sequences).chain(after.iter().map(special)).collect()
        };
        let tokens: serde_json::Map<_, _> = before
            .iter()
            .chain(after)
            .map(|&id| (text(id), json!({"id": text(id), "ids": [id], "tokens": [text(id)]})))
            .collect();
        json!({
            "type": "TemplateProcessing",
            "single": around(vec![sequence("A", 0)]),
            "pair": around(vec![sequence("A", 0), sequence("B", 1)]),
            "special_tokens": tokens,
        })
    }

    /// A tokenizer whose pieces are known. `vocab_size` is that of the model.
    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        pieces: Pieces,
        around: Around,
        vocab_size: usize,
        strips_leading_space: bool,
    ) -> Result<Self, TokenizerError> {
        // Cutting and padding are the caller's business, whatever the file says.
        inner.with_truncation(None).map_err(TokenizerError::Load)?;
        inner.with_padding(None);
        Ok(Self { inner, pieces, around, vocab_size, strips_leading_space })
    }

    /// Reads the text of a `tokenizer.json`. `vocab_size` is that of the model.
    ///
    /// # Errors
    ///
    /// If it is none, contradicts itself, or its tokens stand for no fixed bytes.
    pub fn from_json(json: &str, vocab_size: usize) -> Result<Self, TokenizerError> {
        let inner = parse(json)?;
        let decoder = match inner.get_decoder() {
            Some(decoder) => serde_json::to_value(decoder)
                .map_err(|error| TokenizerError::Load(Box::new(error)))?,
            None => serde_json::Value::Null,
        };
        let decoding = Decoding::of(&decoder)?;
        let added = inner.get_added_tokens_decoder();
        let mut pieces = Pieces::with_capacity(vocab_size);
        let alphabet = Alphabet::new();
        for id in 0..vocab_size as u32 {
            let special = added.get(&id).is_some_and(|token| token.special);
            match inner.id_to_token(id) {
                Some(token) if !special => match decoding.alphabet {
                    DecodingAlphabet::Bytes => pieces.push_byte_level(&token, &alphabet),
                    DecodingAlphabet::SentencePiece => pieces.push_sentence_piece(&token),
                },
                _ => pieces.push_nothing(),
            }
        }
        Self::new(inner, pieces, Around::default(), vocab_size, decoding.strips_leading_space)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// Why a tokenizer could not be loaded, or text not tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is no tokenizer.
    #[error("the tokenizer does not load: {0}")]
    Load(#[source] tokenizers::Error),
    /// Tokens that do not stand for fixed bytes.
    #[error(
        "the tokenizer's decoder ({found}) is not supported; supported are byte-level BPE and \
         SentencePiece vocabularies"
    )]
    Decoder {
        /// Types of its decoders.
        found: String,
    },
    /// The text has no tokens.
    #[error("the text cannot be tokenized: {0}")]
    Encode(#[source] tokenizers::Error),
    /// The vocabulary is larger than the embedding.
    #[error("the text contains token {id}, but the model has only {vocab_size}")]
    OutOfVocabulary {
        /// The token.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}

/// Parses a `tokenizer.json` and tries it once.
///
/// The crate trusts such files further than Rewind does: some inconsistent ones parse and then
/// panic, the first time a prompt is encoded. Here that is an error of the file.
fn parse(json: &str) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let attempt = std::panic::catch_unwind(|| -> Result<_, tokenizers::Error> {
        let inner: tokenizers::Tokenizer = json.parse()?;
        inner.encode_fast("The 1st \u{e9}\n", true)?;
        Ok(inner)
    });
    let panicked = || "its parts contradict each other".into();
    attempt.unwrap_or_else(|_| Err(panicked())).map_err(TokenizerError::Load)
}

/// How `tokenizer.json` says that tokens become text.
struct Decoding {
    alphabet: DecodingAlphabet,
    strips_leading_space: bool,
}

enum DecodingAlphabet {
    Bytes,
    SentencePiece,
}

impl Decoding {
    fn of(decoder: &serde_json::Value) -> Result<Self, TokenizerError> {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        let types: BTreeSet<&str> = steps.iter().filter_map(|step| text(step, "type")).collect();
        let alphabet = if types.contains("ByteLevel") {
            DecodingAlphabet::Bytes
        } else if types.contains("ByteFallback") || types.contains("Metaspace") {
            DecodingAlphabet::SentencePiece
        } else {
            let found = types.into_iter().collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "none".to_owned() } else { found };
            return Err(TokenizerError::Decoder { found });
        };
        let strips_leading_space = steps.iter().any(|step| match text(step, "type") {
            Some("Strip") => {
                text(step, "content") == Some(" ")
                    && step.get("start").and_then(serde_json::Value::as_u64).unwrap_or(0) > 0
            }
            Some("Metaspace") => text(step, "prepend_scheme") != Some("never"),
            _ => false,
        });
        Ok(Self { alphabet, strips_leading_space })
    }
}

fn text<'a>(step: &'a serde_json::Value, key: &str) -> Option<&'a str> {
    step.get(key)?.as_str()
}

fn flatten<'a>(decoder: &'a serde_json::Value, steps: &mut Vec<&'a serde_json::Value>) {
    match decoder.get("decoders").and_then(serde_json::Value::as_array) {
        Some(decoders) => decoders.iter().for_each(|decoder| flatten(decoder, steps)),
        None => steps.push(decoder),
    }
}
