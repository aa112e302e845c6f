//! The tokenizer inside a GGUF file, rebuilt for the `tokenizers` crate.
//!
//! GGUF stores a vocabulary and the name of its pre-tokenizer, not the rules themselves; those are
//! part of whatever reads it. The rules here are those of the Hugging Face tokenizers that the
//! files were converted from.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior};

use crate::error::Fault;
use crate::gguf::Keys;
use crate::tokenizer::{Alphabet, Around, Pieces};
use crate::{GenerationDefaults, Tokenizer};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// Longest token, in bytes. The merges of a SentencePiece vocabulary are found by cutting tokens in
/// every place, so long ones would take quadratic time.
const MAX_TOKEN: usize = 4096;

/// Texts of tokens that end a turn. Files often name only one of a model's, or that of the base
/// model.
const ENDS_OF_TURN: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
];

/// What a token is, by GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown, control, unused: no part of any text.
    Special,
    UserDefined,
    Byte,
}

struct Token<'a> {
    text: &'a str,
    kind: Kind,
}

/// Builds the tokenizer. `vocab_size` is that of the model.
pub(crate) fn tokenizer(keys: &Keys, vocab_size: usize) -> Result<Tokenizer, Fault> {
    let tokens = tokens(keys, vocab_size)?;
    let ids = ids_by_text(&tokens)?;
    match keys.str(MODEL)? {
        "gpt2" => byte_level(keys, &tokens, ids, vocab_size),
        "llama" => sentence_piece(keys, &tokens, ids, vocab_size),
        other => Err(Fault::unsupported(
            format!("key {MODEL}"),
            format!("{other:?}"),
            "gpt2 (byte-level BPE), llama (SentencePiece BPE)",
        )),
    }
}

/// The special tokens that the file names.
pub(crate) fn generation(keys: &Keys, vocab_size: usize) -> Result<GenerationDefaults, Fault> {
    let id = |key: &str| -> Result<Option<u32>, Fault> {
        match keys.optional_u32(key)? {
            Some(id) if id as usize >= vocab_size => Err(Fault::malformed(
                format!("key {key}"),
                format!("is {id}, but the model has only {vocab_size} tokens"),
            )),
            id => Ok(id),
        }
    };
    let mut eos = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(id(&format!("tokenizer.ggml.{key}"))?);
    }
    for (id, token) in tokens(keys, vocab_size)?.iter().enumerate() {
        if token.kind == Kind::Special && ENDS_OF_TURN.contains(&token.text) {
            eos.push(id as u32);
        }
    }
    eos.sort_unstable();
    eos.dedup();
    Ok(GenerationDefaults {
        eos,
        bos: id("tokenizer.ggml.bos_token_id")?,
        ..GenerationDefaults::default()
    })
}

/// Text of the token under `key`; empty if there is none.
pub(crate) fn token_text(keys: &Keys, key: &str) -> Result<String, Fault> {
    let Some(id) = keys.optional_usize(key)? else { return Ok(String::new()) };
    let bytes = keys.strings(TOKENS)?.get(id).map_or(&[][..], |bytes| bytes);
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn tokens(keys: &Keys, vocab_size: usize) -> Result<Vec<Token<'_>>, Fault> {
    let texts = keys.strings(TOKENS)?;
    let at = || format!("key {TOKENS}");
    if texts.is_empty() || texts.len() > vocab_size {
        return Err(Fault::malformed(
            at(),
            format!("has {} tokens; the model has {vocab_size}", texts.len()),
        ));
    }
    let kinds = match keys.get(TYPES) {
        None => None,
        Some(_) => Some(keys.integers(TYPES)?),
    };
    if let Some(kinds) = kinds
        && kinds.len() != texts.len()
    {
        return Err(Fault::malformed(
            format!("key {TYPES}"),
            format!("has {} entries for {} tokens", kinds.len(), texts.len()),
        ));
    }
    let mut tokens = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let fault = |problem: String| Fault::malformed(at(), format!("entry {id} {problem}"));
        let kind = match kinds.map_or(1, |kinds| kinds[id]) {
            1 => Kind::Normal,
            2 | 3 | 5 => Kind::Special,
            4 => Kind::UserDefined,
            6 => Kind::Byte,
            other => return Err(fault(format!("has type {other}; 1 to 6 are known"))),
        };
        if text.len() > MAX_TOKEN {
            return Err(fault(format!("has {} bytes, more than {MAX_TOKEN}", text.len())));
        }
        let text = str::from_utf8(text).map_err(|_| fault("is not UTF-8".to_owned()))?;
        tokens.push(Token { text, kind });
    }
    Ok(tokens)
}

fn ids_by_text(tokens: &[Token<'_>]) -> Result<Vocab, Fault> {
    let mut ids = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(earlier) = ids.insert(token.text.to_owned(), id as u32) {
            let problem = format!("entry {id} repeats entry {earlier}, {:?}", token.text);
            return Err(Fault::malformed(format!("key {TOKENS}"), problem));
        }
    }
    Ok(ids)
}

fn byte_level(
    keys: &Keys,
    tokens: &[Token<'_>],
    ids: Vocab,
    vocab_size: usize,
) -> Result<Tokenizer, Fault> {
    let rules = Rules::named(keys.str(PRE)?)?;
    let mut merges = Merges::new();
    for (rank, merge) in keys.strings(MERGES)?.iter().enumerate() {
        let pair = str::from_utf8(merge).ok().and_then(|merge| merge.split_once(' '));
        let Some((left, right)) = pair else {
            return Err(Fault::malformed(
                format!("key {MERGES}"),
                format!("entry {rank} is not two tokens with a space between"),
            ));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(rules.whole_words);
    let model =
        model.build().map_err(|e| Fault::malformed(format!("key {MERGES}"), e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(rules.pre_tokenizer()?));
    if rules.compose {
        inner.with_normalizer(Some(NFC));
    }
    inner.with_decoder(Some(ByteLevel::default()));
    let alphabet = Alphabet::new();
    let mut pieces = Pieces::with_capacity(tokens.len());
    for token in tokens {
        match token.kind {
            Kind::Special => pieces.push_nothing(),
            _ => pieces.push_byte_level(token.text, &alphabet),
        }
    }
    let defaults = Defaults { adds_bos: rules.adds_bos, leading_space: false };
    finish(keys, inner, tokens, pieces, defaults, vocab_size)
}

fn sentence_piece(
    keys: &Keys,
    tokens: &[Token<'_>],
    ids: Vocab,
    vocab_size: usize,
) -> Result<Tokenizer, Fault> {
    let scores = keys.floats(SCORES)?;
    if scores.len() != tokens.len() {
        return Err(Fault::malformed(
            format!("key {SCORES}"),
            format!("has {} entries for {} tokens", scores.len(), tokens.len()),
        ));
    }
    let merges = merges_by_score(tokens, scores, &ids);
    let unknown = token_text(keys, "tokenizer.ggml.unknown_token_id")?;
    let mut model = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if !unknown.is_empty() {
        model = model.unk_token(unknown);
    }
    let model =
        model.build().map_err(|e| Fault::malformed(format!("key {TOKENS}"), e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    let leading_space = keys.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = Replace::new(" ", "▁").map_err(|e| Fault::malformed(TOKENS, e.to_string()))?;
    let mut normalizers: Vec<NormalizerWrapper> = vec![];
    if leading_space {
        normalizers.push(Prepend::new("▁".to_owned()).into());
    }
    normalizers.push(spaces.into());
    inner.with_normalizer(Some(Normalizers::new(normalizers)));
    let mut pieces = Pieces::with_capacity(tokens.len());
    for token in tokens {
        match token.kind {
            Kind::Special => pieces.push_nothing(),
            _ => pieces.push_sentence_piece(token.text),
        }
    }
    finish(keys, inner, tokens, pieces, Defaults { adds_bos: true, leading_space }, vocab_size)
}

/// SentencePiece joins the neighbours whose union scores best. As merges: every cut of every token
/// into two others, best token first.
fn merges_by_score(tokens: &[Token<'_>], scores: &[f64], ids: &Vocab) -> Merges {
    let plain = |text: &str| {
        let id = *ids.get(text)?;
        (tokens[id as usize].kind == Kind::Normal).then_some(id)
    };
    let mut order: Vec<usize> =
        (0..tokens.len()).filter(|&id| tokens[id].kind == Kind::Normal).collect();
    // A stable sort: equal scores go by id.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut merges = Merges::new();
    for id in order {
        let text = tokens[id].text;
        // Of several cuts, the one with the longest left part first.
        for (at, _) in text.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let (left, right) = text.split_at(at);
            if plain(left).is_some() && plain(right).is_some() {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    merges
}

/// Special tokens, and those around a prompt.
fn finish(
    keys: &Keys,
    mut inner: tokenizers::Tokenizer,
    tokens: &[Token<'_>],
    pieces: Pieces,
    defaults: Defaults,
    vocab_size: usize,
) -> Result<Tokenizer, Fault> {
    let of_kind = |kind: Kind, special: bool| -> Vec<AddedToken> {
        tokens
            .iter()
            .filter(|token| token.kind == kind && !token.text.is_empty())
            .map(|token| AddedToken::from(token.text, special).normalized(false))
            .collect()
    };
    inner.add_special_tokens(&of_kind(Kind::Special, true));
    inner.add_tokens(&of_kind(Kind::UserDefined, false));
    let around = |switch: &str, by_default: bool, id: &str| -> Result<Vec<u32>, Fault> {
        let (switch, id) = (format!("tokenizer.ggml.{switch}"), format!("tokenizer.ggml.{id}"));
        if !keys.optional_bool(&switch)?.unwrap_or(by_default) {
            return Ok(Vec::new());
        }
        match keys.optional_u32(&id)? {
            Some(id) => Ok(vec![id]),
            None => Err(Fault::malformed(format!("key {id}"), "is missing, but prompts need it")),
        }
    };
    let around = Around {
        before: around("add_bos_token", defaults.adds_bos, "bos_token_id")?,
        after: around("add_eos_token", false, "eos_token_id")?,
    };
    Tokenizer::new(inner, pieces, around, vocab_size, defaults.leading_space)
        .map_err(|error| Fault::malformed(format!("key {TOKENS}"), error.to_string()))
}

/// What holds where the file is silent, and what follows from the model.
struct Defaults {
    adds_bos: bool,
    leading_space: bool,
}

/// How a byte-level vocabulary cuts text into words before merging.
struct Rules {
    words: Words,
    /// Unicode composition (NFC) first.
    compose: bool,
    /// A word that is a token is taken whole, whatever the merges would make of it.
    whole_words: bool,
    adds_bos: bool,
}

enum Words {
    /// GPT-2's expression, after cutting out single digits if so.
    Gpt2 { single_digits: bool },
    /// Another expression.
    Expression(&'static str),
}

impl Rules {
    /// The rules that `tokenizer.ggml.pre` names.
    fn named(name: &str) -> Result<Self, Fault> {
        let plain = |words| Self { words, compose: false, whole_words: false, adds_bos: false };
        Ok(match name {
            "gpt-2" | "default" => plain(Words::Gpt2 { single_digits: false }),
            "smollm" => plain(Words::Gpt2 { single_digits: true }),
            "llama-bpe" | "llama3" | "llama-v3" => Self {
                whole_words: true,
                adds_bos: true,
                ..plain(Words::Expression(concat!(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )))
            },
            "qwen2" => Self {
                compose: true,
                ..plain(Words::Expression(concat!(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )))
            },
            other => {
                return Err(Fault::unsupported(
                    format!("key {PRE}"),
                    format!("{other:?}"),
                    "gpt-2, default, smollm, llama-bpe, llama3, llama-v3, qwen2",
                ));
            }
        })
    }

    fn pre_tokenizer(&self) -> Result<PreTokenizerWrapper, Fault> {
        Ok(match self.words {
            Words::Gpt2 { single_digits: false } => ByteLevel::new(false, true, true).into(),
            Words::Gpt2 { single_digits: true } => Sequence::new(vec![
                Digits::new(true).into(),
                ByteLevel::new(false, true, true).into(),
            ])
            .into(),
            Words::Expression(expression) => {
                let pattern = SplitPattern::Regex(expression.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map_err(|error| Fault::malformed(format!("key {PRE}"), error.to_string()))?;
                Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::gguf::Value;
    use crate::weights::Mapping;

    /// The demo model's vocabulary under the pre-tokenizers of several families, against ids that an
    /// independent implementation gave for the same. `smollm2_tokens.py` made them and says how.
    #[test]
    fn every_pre_tokenizer_agrees_with_the_reference() {
        let Some(path) = std::env::var_os("REWIND_DEMO_MODEL") else {
            println!("SKIP: REWIND_DEMO_MODEL is not set; `cargo xtask test` sets it");
            return;
        };
        let (mut keys, _) = crate::gguf::read(Mapping::open(path.as_ref()).unwrap()).unwrap();
        let cases = include_str!("../../tests/golden/smollm2_tokens.json");
        let cases: Json = serde_json::from_str(cases).unwrap();
        for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
            keys.0.insert(PRE.to_owned(), Value::String(pre.as_bytes().into()));
            let tokenizer = tokenizer(&keys, 49152).unwrap();
            for case in cases.as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let Some(expected) = case[pre].as_array() else {
                    assert_eq!(pre, "qwen2", "only its normalization differs from the reference");
                    continue;
                };
                let ids = tokenizer.encode(text, false).unwrap();
                assert_eq!(Json::from(ids), Json::from(expected.clone()), "{pre}: {text:?}");
            }
        }
    }
}
