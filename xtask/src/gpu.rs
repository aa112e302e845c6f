//! `cargo xtask gpu-check` and `cargo xtask bench gpu`: programs that need a GPU, and a folder to carry them to one.
//!
//! Most machines that build Rewind have no GPU. So everything is laid out in one folder that runs wherever there is a
//! driver; where this machine has a GPU, it runs at once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::process;
use crate::project::Project;
use crate::setup::{self, Kernels, Tools};

/// Options of `cargo xtask gpu-check`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Further arguments of `gpu-check`, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Where results belong that are kept, relative to the checkout.
const RESULTS: &str = "docs/benchmarks";

/// Read by who finds the folder on another machine.
const README: &str = "\
Checks and measurements of Rewind on a GPU. Needs an NVIDIA driver for CUDA 13 (580 or later), a GPU of
sm_80 (Ampere) or later, and a Linux no older than the one it was built on; nothing else.

  ./gpu-check    is it right?    8 minutes at most; exits with 0 if all is well, 2 if there is no GPU
  ./gpu-bench    is it fast?     8 minutes at most; exits with 2 if there is no GPU

Both print a table last and write gpu-<device>*.md and .json into the current folder (--output FOLDER).
Keep those of a good run in docs/benchmarks/ of the checkout. Parts can be run alone, see --help.

  model.gguf             the demo model: gpu-check compares its answers with those of the CPU
  peer.py                gpu-bench runs it where python3 has torch, to measure PyTorch beside Rewind
  rewind                 the command line, to try by hand: ./rewind generate --help
  libtriton_rewind.so    the backend, for a Triton server on that machine
";

/// Checks on this machine's GPU, or says how to check on another.
pub(crate) fn check(project: &Project, options: &Options) -> Result<()> {
    run(project, "gpu-check", &options.arguments)
}

/// Measures on this machine's GPU, or says how to measure on another.
pub(crate) fn bench(project: &Project, arguments: &[String]) -> Result<()> {
    run(project, "gpu-bench", arguments)
}

/// The kernels alone, on this machine's GPU: what `cargo xtask test` has time for.
pub(crate) fn suite(project: &Project) -> Result<()> {
    build(project)?;
    let mut command = Command::new(project.release("gpu-check"));
    command.args(["--dry", "--only", "suite", "--only", "repeatable"]);
    process::visible(command)
}

fn run(project: &Project, program: &str, arguments: &[String]) -> Result<()> {
    let tools = setup::tools(project, Kernels::Needed)?;
    let folder = lay_out(project, &tools)?;
    if !setup::gpu_present() {
        println!(
            "SKIP: this machine has no GPU. Carry the folder\n\n  {}\n\nto one that has, and run ./{program} in it.",
            folder.display()
        );
        return Ok(());
    }
    let mut command = Command::new(folder.join(program));
    command.arg("--output").arg(project.path(RESULTS)).args(arguments).current_dir(&folder);
    process::visible(command)
}

/// Builds everything and puts it into one folder.
fn lay_out(project: &Project, tools: &Tools) -> Result<PathBuf> {
    setup::build(project, &tools.build)?;
    build(project)?;
    let folder = project.target("gpu-check");
    for file in ["gpu-check", "gpu-bench", "rewind", setup::LIBRARY] {
        setup::place(&project.release(file), &folder.join(file))?;
    }
    setup::place(&project.path("tests/gpu/peer.py"), &folder.join("peer.py"))?;
    setup::link(&tools.model, &folder.join("model.gguf"))?;
    let readme = folder.join("README");
    fs::write(&readme, README).with_context(|| format!("cannot write {}", readme.display()))?;
    Ok(folder)
}

fn build(project: &Project) -> Result<()> {
    process::visible(project.cargo(&["build", "--release", "--package", "rewind-gpu"]))
        .context("cannot build the programs for a GPU")
}
