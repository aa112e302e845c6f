//! `rewind`: generate, measure and check, from a terminal.
//!
//! Every command is thin: it parses flags, loads a model through `rewind-serving` and prints. Answers
//! go to standard output, everything else to standard error; a failure is one line and exit code 1
//! (2 for flags that do not parse).
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod bench_engine;
mod calibrate;
mod documents;
mod generate;
mod inspect;
mod layers;
mod output;
mod perplexity;
mod progress;
mod prompts;
mod quantize;
mod reader;
mod regret;
mod run;
mod score;
mod stress;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Serve a quantized model, and rewind to its full-precision shadow where it is unsure.
#[derive(Debug, Parser)]
#[command(name = "rewind", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt.
    Generate(generate::Arguments),
    /// Perplexity of a text under the shadow or a quantized copy.
    Perplexity(perplexity::Arguments),
    /// What quantization costs, and what rewinding gives back: shadow regret of several policies.
    Regret(regret::Arguments),
    /// Check that lossless answers are the shadow's, byte for byte.
    Verify(verify::Arguments),
    /// Measure speed on this machine: passes, prompts, the monitor, rewinds, policies.
    Bench(bench::Arguments),
    /// Run the engine alone under the load of a server, a round for each line of standard input.
    BenchEngine(bench_engine::Arguments),
    /// Choose the format of each layer by its importance, and write a plan.
    Quantize(quantize::Arguments),
    /// Fit detectors and thresholds to texts, and write them as profiles.
    Calibrate(calibrate::Arguments),
    /// The chip at full load, and whether its temperature moves what the monitor sees.
    Stress(stress::Arguments),
    /// Show what is in a checkpoint and what this machine would make of it.
    Inspect(inspect::Arguments),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("REWIND_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Cli::parse().command {
        Command::Generate(arguments) => generate::run(arguments),
        Command::Perplexity(arguments) => perplexity::run(arguments),
        Command::Regret(arguments) => regret::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::BenchEngine(arguments) => bench_engine::run(arguments),
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Calibrate(arguments) => calibrate::run(arguments),
        Command::Stress(arguments) => stress::run(&arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", console::style("error:").red().bold().for_stderr());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
