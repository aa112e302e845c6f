//! Perplexity of a text.
//!
//! The protocol is llama.cpp's, so that figures compare: the whole text is tokenized and cut into
//! chunks of `context` tokens; each chunk is read on its own; its second half is scored, token
//! `context / 2 + 1` first, since tokens with little context say more about the cut than about the
//! model. Where the tokenizer begins prompts with a token of its own, that token takes the place of
//! each chunk's first one.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_engine::{Executor, Token, Weights};
use rewind_formats::Format;
use rewind_serving::{Model, PolicyName};
use serde::Serialize;

use crate::arguments::ModelArguments;
use crate::output;
use crate::progress;
use crate::score::{Mean, log_sum_exp, teacher_forced};

/// Flags of `rewind perplexity`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// `shadow`, or the format of a quantized copy.
    #[arg(long, value_name = "shadow|FORMAT", default_value = "shadow", value_parser = copy)]
    weights: Copy,
    /// Text to score, UTF-8.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in a chunk.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    context: u32,
    /// Score only this many chunks, from the start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Which copy of the weights to score.
#[derive(Clone, Copy, Debug)]
enum Copy {
    Shadow,
    Draft(Format),
}

fn copy(name: &str) -> Result<Copy, String> {
    if name == "shadow" {
        return Ok(Copy::Shadow);
    }
    name.parse().map(Copy::Draft).map_err(|error| format!("{error}, or \"shadow\""))
}

#[derive(Debug, Serialize)]
struct Report {
    weights: String,
    identity: String,
    context: u32,
    chunks: usize,
    tokens: u64,
    nll: f64,
    nll_error: f64,
    perplexity: f64,
    perplexity_error: f64,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let text = std::fs::read(&arguments.text)
        .with_context(|| format!("cannot read {}", arguments.text.display()))?;
    let text = String::from_utf8(text)
        .with_context(|| format!("{} is not UTF-8", arguments.text.display()))?;
    let mut options = arguments.model.options(arguments.threads);
    options.max_sequence_length = Some(arguments.context);
    options.max_sequences = Some(1);
    let weights = match arguments.weights {
        Copy::Shadow => {
            options.policy = PolicyName::Shadow;
            Weights::Full
        }
        Copy::Draft(format) => {
            options.draft = format;
            Weights::Draft
        }
    };
    let loading = progress::spinner("loading");
    let (model, mut engine) = Model::load(options)?;
    loading.finish_and_clear();

    let context = arguments.context as usize;
    let (tokens, first) = tokenize(&model, &text)?;
    let there_are = tokens.len() / context;
    if there_are == 0 {
        bail!(
            "{} has {} tokens, too few for one chunk of {context}: take a longer text or a smaller \
             --context",
            arguments.text.display(),
            tokens.len()
        );
    }
    let chunks = arguments.chunks.map_or(there_are, |n| there_are.min(n as usize));
    let bar = progress::bar(chunks as u64, "perplexity");
    let start = Instant::now();
    let mut nll = Mean::default();
    for chunk in tokens.chunks_exact(context).take(chunks) {
        nll.merge(score(engine.executor_mut(), weights, chunk, first)?);
        bar.set_message(format!("perplexity {:.3}", nll.mean().exp()));
        bar.inc(1);
    }
    bar.finish_and_clear();

    let perplexity = nll.mean().exp();
    let report = Report {
        weights: match arguments.weights {
            Copy::Shadow => "shadow".into(),
            Copy::Draft(format) => format.to_string(),
        },
        identity: engine.executor().identity(weights),
        context: arguments.context,
        chunks,
        tokens: nll.count(),
        nll: nll.mean(),
        nll_error: nll.standard_error(),
        perplexity,
        // First order: d exp(x) = exp(x) dx.
        perplexity_error: perplexity * nll.standard_error(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if arguments.json {
        return output::json(&report);
    }
    output::line(format_args!(
        "perplexity {:.4} ± {:.4} ({}; {} tokens in {} chunks of {}, {:.1} s)",
        report.perplexity,
        report.perplexity_error,
        report.weights,
        report.tokens,
        report.chunks,
        report.context,
        report.seconds
    ))
}

/// Tokens of the text, and the token that every chunk begins with, if the model asks for one.
fn tokenize(model: &Model, text: &str) -> Result<(Vec<Token>, Option<Token>)> {
    let tokenizer = model.tokenizer();
    let bos = model.generation().bos;
    let around = tokenizer.encode("", true)?;
    let first = around.first().copied().filter(|&token| Some(token) == bos);
    let mut tokens: Vec<Token> = first.into_iter().collect();
    tokens.extend(tokenizer.encode(text, false)?);
    Ok((tokens, first))
}

/// Negative log-likelihoods of the second half of one chunk.
fn score(
    executor: &mut impl Executor,
    weights: Weights,
    chunk: &[Token],
    first: Option<Token>,
) -> Result<Mean> {
    ensure!(chunk.len() >= 4, "a chunk of {} tokens has no second half", chunk.len());
    let mut chunk = chunk.to_vec();
    if let Some(first) = first {
        chunk[0] = first;
    }
    let mut nll = Mean::default();
    // The last token is predicted but need not be fed.
    let fed = &chunk[..chunk.len() - 1];
    teacher_forced(executor, weights, fed, chunk.len() / 2..fed.len(), |position, logits| {
        let next = logits[chunk[position + 1] as usize];
        nll.add(log_sum_exp(logits) - f64::from(next));
        Ok(())
    })?;
    Ok(nll)
}
