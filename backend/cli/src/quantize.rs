//! `rewind quantize`: choose the format of each layer and write it down as a plan, or write the quantized model.

mod method;
mod peak;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rewind_checkpoint::Checkpoint;
use rewind_engine::Weights;
use rewind_formats::Format;
use rewind_quantize::importance::{self, Sides};
use rewind_quantize::{Made, Plan, Target, average_bits};
use rewind_serving::Draft;
use serde::Serialize;

use crate::reader::{Text, Where};
use crate::{output, progress};

/// Flags of `rewind quantize`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// Make a plan: how the importance of a layer is measured.
    #[arg(
        long,
        value_name = "MEASURE",
        required_unless_present = "method",
        conflicts_with = "method"
    )]
    plan: Option<Measure>,
    /// Write the quantized model into a folder: how weights become codes.
    #[arg(long, value_name = "METHOD", requires = "out")]
    method: Option<method::Name>,
    /// Format of the quantized model, or a plan with a format for each layer.
    #[arg(
        long,
        value_name = "FORMAT|plan:FILE",
        default_value = "int4-g32",
        conflicts_with = "plan"
    )]
    draft: Draft,
    /// Of a plan: format of the least important layers.
    #[arg(long, value_name = "FORMAT", default_value = "int4-g128", conflicts_with = "method")]
    low: Format,
    /// Of a plan: format of the others.
    #[arg(long, value_name = "FORMAT", default_value = "int8", conflicts_with = "method")]
    high: Format,
    /// Of a plan: bits that a weight of the layers may take on average, scales included. Embedding and LM head
    /// are not counted: they are int8-g32.
    #[arg(long, value_name = "BITS", default_value_t = 5.0, conflicts_with = "method")]
    target_bits: f64,
    /// Text that lim, gptq and awq read, UTF-8.
    #[arg(
        long,
        value_name = "FILE",
        required_if_eq_any([("plan", "lim"), ("method", "gptq"), ("method", "awq")])
    )]
    text: Option<PathBuf>,
    /// Tokens in a chunk of it.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    context: u32,
    /// Read only this many chunks, from the start; 16 for lim and 64 for gptq and awq if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Of random importance.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "method")]
    seed: u64,
    /// The plan to write, for `--draft plan:FILE`; without it the plan is printed. Of a method, the folder, which
    /// must not exist, be empty, or hold an unfinished run of the same command: that one is finished.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Print one JSON object, besides the file.
    #[arg(long, requires = "out")]
    json: bool,
}

/// How the importance of a layer is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// How much the layer changes what passes through it; reads a text.
    Lim,
    /// How few of its weights are more than a standard deviation above their mean.
    Zd,
    /// As zd, below the mean as well.
    ZdTwoSided,
    /// Not at all, to compare with.
    Random,
}

#[derive(Debug, Serialize)]
struct Report {
    plan: PathBuf,
    layers: Vec<String>,
    layer_bits: f64,
    all_bits: f64,
    importance: Vec<f64>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match (arguments.method, arguments.plan) {
        (Some(name), _) => method::run(name, &arguments),
        (None, Some(measure)) => plan(measure, arguments),
        (None, None) => bail!("give --plan or --method"),
    }
}

/// Makes a plan.
fn plan(by: Measure, arguments: Arguments) -> Result<()> {
    let checkpoint = arguments.place.checkpoint()?;
    let spec = checkpoint.spec();
    let Arguments { low, high, target_bits, .. } = arguments;
    let target = Target { low, high, bits: target_bits };
    // A target that cannot be reached should not cost the time of a measurement.
    target.assign(spec, &vec![0.0; spec.layers])?;
    let (importance, tokens) = measure(by, &checkpoint, &arguments)?;
    let layers = target.assign(spec, &importance)?;
    let ends = low.ends();
    let mut plan = Plan { layers, embedding: ends, head: ends, made: None };
    let [layer_bits, all_bits] = average_bits(spec, &plan.mixture());
    let random = by == Measure::Random;
    plan.made = Some(Made {
        by: by.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()),
        low: low.to_string(),
        high: high.to_string(),
        target_bits,
        layer_bits,
        all_bits,
        model: checkpoint.fingerprint().to_owned(),
        text: tokens.and(arguments.text.as_ref()).map(|path| path.display().to_string()),
        tokens,
        seed: random.then_some(arguments.seed),
        importance,
    });
    let Some(path) = &arguments.out else { return output::text(&plan.to_toml()) };
    std::fs::write(path, plan.to_toml())
        .with_context(|| format!("cannot write {}", path.display()))?;
    let made = plan.made.as_ref();
    if arguments.json {
        return output::json(&Report {
            plan: path.clone(),
            layers: plan.layers.iter().map(Format::to_string).collect(),
            layer_bits,
            all_bits,
            importance: made.map_or_else(Vec::new, |made| made.importance.clone()),
        });
    }
    output::line(format_args!(
        "{}: {}; {layer_bits:.3} bits for a weight of the layers, {all_bits:.3} over all tensors",
        path.display(),
        plan.mixture()
    ))
}

/// Importance of each layer, and how many tokens were read for it, if any.
fn measure(
    by: Measure,
    checkpoint: &Checkpoint,
    arguments: &Arguments,
) -> Result<(Vec<f64>, Option<usize>)> {
    let spec = checkpoint.spec();
    let outliers = |sides| {
        let bar = progress::bar(spec.layers as u64, "layers");
        let found =
            importance::outliers(spec, |tensor| checkpoint.tensor(tensor), sides, || bar.inc(1));
        bar.finish_and_clear();
        Ok((found?, None))
    };
    match by {
        Measure::Random => Ok((importance::random(spec.layers, arguments.seed), None)),
        Measure::Zd => outliers(Sides::One),
        Measure::ZdTwoSided => outliers(Sides::Both),
        Measure::Lim => {
            let path = arguments.text.as_ref().context("lim reads a text: give --text")?;
            let text = Text::read(path, checkpoint, arguments.context as usize)?;
            let chunks = text.chunks(Some(arguments.chunks.unwrap_or(16)));
            let tokens = chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
            let positions = arguments.context as usize;
            let mut executor =
                arguments.place.load(checkpoint, None, Some(checkpoint), positions)?;
            let bar = progress::bar(tokens as u64, "tokens");
            let found =
                importance::input_modification(&mut executor, Weights::Full, &chunks, |count| {
                    bar.inc(count as u64);
                });
            bar.finish_and_clear();
            Ok((found?, Some(tokens)))
        }
    }
}
