//! Chores of the project, in Rust instead of shell scripts: `cargo xtask demo | serve | test | …`.
//!
//! Everything a chore needs is set up first, inside the checkout's own `.rewind/` folder; a machine needs cargo, python3
//! and a C compiler, nothing else.

#![forbid(unsafe_code)]

mod answer;
mod bench;
mod demo;
mod environment;
mod exports;
mod generate;
mod gpu;
mod interrupt;
mod kernels;
mod marks;
mod process;
mod progress;
mod project;
mod serve;
mod server;
mod setup;
mod sse;
mod stages;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use console::style;

use crate::project::Project;
use crate::setup::Kernels;

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "Set-up and chores of Rewind")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Fetch a server, the demo model and a Python environment; build; lay out the model repositories
    Setup,
    /// Set up, start a real server, and stream an answer with its rewinds in colour
    Demo(demo::Options),
    /// Set up and serve until Ctrl-C; prints curl lines to paste
    Serve(serve::Options),
    /// Set up and run every check
    Test(stages::Options),
    /// Format the sources
    Fmt,
    /// Check formatting and run clippy
    Lint,
    /// List or run the checks and measurements that take long
    Bench(bench::Options),
    /// Check kernels and engine on a GPU, or make a folder to carry to one
    GpuCheck(gpu::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::asked() => {
            eprintln!("Interrupted.");
            // What a shell reports for a program that Ctrl-C ended.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("{} {error:#}", style("error:").red().bold());
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let project = Project::locate()?;
    match chore {
        Chore::Setup => {
            let (tools, assembly) = setup::everything(&project, Kernels::ForAGpu)?;
            println!("server    {}", tools.server.binary().display());
            println!("model     {}", tools.model.display());
            println!("python    {}", tools.python.interpreter().display());
            println!("backend   {}", assembly.library.display());
            println!("command   {}", assembly.cli.display());
            println!("Next: cargo xtask demo");
            Ok(())
        }
        Chore::Demo(options) => demo::run(&project, options),
        Chore::Serve(options) => serve::run(&project, &options),
        Chore::Test(options) => stages::run(&project, &options),
        Chore::Fmt => stages::format(&project, false),
        Chore::Lint => stages::lint(&project),
        Chore::Bench(options) => bench::run(&project, &options),
        Chore::GpuCheck(options) => gpu::check(&project, &options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
