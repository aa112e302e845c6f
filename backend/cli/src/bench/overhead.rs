//! `rewind bench overhead`.

use anyhow::Result;
use clap::Args;
use rewind_bench::{Interval, Overhead, OverheadFigures};
use serde::Serialize;

use super::setting::Common;
use super::table::Table;

/// Flags of `rewind bench overhead`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Numbers of sequences side by side.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Pairs of steps, one with the monitor and one without, at each number of sequences; all rounds
    /// together.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Steps after which sequences begin anew, so that steps stay alike.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Of sampling; 0 is greedy.
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    temperature: f32,
    /// Of the order within pairs, and of sampling.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Run a third step in every pair, without the monitor: its difference from the other one without
    /// is what this method reports of nothing.
    #[arg(long)]
    control: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    overhead: Vec<OverheadFigures>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let overhead = Overhead {
        batches: arguments.batch.iter().copied().map(usize::from).collect(),
        pairs: arguments.pairs as usize,
        rounds: arguments.common.rounds(),
        context: arguments.context as usize,
        temperature: arguments.temperature,
        seed: arguments.seed,
        control: arguments.control,
    };
    let common = &arguments.common;
    let mut setting = common.load(common.checkpoint()?, overhead.room())?;
    let ticks = overhead.ticks();
    let measured = setting.measure("overhead", ticks, |session| overhead.run(session))?;
    setting.report("overhead", Figures { overhead: measured }, print)
}

fn print(figures: &Figures) -> Result<()> {
    let mut table = Table::new(&[
        "format",
        "batch",
        "pairs",
        "ms a step",
        "with monitor",
        "µs more",
        "of a step",
        "95 %",
        "of nothing",
    ]);
    for one in &figures.overhead {
        let percent = |x: f64| format!("{:+.3} %", 100.0 * x);
        let span = |i: Interval| format!("{} – {}", percent(i.low), percent(i.high));
        table.row([
            one.format.clone(),
            one.batch.to_string(),
            one.pairs.to_string(),
            format!("{:.4}", 1e3 * one.off_seconds.median),
            format!("{:.4}", 1e3 * one.on_seconds.median),
            format!("{:+.2}", 1e6 * one.difference_seconds.median),
            percent(one.relative.median),
            span(one.relative),
            one.control.map_or("–".into(), span),
        ]);
    }
    table.print()
}
