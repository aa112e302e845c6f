//! `cargo xtask bench`: checks and measurements of the demo model that take too long for `cargo xtask test`.
//!
//! Each is a `rewind` command, or a few, with the arguments that make its result comparable from one day to the next. What
//! needs a server is a test that pytest leaves out otherwise.

mod command;
mod cpu;
mod dead_compute;
mod formats;
mod fuzz;
mod instructions;
mod markdown;
mod miri;
mod monitor;
mod options;
mod plans;
mod quantize;
mod remarks;
mod revision;
mod spread;
mod triton;

use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::environment;
use crate::gpu;
use crate::process;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to run; without it, all there is to run is listed
    #[command(subcommand)]
    bench: Option<Bench>,
}

/// What there is to run.
#[derive(Debug, Subcommand)]
enum Bench {
    /// 50 prompts, greedy and sampled: every window, batch size, thread count and driver gives the shadow's bytes
    Lossless(Further),
    /// Shadow regret and dead compute of the policies, over the same prompts
    Regret(Further),
    /// Perplexity of a book chapter under the shadow and under the draft formats
    Perplexity(Further),
    /// How well detectors see where draft and shadow part, in five domains; writes the records to docs/dataset/
    Dataset(Further),
    /// What each format of a draft loses and saves; writes docs/benchmarks/formats.md
    Formats(formats::Options),
    /// What a draft costs in tokens that nobody needed, and what policies give back; writes docs/benchmarks/dead-compute.md
    DeadCompute(dead_compute::Options),
    /// What layers with fewer bits cost, in order of importance and in none; writes docs/benchmarks/plans.md
    Plans(plans::Options),
    /// What each method of quantizing loses, and takes; writes docs/benchmarks/quantize.md
    Quantize(quantize::Options),
    /// Speed on a CPU, llama.cpp beside it; writes docs/benchmarks/cpu.md
    Cpu(options::Options),
    /// Speed through a server, the engine alone beside it; writes docs/benchmarks/triton.md
    Triton(options::Options),
    /// What the monitor, a rewind and each policy cost on a CPU; writes docs/benchmarks/monitor.md
    Monitor(monitor::Options),
    /// Instructions of a pass on a CPU, against those it took before
    Instructions(instructions::Options),
    /// The CPU engine's tests in Miri: AVX-512 on any machine, races between threads, 64-bit ARM
    Miri,
    /// The readers of files under a fuzzer, each for some time
    Fuzz(fuzz::Options),
    /// Speed on a GPU: draft steps, shadow passes, the monitor, PyTorch beside them
    Gpu(Further),
}

/// Options of the programs behind a bench.
#[derive(Debug, Default, Args)]
struct Further {
    /// Further arguments of the `rewind` command or of `gpu-bench`, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// A bench that `rewind` commands, and tests against a server, make up.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    /// Arguments of the commands, besides the model. Paths are relative to the checkout.
    commands: &'static [&'static [&'static str]],
    /// Relative to `tests/`.
    tests: Option<&'static str>,
}

const PROMPTS: &str = "tests/data/prompts.txt";
const TEXT: &str = "tests/golden/eighty_days.txt";

const LOSSLESS: Recipe = Recipe {
    commands: &[&["verify", "--prompts", PROMPTS]],
    tests: Some("e2e/test_lossless_full.py"),
};
const REGRET: Recipe = Recipe { commands: &[&["regret", "--prompts", PROMPTS]], tests: None };
const PERPLEXITY: Recipe = Recipe {
    commands: &[
        &["perplexity", "--text", TEXT, "--weights", "shadow"],
        &["perplexity", "--text", TEXT, "--weights", "int8"],
        &["perplexity", "--text", TEXT, "--weights", "int4-g32"],
    ],
    tests: None,
};
const DATASET: Recipe = Recipe {
    commands: &[
        &["calibrate", "--draft", "int8", "--records", "docs/dataset/int8.parquet"],
        &["calibrate", "--draft", "int6-g64", "--records", "docs/dataset/int6-g64.parquet"],
        &["calibrate", "--draft", "int4-g32", "--records", "docs/dataset/int4-g32.parquet"],
    ],
    tests: None,
};

/// Lists the benches, or runs one.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    match &options.bench {
        None => {
            println!("{}", list());
            Ok(())
        }
        Some(Bench::Lossless(further)) => LOSSLESS.run(project, further),
        Some(Bench::Regret(further)) => REGRET.run(project, further),
        Some(Bench::Perplexity(further)) => PERPLEXITY.run(project, further),
        Some(Bench::Dataset(further)) => DATASET.run(project, further),
        Some(Bench::Formats(options)) => formats::run(project, options),
        Some(Bench::DeadCompute(options)) => dead_compute::run(project, options),
        Some(Bench::Plans(options)) => plans::run(project, options),
        Some(Bench::Quantize(options)) => quantize::run(project, options),
        Some(Bench::Cpu(options)) => cpu::run(project, options),
        Some(Bench::Triton(options)) => triton::run(project, options),
        Some(Bench::Monitor(options)) => monitor::run(project, options),
        Some(Bench::Instructions(options)) => instructions::run(project, options),
        Some(Bench::Miri) => miri::run(project),
        Some(Bench::Fuzz(options)) => fuzz::run(project, options),
        Some(Bench::Gpu(further)) => gpu::bench(project, &further.arguments),
    }
}

impl Recipe {
    fn run(self, project: &Project, further: &Further) -> Result<()> {
        let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
        for arguments in self.commands {
            let mut command = Command::new(&assembly.cli);
            command.args(*arguments).arg("--model").arg(&tools.model).args(&further.arguments);
            command.current_dir(project.path(""));
            process::visible(command)?;
        }
        if let Some(tests) = self.tests {
            let mut command = tools.python.command(["-m", "pytest", "-m", "long", tests]);
            command.current_dir(project.path("tests"));
            command.envs(environment::end_to_end(project, &tools, &assembly));
            process::visible(command)?;
        }
        Ok(())
    }
}

fn list() -> String {
    let benches = Bench::augment_subcommands(clap::Command::new("bench"));
    let line = |bench: &clap::Command| {
        let shows = bench.get_about().map(ToString::to_string).unwrap_or_default();
        format!("cargo xtask bench {:<12} {shows}", bench.get_name())
    };
    benches.get_subcommands().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_list_names_every_bench_and_what_it_shows() {
        let list = list();
        for bench in [
            "lossless     50 prompts",
            "regret",
            "perplexity",
            "dataset",
            "formats",
            "plans",
            "quantize",
            "cpu",
            "triton",
            "monitor",
            "instructions",
            "miri",
            "fuzz",
            "gpu",
        ] {
            assert!(list.contains(&format!("cargo xtask bench {bench}")), "{list}");
        }
    }

    #[test]
    fn the_files_of_every_bench_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for Recipe { commands, tests } in [LOSSLESS, REGRET, PERPLEXITY] {
            let arguments = commands.iter().copied().flatten();
            for file in arguments.filter(|argument| argument.contains('/')) {
                assert!(root.join(file).exists(), "{file}");
            }
            if let Some(tests) = tests {
                assert!(root.join("tests").join(tests).exists(), "{tests}");
            }
        }
    }
}
