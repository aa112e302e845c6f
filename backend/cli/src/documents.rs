//! Documents of calibrations and of the bench of dead compute, as the model reads them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_engine::Token;
use rewind_evidence::Document;
use rewind_evidence::domain::{Content, Domain};
use rewind_serving::{AnyEngine, Model, Parameters, PolicyName, Prompt, Value};

use crate::arguments::{set_number, set_policy};
use crate::progress;
use crate::run::run_all;

/// From this many files on, each is a document of its own.
const FILES_AS_DOCUMENTS: usize = 10;

/// Chats that are answered side by side.
pub(crate) const BATCH: u32 = 16;

/// Fewest positions of a piece that are worth its prompt.
const FEWEST_JUDGED: usize = 16;

/// How texts are cut into documents.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Cut {
    /// Tokens that are read together; longer documents come in pieces.
    #[arg(long, value_name = "N", default_value_t = Cut::default().context, value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    pub(crate) context: u32,
    /// Tokens at the start of each piece that are read as a prompt and not judged; chats have their own.
    #[arg(long, value_name = "N", default_value_t = Cut::default().prompt, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,
    /// Read only this many documents of each built-in domain, from the start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    pub(crate) documents: Option<u32>,
    /// Tokens of an answer in the domain chat, at most.
    #[arg(long, value_name = "N", default_value_t = Cut::default().max_tokens, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
}

impl Default for Cut {
    fn default() -> Self {
        Self { context: 512, prompt: 64, documents: None, max_tokens: 256 }
    }
}

/// The documents of a built-in domain.
pub(crate) fn built_in(
    model: &Model,
    engine: &mut AnyEngine,
    domain: Domain,
    cut: &Cut,
) -> Result<Vec<Document>> {
    let mut sources = domain.sources(model.limits().vocabulary);
    sources.truncate(cut.documents.map_or(usize::MAX, |most| most as usize));
    let mut documents = Vec::new();
    let mut chats = Vec::new();
    for source in sources {
        let tokens = match source.content {
            Content::Text(text) => encode(model, &text)?,
            Content::Tokens(tokens) => tokens,
            Content::Chat(message) => {
                chats.push(message);
                continue;
            }
        };
        documents.extend(pieces(model, domain.name(), &source.name, &tokens, cut)?);
    }
    documents.extend(answered(model, engine, domain.name(), &chats, cut)?);
    Ok(documents)
}

/// Texts of one's own. Their names are the ends of their paths: records tell nothing of the machine.
pub(crate) fn own(
    model: &Model,
    domain: &str,
    paths: &[PathBuf],
    cut: &Cut,
) -> Result<Vec<Document>> {
    let whole = paths.len() >= FILES_AS_DOCUMENTS;
    let mut documents = Vec::new();
    for (number, path) in (1..).zip(paths) {
        let tokens = encode(model, &read(path)?)?;
        let name = format!("{number} {}", file_name(path));
        let of_file = pieces(model, domain, &name, &tokens, cut)?;
        documents.extend(of_file.into_iter().zip(1..).map(|(mut document, piece)| {
            if !whole {
                document.name = format!("{name}, piece {piece}");
            }
            document
        }));
    }
    Ok(documents)
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(text).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn encode(model: &Model, text: &str) -> Result<Vec<Token>> {
    Ok(model.tokenizer().encode(text, false)?)
}

/// A document in pieces of `--context` tokens, each after the token that prompts begin with, if there is one.
fn pieces(
    model: &Model,
    domain: &str,
    name: &str,
    tokens: &[Token],
    cut: &Cut,
) -> Result<Vec<Document>> {
    let (context, prompt) = (cut.context as usize, cut.prompt as usize);
    let positions = model.limits().positions as usize;
    ensure!(
        context <= positions,
        "--context is {context}: the model is loaded for {positions} tokens"
    );
    ensure!(
        prompt + FEWEST_JUDGED <= context,
        "--prompt is {prompt}: with a --context of {context} it may be {} at most",
        context.saturating_sub(FEWEST_JUDGED)
    );
    let around = model.tokenizer().encode("", true)?;
    let bos = model.generation().bos;
    let first = around.first().copied().filter(|&token| Some(token) == bos);
    let room = context - usize::from(first.is_some());
    let piece = |tokens: &[Token]| Document {
        domain: domain.to_owned(),
        name: name.to_owned(),
        tokens: first.iter().chain(tokens).copied().collect(),
        prompt,
    };
    let found: Vec<_> = tokens
        .chunks(room)
        .map(piece)
        .filter(|document| document.tokens.len() >= prompt + FEWEST_JUDGED)
        .collect();
    ensure!(
        !found.is_empty(),
        "{name} has {} tokens, too few: at least {} are needed, or a smaller --prompt",
        tokens.len(),
        prompt + FEWEST_JUDGED
    );
    Ok(found)
}

/// Messages in the model's chat template, with the shadow's greedy answers.
fn answered(
    model: &Model,
    engine: &mut AnyEngine,
    domain: &str,
    messages: &[String],
    cut: &Cut,
) -> Result<Vec<Document>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let mut requests = messages
        .iter()
        .map(|message| {
            let mut parameters = Parameters::default();
            set_policy(&mut parameters, PolicyName::Shadow)?;
            set_number(&mut parameters, "max_tokens", Some(cut.max_tokens))?;
            parameters.set("temperature", Value::Double(0.0))?;
            parameters.set("chat", Value::Bool(true))?;
            let prepared = model.prepare(Prompt::Text(message.clone()), &parameters)?;
            Ok(prepared.request)
        })
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("the domain {domain} cannot be read"))?;
    let prompts: Vec<_> = requests.iter().map(|request| request.prompt.clone()).collect();
    let bar = progress::bar((messages.len() as u64) * u64::from(cut.max_tokens), "answering");
    let mut documents = Vec::with_capacity(messages.len());
    let mut rest = prompts.iter().zip(messages);
    while !requests.is_empty() {
        // The queue has an end.
        let batch = requests.drain(..requests.len().min(BATCH as usize)).collect();
        for trace in run_all(engine, batch, |_, _| ())? {
            let Some((prompt, message)) = rest.next() else { bail!("more answers than messages") };
            let tokens = [&prompt[..], &trace.ids()].concat();
            bar.inc(cut.max_tokens.into());
            documents.push(Document {
                domain: domain.to_owned(),
                name: message.clone(),
                tokens,
                prompt: prompt.len(),
            });
        }
    }
    bar.finish_and_clear();
    Ok(documents)
}

/// The end of a path: what is written tells nothing of the machine.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
