//! `rewind bench decode`, `batch` and `prefill`.

use anyhow::Result;
use clap::Args;
use rewind_bench::{Decode, Measurement, Prefill};
use serde::Serialize;

use super::setting::{Common, Which};
use super::table::Table;

/// Flags of `rewind bench decode`.
#[derive(Debug, Args)]
pub(crate) struct DecodeArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    speed: SpeedArguments,
    /// Tokens to generate from an empty cache.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
}

/// Flags of `rewind bench batch`.
#[derive(Debug, Args)]
pub(crate) struct BatchArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    speed: SpeedArguments,
    /// Tokens that each sequence generates from an empty cache.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Numbers of sequences side by side.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
}

/// Flags of `rewind bench prefill`.
#[derive(Debug, Args)]
pub(crate) struct PrefillArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    speed: SpeedArguments,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
}

#[derive(Debug, Args)]
struct SpeedArguments {
    /// Which copies of the weights to measure.
    #[arg(long, value_enum, default_value_t = Which::Both)]
    weights: Which,
    /// Leave out the statistics of the monitor.
    #[arg(long)]
    no_statistics: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    measurements: Vec<Measurement>,
}

/// Runs `rewind bench decode`.
pub(crate) fn decode(arguments: &DecodeArguments) -> Result<()> {
    let DecodeArguments { common, speed, context } = arguments;
    steps("decode", common, speed, vec![1], *context)
}

/// Runs `rewind bench batch`.
pub(crate) fn batch(arguments: &BatchArguments) -> Result<()> {
    let BatchArguments { common, speed, context, batch } = arguments;
    steps("batch", common, speed, batch.iter().copied().map(usize::from).collect(), *context)
}

fn steps(
    name: &'static str,
    common: &Common,
    speed: &SpeedArguments,
    batches: Vec<usize>,
    context: u32,
) -> Result<()> {
    let decode = Decode {
        name,
        weights: speed.weights.weights(),
        batches,
        context: context as usize,
        rounds: common.rounds(),
        statistics: !speed.no_statistics,
    };
    let mut setting = common.load(common.checkpoint()?, decode.room())?;
    let measured = setting.measure(name, decode.ticks(), |session| decode.run(session))?;
    setting.report(name, Figures { measurements: measured }, print)
}

/// Runs `rewind bench prefill`.
pub(crate) fn prefill(arguments: &PrefillArguments) -> Result<()> {
    let PrefillArguments { common, speed, prompt } = arguments;
    let prefill = Prefill {
        weights: speed.weights.weights(),
        prompt: *prompt as usize,
        rounds: common.rounds(),
        statistics: !speed.no_statistics,
    };
    let mut setting = common.load(common.checkpoint()?, prefill.room())?;
    let measured = setting.measure("prefill", prefill.ticks(), |session| prefill.run(session))?;
    setting.report("prefill", Figures { measurements: measured }, print)
}

fn print(figures: &Figures) -> Result<()> {
    let mut table = Table::new(&[
        "weights",
        "format",
        "batch",
        "tokens",
        "tok/s",
        "95 %",
        "ms a step",
        "MB read",
        "of it head",
        "of memory's rate",
    ]);
    for one in &figures.measurements {
        table.row([
            one.weights.clone(),
            one.format.clone(),
            one.batch.to_string(),
            one.context.to_string(),
            format!("{:.1}", one.tokens_per_second.median),
            format!("{:.1} – {:.1}", one.tokens_per_second.low, one.tokens_per_second.high),
            format!("{:.3}", 1e3 * one.step_seconds.median),
            format!("{:.1}", one.step_bytes as f64 / 1e6),
            format!("{:.1}", one.head_bytes as f64 / 1e6),
            one.bandwidth_fraction.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)),
        ]);
    }
    table.print()
}
