//! `rewind bench`: how fast this machine is, and what the monitor and rewinds cost on it.
//!
//! Measuring is the work of `rewind-bench`; here are the flags, the model, and the printing.

mod dead_compute;
mod overhead;
mod rewind_cost;
mod setting;
mod speed;
mod table;
mod throughput;

pub(crate) use self::table::Table;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Flags of `rewind bench`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    measurement: Measurement,
}

/// What to measure.
#[derive(Debug, Subcommand)]
enum Measurement {
    /// Tokens a second of one sequence, from an empty cache.
    Decode(speed::DecodeArguments),
    /// Tokens a second of a prompt, read in one pass.
    Prefill(speed::PrefillArguments),
    /// Tokens a second of several sequences side by side.
    Batch(speed::BatchArguments),
    /// What the monitor costs: steps with it and without, in turns, with rewinds impossible.
    Overhead(overhead::Arguments),
    /// What a rewind costs: shadow passes of several rows against draft steps.
    RewindCost(rewind_cost::Arguments),
    /// What a draft costs in tokens that nobody needed, and what each policy gives back.
    DeadCompute(dead_compute::Arguments),
    /// Tokens a second of every policy against the rate at which the monitor fires.
    Throughput(throughput::Arguments),
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match arguments.measurement {
        Measurement::Decode(arguments) => speed::decode(&arguments),
        Measurement::Prefill(arguments) => speed::prefill(&arguments),
        Measurement::Batch(arguments) => speed::batch(&arguments),
        Measurement::Overhead(arguments) => overhead::run(&arguments),
        Measurement::RewindCost(arguments) => rewind_cost::run(&arguments),
        Measurement::DeadCompute(arguments) => dead_compute::run(&arguments),
        Measurement::Throughput(arguments) => throughput::run(&arguments),
    }
}
