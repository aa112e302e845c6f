//! Perplexity of a text.
//!
//! The protocol is llama.cpp's, so that figures compare: the whole text is tokenized and cut into
//! chunks of `context` tokens; each chunk is read on its own; its second half is scored, token
//! `context / 2 + 1` first, since tokens with little context say more about the cut than about the
//! model. Where the tokenizer begins prompts with a token of its own, that token takes the place of
//! each chunk's first one.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rewind_checkpoint::Checkpoint;
use rewind_engine::{Executor, Token, Weights};
use rewind_evidence::teacher_forced;
use rewind_serving::{Draft, check_pair};
use serde::Serialize;

use crate::layers::Kept;
use crate::reader::{Text, Where};
use crate::score::{Mean, log_sum_exp};
use crate::{output, progress};

/// Flags of `rewind perplexity`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// `shadow`, or the format of a quantized copy, or plan:FILE, or `stored`: as the checkpoint has it.
    #[arg(long, value_name = "shadow|FORMAT|plan:FILE|stored", default_value = "shadow", value_parser = copy)]
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
    /// Leave out these layers, counted from 0, such as 3,5,7. A plan then names those that stay.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    without_layers: Vec<usize>,
    /// Read the text with the shadow, too, and say how far the draft is from it. The shadow keeps all its
    /// layers.
    #[arg(long)]
    compare: bool,
    /// The checkpoint that the shadow is read from, if not --model: the original of a quantized folder.
    #[arg(long, value_name = "PATH", requires = "compare")]
    shadow: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Which copy of the weights to score.
#[derive(Clone, Debug)]
enum Copy {
    Shadow,
    Draft(Draft),
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
    without_layers: Vec<usize>,
    tokens: u64,
    nll: f64,
    nll_error: f64,
    perplexity: f64,
    perplexity_error: f64,
    /// Beside the shadow, if it was read as well.
    shadow: Option<Beside>,
    seconds: f64,
}

/// How far a draft is from the shadow on the tokens that are scored.
#[derive(Debug, Serialize)]
struct Beside {
    /// The shadow's.
    perplexity: f64,
    /// Share of tokens that both find most likely.
    agreement: f64,
    agreement_error: f64,
    /// Mean divergence of the draft's distribution from the shadow's, KL(shadow ‖ draft), in nats.
    divergence: f64,
    divergence_error: f64,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let checkpoint = arguments.place.checkpoint()?;
    let context = arguments.context as usize;
    let text = Text::read(&arguments.text, &checkpoint, context)?;
    let draft = match &arguments.weights {
        Copy::Shadow => None,
        Copy::Draft(draft) => Some(draft),
    };
    let weights = if draft.is_some() { Weights::Draft } else { Weights::Full };
    let kept = Kept::without(checkpoint.spec().layers, &arguments.without_layers)?;
    let shortened = !arguments.without_layers.is_empty();
    ensure!(
        draft.is_some() || shortened || !arguments.compare,
        "--compare needs a draft: give --weights a format or a plan"
    );
    let original = match &arguments.shadow {
        None => None,
        Some(path) => {
            let original = Checkpoint::open(path)
                .with_context(|| format!("cannot load {}", path.display()))?;
            check_pair(&checkpoint, &original)?;
            Some(original)
        }
    };
    let shadow = original.as_ref().unwrap_or(&checkpoint);
    let beside = Some(shadow).filter(|_| draft.is_none() || arguments.compare && !shortened);
    let place = &arguments.place;
    let mut executor = place.load_layers(&checkpoint, &kept, draft, beside, context)?;
    // What is compared with is of all layers, so it cannot be a copy in the same executor.
    let mut whole = match arguments.compare && shortened {
        true => Some(place.load(shadow, None, Some(shadow), context)?),
        false => None,
    };
    drop((checkpoint, original));
    let chunks = text.chunks(arguments.chunks);
    let bar = progress::bar(chunks.len() as u64, "perplexity");
    let start = Instant::now();
    let mut nll = Mean::default();
    let mut comparison = arguments.compare.then(Comparison::default);
    for chunk in &chunks {
        let of_chunk = beginning(chunk, text.first);
        nll.merge(match &mut comparison {
            None => score(&mut executor, weights, &of_chunk, None)?,
            Some(comparison) => {
                let beside = whole.as_mut().unwrap_or(&mut executor);
                let of_shadow = logits(beside, Weights::Full, &of_chunk)?;
                score(&mut executor, weights, &of_chunk, Some((comparison, &of_shadow)))?
            }
        });
        bar.set_message(format!("perplexity {:.3}", nll.mean().exp()));
        bar.inc(1);
    }
    bar.finish_and_clear();

    let perplexity = nll.mean().exp();
    let report = Report {
        weights: match arguments.weights {
            Copy::Shadow => "shadow".into(),
            Copy::Draft(draft) => draft.to_string(),
        },
        identity: executor.identity(weights),
        context: arguments.context,
        chunks: chunks.len(),
        without_layers: arguments.without_layers,
        tokens: nll.count(),
        nll: nll.mean(),
        nll_error: nll.standard_error(),
        perplexity,
        // First order: d exp(x) = exp(x) dx.
        perplexity_error: perplexity * nll.standard_error(),
        shadow: comparison.map(|comparison| comparison.report()),
        seconds: start.elapsed().as_secs_f64(),
    };
    if arguments.json {
        return output::json(&report);
    }
    let without = match &report.without_layers[..] {
        [] => String::new(),
        layers => format!(" without layers {}", numbers(layers)),
    };
    output::line(format_args!(
        "perplexity {:.4} ± {:.4} ({}{without}; {} tokens in {} chunks of {}, {:.1} s)",
        report.perplexity,
        report.perplexity_error,
        report.weights,
        report.tokens,
        report.chunks,
        report.context,
        report.seconds
    ))?;
    let Some(beside) = report.shadow else { return Ok(()) };
    output::line(format_args!(
        "beside the shadow, of perplexity {:.4}: the same most likely token {:.2} ± {:.2} %, divergence \
         {:.4} ± {:.4} nats",
        beside.perplexity,
        100.0 * beside.agreement,
        100.0 * beside.agreement_error,
        beside.divergence,
        beside.divergence_error
    ))
}

fn numbers(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// How far a draft is from the shadow.
#[derive(Debug, Default)]
struct Comparison {
    shadow: Mean,
    agreement: Mean,
    divergence: Mean,
}

impl Comparison {
    fn add(&mut self, shadow: &[f32], draft: &[f32], next: Token) {
        let (of_shadow, of_draft) = (log_sum_exp(shadow), log_sum_exp(draft));
        self.shadow.add(of_shadow - f64::from(shadow[next as usize]));
        self.agreement.add(f64::from(u8::from(most_likely(shadow) == most_likely(draft))));
        let terms = shadow.iter().zip(draft).map(|(&s, &d)| {
            let (s, d) = (f64::from(s) - of_shadow, f64::from(d) - of_draft);
            s.exp() * (s - d)
        });
        self.divergence.add(terms.sum());
    }

    fn report(&self) -> Beside {
        Beside {
            perplexity: self.shadow.mean().exp(),
            agreement: self.agreement.mean(),
            agreement_error: self.agreement.standard_error(),
            divergence: self.divergence.mean(),
            divergence_error: self.divergence.standard_error(),
        }
    }
}

/// The first of the highest.
fn most_likely(logits: &[f32]) -> Option<usize> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == best)
}

/// A chunk with the token that prompts begin with, if there is one, in the place of its first.
fn beginning(chunk: &[Token], first: Option<Token>) -> Vec<Token> {
    let mut chunk = chunk.to_vec();
    if let (Some(place), Some(first)) = (chunk.first_mut(), first) {
        *place = first;
    }
    chunk
}

/// What is fed of a chunk, and the positions whose next token is scored. The last token is predicted but need
/// not be fed.
fn halves(chunk: &[Token]) -> Result<(&[Token], Range<usize>)> {
    ensure!(chunk.len() >= 4, "a chunk of {} tokens has no second half", chunk.len());
    let fed = &chunk[..chunk.len() - 1];
    Ok((fed, chunk.len() / 2..fed.len()))
}

/// Logits of the second half of one chunk.
fn logits(
    executor: &mut impl Executor,
    weights: Weights,
    chunk: &[Token],
) -> Result<Vec<Vec<f32>>> {
    let (fed, wanted) = halves(chunk)?;
    let mut rows = Vec::with_capacity(wanted.len());
    teacher_forced(executor, weights, fed, wanted, |_, logits| {
        rows.push(logits.to_vec());
    })?;
    Ok(rows)
}

/// Negative log-likelihoods of the second half of one chunk, compared with the shadow's logits of it, if any.
fn score(
    executor: &mut impl Executor,
    weights: Weights,
    chunk: &[Token],
    mut beside: Option<(&mut Comparison, &[Vec<f32>])>,
) -> Result<Mean> {
    let (fed, wanted) = halves(chunk)?;
    let first = wanted.start;
    let mut nll = Mean::default();
    teacher_forced(executor, weights, fed, wanted, |position, logits| {
        let next = chunk[position + 1];
        nll.add(log_sum_exp(logits) - f64::from(logits[next as usize]));
        if let Some((comparison, of_shadow)) = &mut beside {
            comparison.add(&of_shadow[position - first], logits, next);
        }
    })?;
    Ok(nll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_compared() {
        let mut comparison = Comparison::default();
        // (1/2, 1/4, 1/4) beside (1/4, 1/2, 1/4), and beside itself with all logits one higher.
        let shadow = [2.0_f32.ln(), 0.0, 0.0];
        comparison.add(&shadow, &[0.0, 2.0_f32.ln(), 0.0], 0);
        comparison.add(&shadow, &shadow.map(|logit| logit + 1.0), 1);
        let report = comparison.report();
        let two = 2.0_f64.ln();
        assert_eq!(report.agreement, 0.5);
        assert!((report.divergence - (two / 2.0 - two / 4.0) / 2.0).abs() < 1e-6, "{report:?}");
        // ln 2 and ln 4 on average.
        assert!((report.perplexity.ln() - 1.5 * two).abs() < 1e-6, "{report:?}");
    }
}
