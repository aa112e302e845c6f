//! `gpu-bench`: how fast is this build on this GPU?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Error, Result};
use clap::{Parser, ValueEnum};
use rewind_gpu::budget::Budget;
use rewind_gpu::report::{Outcome, Report, Table};
use rewind_gpu::shapes::shapes;
use rewind_gpu::speed::{self, Extent};
use rewind_gpu::{bandwidth, machine, peer};
use rewind_kernels::Device;

/// Measures kernels and engine on a GPU. Exits with 2 if there is none.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// GPU to use, by the driver's number
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Run this section only, and `bandwidth`, which others are measured by; may be repeated
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// Folder for the results
    #[arg(long, default_value = ".")]
    output: PathBuf,
    /// Stop after so many minutes
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
    /// Python that runs PyTorch
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
}

/// A part of the measurements, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Copies within the device's memory
    Bandwidth,
    /// Draft steps of every format, batch and context
    Decode,
    /// Shadow passes over 1 to 16 rows
    Shadow,
    /// What the monitor adds to a step
    Monitor,
    /// Prompts
    Prefill,
    /// The same decode steps in PyTorch
    Peer,
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
    let budget = Budget::new(Duration::try_from_secs_f64(options.minutes * 60.0)?);
    let mut device = match machine::open(options.gpu) {
        Ok(device) => device,
        Err(why) => {
            eprintln!("{why}");
            return Ok(ExitCode::from(2));
        }
    };
    let particulars = machine::particulars(options.gpu);
    let mut report = Report::new("gpu-bench", device.description(), particulars);
    let mut rate = f64::NAN;
    report.section("bandwidth", &budget, |findings| {
        let title = "Copies within the device, bytes read and written";
        let mut table = Table::new(title, &["size, MiB", "GB/s"]);
        for bytes in bandwidth::SIZES {
            rate = bandwidth::copy_rate(&mut device, bytes)?;
            table.row([format!("{}", bytes >> 20), format!("{:.0}", rate / 1e9)]);
        }
        findings.tables.push(table);
        Ok(Outcome::Passed(format!("{:.0} GB/s", rate / 1e9)))
    });
    // Every model is made on a device of its own, and wants all of its memory.
    drop(device);
    let open = || machine::open(options.gpu).map_err(Error::msg);
    let (shapes, extent) = (shapes(), Extent::FULL);
    let mut cells = Vec::new();
    for &section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(&section) {
            continue;
        }
        let name =
            section.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        // Of what is left, so that something is left for those behind.
        let part = |share| budget.share(share);
        match section {
            // It has run.
            Section::Bandwidth => {}
            Section::Decode => report.section(&name, &budget, |findings| {
                let budget = part(0.5);
                speed::decode(&open, &shapes, &extent, rate, &budget, findings, &mut cells)
            }),
            Section::Shadow => report.section(&name, &budget, |findings| {
                speed::shadow(&open, &shapes, &extent, rate, &part(0.3), findings)
            }),
            Section::Monitor => report.section(&name, &budget, |findings| {
                speed::monitor(&open, &shapes, &extent, &part(0.3), findings)
            }),
            Section::Prefill => report.section(&name, &budget, |findings| {
                speed::prefill(&open, &shapes, &extent, &part(0.3), findings)
            }),
            Section::Peer => match peer::find() {
                Err(why) => report.skip(&name, &why),
                Ok(script) => report.section(&name, &budget, |findings| {
                    peer::compare(&options.python, &script, options.gpu, &cells, &budget, findings)
                }),
            },
        }
    }
    let file = report.write(&options.output)?;
    println!("\nResults: {}\n\n{}", file.display(), report.summary());
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
