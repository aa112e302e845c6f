//! `gpu-bench`: how fast is this build on this GPU?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use rewind_gpu::bandwidth;
use rewind_gpu::budget::Budget;
use rewind_gpu::machine;
use rewind_gpu::report::{Outcome, Report, Table};
use rewind_kernels::Device;

/// Measures kernels and engine on a GPU. Exits with 2 if there is none.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// GPU to use, by the driver's number
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Run this section only; may be repeated
    #[arg(long, value_name = "SECTION")]
    only: Vec<Section>,
    /// Folder for the results
    #[arg(long, default_value = ".")]
    output: PathBuf,
    /// Stop after so many minutes
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
}

/// A part of the measurements, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Copies within the device's memory
    Bandwidth,
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
    for &section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(&section) {
            continue;
        }
        match section {
            Section::Bandwidth => report.section("bandwidth", &budget, |findings| {
                let title = "Copies within the device, bytes read and written";
                let mut table = Table::new(title, &["size, MiB", "GB/s"]);
                let mut best: f64 = 0.0;
                for bytes in bandwidth::SIZES {
                    let rate = bandwidth::copy_rate(&mut device, bytes)?;
                    table.row([format!("{}", bytes >> 20), format!("{:.0}", rate / 1e9)]);
                    best = rate;
                }
                findings.tables.push(table);
                Ok(Outcome::Passed(format!("{:.0} GB/s", best / 1e9)))
            }),
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
