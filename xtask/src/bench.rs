//! `cargo xtask bench`: checks and measurements of the demo model that take too long for `cargo xtask test`.
//!
//! Each is a `rewind` command, or a few, with the arguments that make its result comparable from one day to the next. What
//! needs a server is a test that pytest leaves out otherwise.

use std::process::Command;

use anyhow::Result;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::environment;
use crate::gpu;
use crate::process;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to run; without it, all there is to run is listed
    name: Option<Bench>,
    /// Further arguments of the `rewind` command or of `gpu-bench`, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// What there is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// 50 prompts, greedy and sampled: every window, batch size, thread count and driver gives the shadow's bytes
    Lossless,
    /// Shadow regret and dead compute of the policies, over the same prompts
    Regret,
    /// Perplexity of a book chapter under the shadow and under the draft formats
    Perplexity,
    /// Speed on a GPU: draft steps, shadow passes, the monitor, PyTorch beside them
    Gpu,
}

impl Bench {
    /// Arguments of the `rewind` commands, besides the model. Paths are relative to the checkout.
    fn commands(self) -> &'static [&'static [&'static str]] {
        const PROMPTS: &str = "tests/data/prompts.txt";
        const TEXT: &str = "tests/golden/eighty_days.txt";
        match self {
            Self::Lossless => &[&["verify", "--prompts", PROMPTS]],
            Self::Regret => &[&["regret", "--prompts", PROMPTS]],
            Self::Perplexity => &[
                &["perplexity", "--text", TEXT, "--weights", "shadow"],
                &["perplexity", "--text", TEXT, "--weights", "int8"],
                &["perplexity", "--text", TEXT, "--weights", "int4-g32"],
            ],
            // Programs of their own, see `gpu`.
            Self::Gpu => &[],
        }
    }

    /// Tests against a server that belong to it, relative to `tests/`.
    fn tests(self) -> Option<&'static str> {
        match self {
            Self::Lossless => Some("e2e/test_lossless_full.py"),
            Self::Regret | Self::Perplexity | Self::Gpu => None,
        }
    }
}

/// Lists the benches, or runs one.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let Some(bench) = options.name else {
        println!("{}", list());
        return Ok(());
    };
    if bench == Bench::Gpu {
        return gpu::bench(project, &options.arguments);
    }
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    for arguments in bench.commands() {
        let mut command = Command::new(&assembly.cli);
        command.args(*arguments).arg("--model").arg(&tools.model).args(&options.arguments);
        command.current_dir(project.path(""));
        process::visible(command)?;
    }
    if let Some(tests) = bench.tests() {
        let mut command = tools.python.command(["-m", "pytest", "-m", "long", tests]);
        command.current_dir(project.path("tests"));
        command.envs(environment::end_to_end(project, &tools, &assembly));
        process::visible(command)?;
    }
    Ok(())
}

fn list() -> String {
    let benches = Bench::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let line = |bench: PossibleValue| {
        let shows = bench.get_help().map(ToString::to_string).unwrap_or_default();
        format!("cargo xtask bench {:<12} {shows}", bench.get_name())
    };
    benches.map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_list_names_every_bench_and_what_it_shows() {
        let list = list();
        assert_eq!(list.lines().count(), Bench::value_variants().len());
        assert!(list.contains("cargo xtask bench lossless     50 prompts"), "{list}");
    }

    #[test]
    fn the_files_of_every_bench_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let arguments = Bench::value_variants().iter().flat_map(|bench| bench.commands()).copied();
        for file in arguments.flatten().filter(|argument| argument.contains('/')) {
            assert!(root.join(file).exists(), "{file}");
        }
        for tests in Bench::value_variants().iter().filter_map(|bench| bench.tests()) {
            assert!(root.join("tests").join(tests).exists(), "{tests}");
        }
    }
}
