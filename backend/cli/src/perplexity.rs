//! Perplexity of a text.
//!
//! The protocol is llama.cpp's, so that figures compare: the whole text is tokenized and cut into
//! chunks of `context` tokens; each chunk is read on its own; its second half is scored, token
//! `context / 2 + 1` first, since tokens with little context say more about the cut than about the
//! model. Where the tokenizer begins prompts with a token of its own, that token takes the place of
//! each chunk's first one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_checkpoint::Checkpoint;
use rewind_cpu::{CpuExecutor, CpuModel, Isa};
use rewind_cuda::{CudaExecutor, CudaModel, Driver, Placement};
use rewind_engine::{Executor, Token, Weights};
use rewind_formats::Format;
use rewind_serving::{AnyExecutor, Device, Processor};
use serde::Serialize;

use crate::output;
use crate::progress;
use crate::score::{Mean, ROWS, log_sum_exp, teacher_forced};

/// Flags of `rewind perplexity`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// GGUF file or Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where to run: auto (the first GPU that can be used, else the CPU), cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    device: Device,
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
    let checkpoint = Checkpoint::open(&arguments.model)
        .with_context(|| format!("cannot load {}", arguments.model.display()))?;
    ensure!(
        arguments.context as usize <= checkpoint.spec().max_positions,
        "--context is {}: this model was made for at most {} tokens",
        arguments.context,
        checkpoint.spec().max_positions
    );
    let (tokens, first) = tokenize(&checkpoint, &text)?;
    let context = arguments.context as usize;
    let there_are = tokens.len() / context;
    if there_are == 0 {
        bail!(
            "{} has {} tokens, too few for one chunk of {context}: take a longer text or a smaller \
             --context",
            arguments.text.display(),
            tokens.len()
        );
    }
    let (mut executor, weights) = load(&checkpoint, &arguments)?;
    drop(checkpoint);
    let chunks = arguments.chunks.map_or(there_are, |n| there_are.min(n as usize));
    let bar = progress::bar(chunks as u64, "perplexity");
    let start = Instant::now();
    let mut nll = Mean::default();
    for chunk in tokens.chunks_exact(context).take(chunks) {
        nll.merge(score(&mut executor, weights, chunk, first)?);
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
        identity: executor.identity(weights),
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
fn tokenize(checkpoint: &Checkpoint, text: &str) -> Result<(Vec<Token>, Option<Token>)> {
    let tokenizer = checkpoint.tokenizer();
    let bos = checkpoint.generation().bos;
    let around = tokenizer.encode("", true)?;
    let first = around.first().copied().filter(|&token| Some(token) == bos);
    let mut tokens: Vec<Token> = first.into_iter().collect();
    tokens.extend(tokenizer.encode(text, false)?);
    Ok((tokens, first))
}

/// An executor with the one copy of the weights that is asked for, and room for one chunk.
fn load(checkpoint: &Checkpoint, arguments: &Arguments) -> Result<(AnyExecutor, Weights)> {
    const PAGE_TOKENS: usize = 32;
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let (draft, weights) = match arguments.weights {
        Copy::Shadow => (None, Weights::Full),
        Copy::Draft(format) => (Some(format), Weights::Draft),
    };
    let (spec, shadow) = (checkpoint.spec(), draft.is_none());
    let positions = arguments.context as usize;
    let (slots, rows, pages) = (1, ROWS, positions.div_ceil(PAGE_TOKENS));
    let bar = progress::percent("loading");
    let show = |done: u64, total: u64| bar.set_position(100 * done / total.max(1));
    let source = |tensor| checkpoint.tensor(tensor);
    let executor = match arguments.device.choose()?.processor {
        Processor::Cpu => {
            let isa = Isa::detect();
            let options = rewind_cpu::LoadOptions { draft, shadow, threads, isa };
            let model = CpuModel::load(spec, source, options, |p| show(p.done, p.total))?;
            let page_tokens = PAGE_TOKENS;
            let config = rewind_cpu::Config { threads, slots, rows, pages, page_tokens, positions };
            AnyExecutor::Cpu(Box::new(CpuExecutor::new(Arc::new(model), config)?))
        }
        Processor::Cuda(ordinal) => {
            let mut model = CudaModel::new(Driver::open(ordinal as usize)?, spec)?;
            let placement = Placement::Device;
            let options = rewind_cuda::LoadOptions { draft, shadow, threads, placement };
            model.load(source, options, |p| show(p.done, p.total))?;
            let config = rewind_cuda::Config { slots, rows, pages, positions };
            AnyExecutor::Cuda(Box::new(CudaExecutor::new(model, config)?))
        }
    };
    bar.finish_and_clear();
    Ok((executor, weights))
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
