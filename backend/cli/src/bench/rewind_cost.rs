//! `rewind bench rewind-cost`.

use anyhow::Result;
use clap::Args;
use rewind_bench::{Choosing, Interval, RewindCost, RewindCostFigures};

use super::setting::Common;
use super::table::Table;
use crate::output;

/// Flags of `rewind bench rewind-cost`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Most rows of a shadow pass.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    rows: u16,
    /// Numbers of rows above that to measure too, ascending.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    further: Vec<u16>,
    /// Tokens in the cache before them.
    #[arg(long, value_name = "N", default_value_t = 128)]
    context: u32,
    /// Times that every pass runs in a round.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Of the order of passes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cost = RewindCost {
        rows: arguments.rows.into(),
        further: arguments.further.iter().copied().map(usize::from).collect(),
        context: arguments.context as usize,
        rounds: arguments.common.rounds(),
        turns: arguments.turns as usize,
        seed: arguments.seed,
    };
    let common = &arguments.common;
    let mut setting = common.load(common.checkpoint()?, cost.room())?;
    let ticks = cost.ticks();
    let measured = setting.measure("rewind-cost", ticks, |session| cost.run(session))?;
    setting.report("rewind-cost", measured, print)
}

fn print(figures: &RewindCostFigures) -> Result<()> {
    output::line(format_args!(
        "a draft step takes {:.3} ms ({} tokens in the cache)\n",
        1e3 * figures.draft_step_seconds.median,
        figures.context
    ))?;
    let mut table = Table::new(&[
        "shadow rows",
        "choosing",
        "ms",
        "of one row",
        "95 %",
        "of a draft step",
        "95 %",
    ]);
    let ratio = |i: Interval| [format!("{:.2}", i.median), format!("{:.2} – {:.2}", i.low, i.high)];
    for pass in &figures.passes {
        let choosing = match pass.choosing {
            Choosing::All => "all",
            Choosing::Last => "the last",
        };
        let head =
            [pass.rows.to_string(), choosing.into(), format!("{:.3}", 1e3 * pass.seconds.median)];
        let cells = head.into_iter().chain(ratio(pass.shadow_rows)).chain(ratio(pass.draft_steps));
        table.row(cells);
    }
    table.print()
}
