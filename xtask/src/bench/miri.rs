//! `cargo xtask bench miri`: tests of the CPU engine in an interpreter that knows every byte.
//!
//! Miri runs instructions that this machine may not have, reports reads and writes that two threads
//! do at once, and knows another architecture. It needs a nightly toolchain, which is installed beside
//! the project's own.

use std::process::Command;

use anyhow::{Context, Result};
use console::style;

use crate::process;
use crate::project::Project;

/// A run of some tests.
struct Run {
    shows: &'static str,
    /// Instructions that the interpreted processor has.
    features: &'static str,
    target: Option<&'static str>,
    /// Which test programs, as `cargo test` takes them.
    programs: &'static [&'static str],
    /// Parts of the names of the tests.
    tests: &'static [&'static str],
}

const X86: &str = "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512vl,+avx512vnni";

const RUNS: [Run; 3] = [
    Run {
        shows: "vector instructions: AVX-512 with VNNI, AVX2 and plain Rust give the same bits",
        features: X86,
        target: None,
        programs: &["--lib"],
        tests: &["arch::"],
    },
    Run {
        shows: "a pass: no two threads at the same bytes",
        // Miri lacks an instruction that `half` takes where it finds F16C.
        features: "",
        target: None,
        programs: &["--lib", "--test", "cpu"],
        tests: &["shared::", "threads::"],
    },
    Run {
        shows: "64-bit ARM: plain Rust computes what vectors do",
        features: "",
        target: Some("aarch64-unknown-linux-gnu"),
        programs: &["--lib"],
        tests: &["arch::", "shared::"],
    },
];

/// Cases of a generated test: each takes seconds.
const CASES: &str = "4";

/// Runs them all, one after the other.
pub(super) fn run(project: &Project) -> Result<()> {
    install(project)?;
    for run in &RUNS {
        println!("\n{}", style(format!("── {} ──", run.shows)).cyan().bold());
        let mut command = nightly(project);
        command.args(["miri", "test", "--locked", "--package", "rewind-cpu"]);
        if !run.features.is_empty() {
            command.env("RUSTFLAGS", format!("-Ctarget-feature={}", run.features));
        }
        // Clocks, and the files in which proptest keeps cases that failed.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
        command.env("PROPTEST_CASES", CASES);
        if let Some(target) = run.target {
            command.args(["--target", target]);
        }
        command.args(run.programs).arg("--").args(run.tests);
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

/// Installs Miri where it is missing.
fn install(project: &Project) -> Result<()> {
    let mut version = nightly(project);
    version.args(["miri", "--version"]);
    if process::capture(version).is_ok() {
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    command.args(["--component", "miri", "--component", "rust-src"]);
    process::visible(command).context("Miri is part of Rust's nightly toolchain")
}
