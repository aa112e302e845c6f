//! `gpu-check`: is this build right on this GPU?

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Error, Result};
use clap::{Parser, ValueEnum};
use rewind_executor_suite::Scale;
use rewind_gpu::budget::Budget;
use rewind_gpu::executor::Cuda;
use rewind_gpu::report::Report;
use rewind_gpu::{demo, executor, machine, sanitizer, suite};
use rewind_kernels::Device;

/// Checks kernels and engine on a GPU. Exits with 0 if all is well, 1 if something is wrong, 2 if there is
/// no GPU to check.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// GPU to use, by the driver's number
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// Model of the section `model`; without it, model.gguf beside this program
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Run this section only; may be repeated
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// Folder for the results
    #[arg(long, default_value = ".")]
    output: PathBuf,
    /// Write no results
    #[arg(long, conflicts_with = "output")]
    dry: bool,
    /// Stop after so many minutes
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
}

/// A part of the check, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Every kernel against its reference
    Suite,
    /// Every kernel three times, the same bits
    Repeatable,
    /// The executor over small models: exact, in any company the same, as the CPU's
    Executor,
    /// A real model: as on the CPU, lossless answers the shadow's, neighbours without a trace
    Model,
    /// compute-sanitizer over the suite, where it is installed
    Sanitizer,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let limit = Duration::try_from_secs_f64(options.minutes * 60.0)?;
    let budget = Budget::new(limit);
    let ordinal = options.gpu as usize;
    let mut device = match machine::open(ordinal) {
        Ok(device) => device,
        Err(why) => {
            eprintln!("{why}");
            return Ok(ExitCode::from(2));
        }
    };
    let particulars = machine::particulars(ordinal);
    let mut report = Report::new("gpu-check", device.description(), particulars);
    for &section in Section::value_variants() {
        let name =
            section.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        if !options.only.is_empty() && !options.only.contains(&section) {
            continue;
        }
        match section {
            Section::Suite => report
                .section(&name, &budget, |findings| suite::right(&mut device, &budget, findings)),
            Section::Repeatable => report.section(&name, &budget, |findings| {
                suite::repeatable(&mut device, &budget, findings)
            }),
            // Sections share what is left so that a slow one does not eat up those behind it.
            Section::Executor => report.section(&name, &budget, |findings| {
                let open = move || machine::open(ordinal).map_err(Error::msg);
                executor::right(&Cuda::new(Scale::FULL, open), &budget.share(0.5), findings)
            }),
            Section::Model => match demo::find(options.model.as_deref()) {
                Err(why) => report.skip(&name, &why),
                Ok(path) => report.section(&name, &budget, |findings| {
                    use rewind_serving::Device::{Cpu, Cuda};
                    let devices = [Cpu, Cuda(options.gpu)];
                    demo::check(&path, devices, demo::Extent::FULL, &budget.share(0.6), findings)
                }),
            },
            Section::Sanitizer => match sanitizer::find() {
                Err(why) => report.skip(&name, &why),
                Ok(tool) => report.section(&name, &budget, |findings| {
                    let this = env::current_exe()?;
                    let gpu = options.gpu.to_string();
                    let arguments = ["--only", "suite", "--dry", "--gpu", &gpu];
                    sanitizer::check(&tool, &this, &arguments, &budget, findings)
                }),
            },
        }
    }
    if !options.dry {
        let file = report.write(&options.output)?;
        println!("\nResults: {}", file.display());
    }
    println!("\n{}", report.summary());
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }
}
