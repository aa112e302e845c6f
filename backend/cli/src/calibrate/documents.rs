//! The documents of a calibration, as the model reads them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rewind_engine::Token;
use rewind_evidence::Document;
use rewind_evidence::domain::{Content, Domain};
use rewind_serving::{AnyEngine, Model, Parameters, PolicyName, Prompt, Value};

use super::{Arguments, file_name};
use crate::arguments::{set_number, set_policy};
use crate::progress;
use crate::run::run_all;

/// From this many files on, each is a document of its own.
const FILES_AS_DOCUMENTS: usize = 10;

/// Chats that are answered side by side.
pub(super) const BATCH: u32 = 16;

/// Fewest positions of a piece that are worth its prompt.
const FEWEST_JUDGED: usize = 16;

/// The documents of a built-in domain.
pub(super) fn built_in(
    model: &Model,
    engine: &mut AnyEngine,
    domain: Domain,
    arguments: &Arguments,
) -> Result<Vec<Document>> {
    let mut sources = domain.sources(model.limits().vocabulary);
    sources.truncate(arguments.documents.map_or(usize::MAX, |most| most as usize));
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
        documents.extend(pieces(model, domain.name(), &source.name, &tokens, arguments)?);
    }
    documents.extend(answered(model, engine, domain.name(), &chats, arguments)?);
    Ok(documents)
}

/// Texts of one's own. Their names are the ends of their paths: records tell nothing of the machine.
pub(super) fn own(model: &Model, domain: &str, arguments: &Arguments) -> Result<Vec<Document>> {
    let whole = arguments.text.len() >= FILES_AS_DOCUMENTS;
    let mut documents = Vec::new();
    for (number, path) in (1..).zip(&arguments.text) {
        let tokens = encode(model, &read(path)?)?;
        let name = format!("{number} {}", file_name(path));
        let of_file = pieces(model, domain, &name, &tokens, arguments)?;
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
    arguments: &Arguments,
) -> Result<Vec<Document>> {
    let (context, prompt) = (arguments.context as usize, arguments.prompt as usize);
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
    arguments: &Arguments,
) -> Result<Vec<Document>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let mut requests = messages
        .iter()
        .map(|message| {
            let mut parameters = Parameters::default();
            set_policy(&mut parameters, PolicyName::Shadow)?;
            set_number(&mut parameters, "max_tokens", Some(arguments.max_tokens))?;
            parameters.set("temperature", Value::Double(0.0))?;
            parameters.set("chat", Value::Bool(true))?;
            let prepared = model.prepare(Prompt::Text(message.clone()), &parameters)?;
            Ok(prepared.request)
        })
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("the domain {domain} cannot be read"))?;
    let prompts: Vec<_> = requests.iter().map(|request| request.prompt.clone()).collect();
    let bar = progress::bar((messages.len() as u64) * u64::from(arguments.max_tokens), "answering");
    let mut documents = Vec::with_capacity(messages.len());
    let mut rest = prompts.iter().zip(messages);
    while !requests.is_empty() {
        // The queue has an end.
        let batch = requests.drain(..requests.len().min(BATCH as usize)).collect();
        for trace in run_all(engine, batch, |_, _| ())? {
            let Some((prompt, message)) = rest.next() else { bail!("more answers than messages") };
            let tokens = [&prompt[..], &trace.ids()].concat();
            bar.inc(arguments.max_tokens.into());
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
