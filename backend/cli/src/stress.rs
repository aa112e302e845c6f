//! `rewind stress`: the chip at full load, and whether that moves what the monitor sees.
//!
//! A text is read by draft and shadow again and again, on all cores or the GPU. Each reading tells the temperature, what
//! it makes of the threshold, and whether any entropy has changed by a bit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rewind_engine::{Executor, Weights};
use rewind_evidence::{Document, Heat, HeatRound, HeatSummary, Reading, TraceSettings, trace};
use rewind_serving::{Model, Parameters, Prompt};
use serde::Serialize;

use crate::arguments::ModelArguments;
use crate::bench::Table;
use crate::{output, progress};

/// Flags of `rewind stress`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Text to read, UTF-8.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of it that a reading takes.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    context: u32,
    /// How long to go on.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Time between the readings that are told; the others are looked at, too.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Positions at the start that are read and not judged.
const PROMPT: usize = 1;

#[derive(Debug, Serialize)]
struct Report {
    draft_identity: String,
    shadow_identity: String,
    detector: &'static str,
    thermometer: bool,
    summary: HeatSummary,
    rounds: Vec<HeatRound>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let text = std::fs::read_to_string(&arguments.text)
        .with_context(|| format!("cannot read {} as UTF-8", arguments.text.display()))?;
    let mut options = arguments.model.options(arguments.threads);
    options.max_sequences = Some(2);
    let (model, mut engine) = progress::load(options)?;
    let mut tokens = model.tokenizer().encode(&text, true)?;
    tokens.truncate(arguments.context as usize);
    let document = Document {
        domain: "stress".into(),
        name: arguments.text.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        tokens,
        prompt: PROMPT,
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let settings = TraceSettings {
        temperatures: Vec::new(),
        seed: 0,
        threads: arguments.threads.map_or(cores, usize::from),
    };
    let sensors = || Reading { celsius: model.thermal().celsius, megahertz: None };
    let (start, mut heat) = (Instant::now(), Heat::default());
    let whole = Duration::from_secs(arguments.seconds.into());
    let bar = progress::bar(arguments.seconds.into(), "seconds");
    // Twice at least: once is compared with nothing.
    while heat.rounds().len() < 2 || start.elapsed() < whole {
        let read = trace(engine.executor_mut(), &document, &settings, sensors, |_| ())?;
        let (coefficient, threshold, _) = frozen(&model)?;
        heat.add(start.elapsed().as_secs_f64(), coefficient, threshold, &read);
        bar.set_position(start.elapsed().as_secs().min(arguments.seconds.into()));
    }
    bar.finish_and_clear();
    let summary = heat.summary().context("nothing was read")?;
    let (_, _, detector) = frozen(&model)?;
    let report = Report {
        draft_identity: engine.executor().identity(Weights::Draft),
        shadow_identity: engine.executor().identity(Weights::Full),
        detector,
        thermometer: summary.celsius.is_some(),
        summary,
        rounds: told(heat.rounds(), f64::from(arguments.every)),
    };
    if arguments.json { output::json(&report) } else { print(&report) }
}

/// KT, CL and detector of a request that comes now.
fn frozen(model: &Model) -> Result<(f32, f32, &'static str)> {
    let prepared = model.prepare(Prompt::Text("x".into()), &Parameters::default())?;
    Ok((
        prepared.frozen.thermal_coefficient,
        prepared.frozen.gate.threshold,
        prepared.frozen.gate.detector.name(),
    ))
}

/// The first round, the last, and one in so many seconds.
fn told(rounds: &[HeatRound], every: f64) -> Vec<HeatRound> {
    let mut kept: Vec<HeatRound> = Vec::new();
    for (number, round) in rounds.iter().enumerate() {
        let due = kept.last().is_none_or(|last| round.seconds >= last.seconds + every);
        if due || number + 1 == rounds.len() || round.moved > 0 {
            kept.push(*round);
        }
    }
    kept
}

fn print(report: &Report) -> Result<()> {
    let mut table =
        Table::new(&["s", "°C", "KT", "CL", "H draft", "H shadow", "moved", "largest change"]);
    for round in &report.rounds {
        table.row([
            format!("{:.1}", round.seconds),
            round.celsius.map_or("–".into(), |celsius| format!("{celsius:.1}")),
            format!("{:.3}", round.coefficient),
            format!("{:.4}", round.threshold),
            format!("{:.6}", round.draft_entropy),
            format!("{:.6}", round.shadow_entropy),
            round.moved.to_string(),
            format!("{:e}", round.largest),
        ]);
    }
    table.print()?;
    let HeatSummary { rounds, positions, celsius, moved, .. } = report.summary;
    match celsius {
        Some([low, high]) => output::line(format_args!("\n{low:.1} to {high:.1} °C"))?,
        None => output::line(
            "\nSKIP temperature: this machine has no sensor that can be read; KT stays 1",
        )?,
    }
    output::line(format_args!(
        "{rounds} readings of {positions} positions: {moved} of {} entropies are other than in the first",
        2 * positions
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_moved_are_always_told() {
        let round = |seconds: f64, moved| HeatRound {
            seconds,
            celsius: None,
            coefficient: 1.0,
            threshold: 1.0,
            draft_entropy: 1.0,
            shadow_entropy: 1.0,
            moved,
            largest: 0.0,
        };
        let rounds = [
            round(0.5, 0),
            round(1.0, 0),
            round(1.5, 3),
            round(6.0, 0),
            round(9.0, 0),
            round(9.5, 0),
        ];
        let seconds: Vec<_> = told(&rounds, 5.0).iter().map(|round| round.seconds).collect();
        assert_eq!(seconds, [0.5, 1.5, 9.0, 9.5]);
    }
}
