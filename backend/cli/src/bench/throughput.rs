//! `rewind bench throughput`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rewind_bench::{
    Pooling, PoolingFigures, Room, Throughput, ThroughputFigures, ThroughputLine, Verdict,
};
use rewind_checkpoint::Checkpoint;
use rewind_engine::text::Vocabulary;
use rewind_engine::{Policy, Settings, Token};
use rewind_serving::{DEFAULT_REFRESH, DEFAULT_WINDOW, MAX_WINDOW, PolicyName};
use serde::Serialize;

use super::setting::Common;
use super::table::Table;
use crate::{output, prompts};

/// Flags of `rewind bench throughput`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Policies to compare.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "off,step,window,lossless,shadow"
    )]
    policies: Vec<PolicyName>,
    /// Shares of steps at which the monitor is made to fire.
    #[arg(long, value_name = "XS", value_delimiter = ',', default_value = "0,0.02,0.05,0.1,0.2,0.5,1", value_parser = share)]
    rates: Vec<f64>,
    /// Numbers of sequences side by side.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,
    /// Tokens to time, for each sequence on average.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    /// Tokens held back by the policies window and lossless.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WINDOW, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WINDOW)))]
    window: u32,
    /// Draft positions that a rewind writes anew, in the policies step and window.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_REFRESH, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_WINDOW)))]
    refresh: u32,
    /// Rows that start a shadow pass that others may join.
    #[arg(long, value_name = "N", default_value_t = Settings::default().verify_rows)]
    verify_rows: u32,
    /// Iterations after which a waiting row starts one.
    #[arg(long, value_name = "N", default_value_t = Settings::default().verify_wait)]
    verify_wait: u32,
    /// Prompts, one on each line; some of its own if not given.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Of the verdicts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave out the sweep over verify_rows and verify_wait.
    #[arg(long)]
    no_sweep: bool,
    /// Values of verify_rows to try in the sweep.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,4,8,16")]
    sweep_rows: Vec<u32>,
    /// Values of verify_wait to try in the sweep.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,2,4")]
    sweep_wait: Vec<u32>,
    /// Share of steps at which the monitor is made to fire in the sweep.
    #[arg(long, value_name = "X", default_value_t = 0.1, value_parser = share)]
    sweep_rate: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Beginnings of texts, where no file of prompts is given.
const PROMPTS: [&str; 16] = [
    "The lighthouse stood on a rock that the sea had almost taken, and",
    "To repair a flat tyre on a bicycle, first",
    "The three largest rivers of Europe are",
    "Dear Ms. Okafor, thank you for your letter of last week. We",
    "A prime number is a whole number greater than one that",
    "When the train finally arrived, nobody on the platform",
    "Ingredients for four people: two onions, a glass of red lentils,",
    "In 1969 two people walked on the Moon, while a third",
    "fn main() {\n    let mut numbers = vec![3, 1, 2];\n",
    "The difference between weather and climate is that",
    "My grandmother kept bees for forty years, and she always said",
    "Water boils at a lower temperature on a mountain because",
    "The committee met on Tuesday to discuss the new library, but",
    "Once there was a fox who could not tell a lie, so",
    "Light travels from the Sun to the Earth in about",
    "Rules of the house: first, take off your shoes; second,",
];

#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    throughput: ThroughputFigures,
    /// What `verify_rows` and `verify_wait` make of it; `None` if it was left out.
    sweep: Option<PoolingFigures>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let common = &arguments.common;
    let checkpoint = common.checkpoint()?;
    let prompts = tokenize(&checkpoint, arguments)?;
    let pieces =
        (0..checkpoint.spec().vocab_size as Token).map(|id| checkpoint.tokenizer().piece(id));
    let vocabulary = Vocabulary::new(pieces);
    let batches: Vec<_> = arguments.batch.iter().copied().map(usize::from).collect();
    let policies: Vec<_> = arguments
        .policies
        .iter()
        .map(|policy| policy.with(arguments.window, arguments.refresh))
        .collect();
    let settings = |room: Room| Settings {
        max_batch_rows: room.rows as u32,
        verify_rows: arguments.verify_rows,
        verify_wait: arguments.verify_wait,
        ..Settings::default()
    };
    let mut throughput = Throughput {
        policies: policies.clone(),
        rates: arguments.rates.clone(),
        batches: batches.clone(),
        tokens: arguments.tokens as usize,
        rounds: common.rounds(),
        seed: arguments.seed,
        settings: Settings::default(),
        prompts: &prompts,
        vocabulary: &vocabulary,
    };
    let room = throughput.room();
    throughput.settings = settings(room);
    // Alone, a sequence has nobody to wait for; without verifications, there is nothing to pool.
    let pooled =
        |policy: &Policy| !matches!(policy, Policy::Off | Policy::Observe | Policy::Shadow);
    let pooling = Pooling {
        policies: policies.into_iter().filter(pooled).collect(),
        batches: batches.into_iter().filter(|&batch| batch > 1).collect(),
        rate: arguments.sweep_rate,
        verify_rows: arguments.sweep_rows.clone(),
        verify_wait: arguments.sweep_wait.clone(),
        tokens: arguments.tokens as usize,
        rounds: common.rounds(),
        seed: arguments.seed,
        settings: settings(room),
        prompts: &prompts,
        vocabulary: &vocabulary,
    };

    let mut setting = common.load(checkpoint, room)?;
    let ticks = throughput.ticks();
    let measured = setting.measure("throughput", ticks, |session| throughput.run(session))?;
    let sweep = if arguments.no_sweep {
        None
    } else {
        Some(setting.measure("sweep", pooling.ticks(), |session| pooling.run(session))?)
    };
    setting.report("throughput", Figures { throughput: measured, sweep }, print)
}

fn tokenize(checkpoint: &Checkpoint, arguments: &Arguments) -> Result<Vec<Vec<Token>>> {
    let texts = match &arguments.prompts {
        Some(path) => prompts::read(path)?,
        None => PROMPTS.map(str::to_owned).to_vec(),
    };
    let encode = |text: &String| {
        let encoded = checkpoint.tokenizer().encode(text, true);
        encoded.with_context(|| format!("cannot tokenize {text:?}"))
    };
    texts.iter().map(encode).collect()
}

fn print(figures: &Figures) -> Result<()> {
    let throughput = &figures.throughput;
    output::line(format_args!(
        "{} tokens a sequence, verify_rows {}, verify_wait {}\n",
        throughput.tokens, throughput.verify_rows, throughput.verify_wait
    ))?;
    let mut table = Table::new(&[
        "batch",
        "policy",
        "rate",
        "fired",
        "tok/s",
        "95 %",
        "of shadow",
        "shadow rows/tok",
        "discarded/tok",
        "late gap, ms",
    ]);
    for line in &throughput.policies {
        let percent = |x: Option<f64>| x.map_or("–".into(), |x| format!("{:.1} %", 100.0 * x));
        let speed = line.tokens_per_second.interval();
        let shadow = shadow_beside(&throughput.policies, line);
        table.row([
            line.batch.to_string(),
            line.policy.clone(),
            percent(line.rate),
            percent(line.fired),
            format!("{:.1}", speed.median),
            format!("{:.1} – {:.1}", speed.low, speed.high),
            shadow.map_or("–".into(), |shadow| format!("{:.2}", speed.median / shadow)),
            format!("{:.2}", line.shadow_rows_per_token),
            format!("{:.2}", line.discarded_per_token),
            format!("{:.1}", 1e3 * line.late_gap_seconds),
        ]);
    }
    table.print()?;
    output::line("")?;
    for one in &throughput.break_even {
        let rate = 100.0 * one.rate.unwrap_or(0.0);
        let verdict = match one.verdict {
            Verdict::FasterBelow => format!("faster than the shadow below a rate of {rate:.1} %"),
            Verdict::AlwaysFaster => "faster than the shadow at every rate".into(),
            Verdict::NeverFaster => "no faster than the shadow at any rate".into(),
        };
        output::line(format_args!("{}, batch {}: {verdict}", one.policy, one.batch))?;
    }
    figures.sweep.as_ref().map_or(Ok(()), print_sweep)
}

fn shadow_beside(lines: &[ThroughputLine], line: &ThroughputLine) -> Option<f64> {
    let shadow = Policy::Shadow.to_string();
    let beside = lines.iter().find(|one| one.policy == shadow && one.batch == line.batch)?;
    Some(beside.tokens_per_second.median)
}

fn print_sweep(sweep: &PoolingFigures) -> Result<()> {
    output::line(format_args!("\nat a rate of {:.1} %\n", 100.0 * sweep.rate))?;
    let mut table = Table::new(&[
        "batch",
        "policy",
        "verify_rows",
        "verify_wait",
        "tok/s",
        "95 %",
        "of the best",
        "late gap, ms",
    ]);
    for line in &sweep.lines {
        let speed = line.tokens_per_second.interval();
        table.row([
            line.batch.to_string(),
            line.policy.clone(),
            line.verify_rows.to_string(),
            line.verify_wait.to_string(),
            format!("{:.1}", speed.median),
            format!("{:.1} – {:.1}", speed.low, speed.high),
            format!("{:.3}", line.of_best),
            format!("{:.1}", 1e3 * line.late_gap_seconds),
        ]);
    }
    table.print()?;
    output::line("")?;
    let mut table = Table::new(&["verify_rows", "verify_wait", "of the best", "worst"]);
    for choice in &sweep.choices {
        table.row([
            choice.verify_rows.to_string(),
            choice.verify_wait.to_string(),
            format!("{:.3}", choice.of_best),
            format!("{:.3}", choice.worst),
        ]);
    }
    table.print()
}
