//! `cargo xtask bench fuzz`: the readers of files under libFuzzer, each for some time.
//!
//! The targets are in `fuzz/`, laid out as cargo-fuzz wants them; it and a nightly toolchain are installed beside the
//! project's own. What a target finds on its way stays in cargo's build folder, for the next run to begin with.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use console::style;

use crate::process;
use crate::project::Project;

/// Programs under `fuzz/fuzz_targets`.
const TARGETS: [&str; 4] = ["gguf", "safetensors", "config", "plan"];

/// Of cargo-fuzz.
const VERSION: &str = "0.13.1";

/// Longest input, bytes: files to begin with are shorter.
const LONGEST: usize = 1 << 17;

/// Memory that an input may make a reader take, MiB.
const MEMORY: usize = 1024;

/// Options of `cargo xtask bench fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    only: Option<String>,
}

/// Runs the targets, one after the other.
pub(super) fn run(project: &Project, options: &Options) -> Result<()> {
    let fuzz = install(project)?;
    let corpus = project.target("fuzz/corpus");
    let mut seeds = nightly(project);
    seeds.args(["run", "--locked", "--release", "--bin", "seeds", "--manifest-path"]);
    seeds.arg(project.path("fuzz/Cargo.toml")).arg("--target-dir").arg(project.target("fuzz"));
    seeds.arg("--").arg(&corpus);
    process::visible(seeds)?;
    for target in
        TARGETS.iter().filter(|target| options.only.as_deref().is_none_or(|o| o == **target))
    {
        println!("\n{}", style(format!("── {target}, {} s ──", options.seconds)).cyan().bold());
        let mut command = Command::new("rustup");
        command.args(["run", "nightly"]).arg(&fuzz).args(["run", target, "--fuzz-dir"]);
        command.arg(project.path("fuzz")).arg("--target-dir").arg(project.target("fuzz"));
        command.arg(corpus.join(target)).arg("--").args([
            format!("-max_total_time={}", options.seconds),
            format!("-max_len={LONGEST}"),
            format!("-rss_limit_mb={MEMORY}"),
            "-timeout=10".to_owned(),
            "-print_final_stats=1".to_owned(),
        ]);
        command.current_dir(project.path(""));
        process::visible(command)?;
    }
    Ok(())
}

/// The nightly toolchain's cargo.
fn nightly(project: &Project) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).current_dir(project.path(""));
    command
}

/// Installs what is missing; cargo-fuzz itself is the answer.
fn install(project: &Project) -> Result<std::path::PathBuf> {
    let mut version = nightly(project);
    version.arg("--version");
    if process::capture(version).is_err() {
        let mut command = Command::new("rustup");
        command.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        process::visible(command).context("libFuzzer needs Rust's nightly toolchain")?;
    }
    let root = project.path(".rewind/cargo-fuzz");
    let program = root.join("bin/cargo-fuzz");
    if !program.exists() {
        let mut command = Command::new("cargo");
        command.args(["install", "cargo-fuzz", "--locked", "--version", VERSION, "--root"]);
        command.arg(&root);
        process::visible(command).context("cargo-fuzz could not be installed")?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_target_has_its_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for target in TARGETS {
            assert!(folder.join(format!("fuzz_targets/{target}.rs")).exists(), "{target}");
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
        let programs = std::fs::read_dir(folder.join("fuzz_targets")).unwrap().count();
        assert_eq!(programs, TARGETS.len());
    }
}
