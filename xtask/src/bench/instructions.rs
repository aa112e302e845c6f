//! `cargo xtask bench instructions`: how many instructions a pass takes, against what it took before.
//!
//! Clocks on a shared machine tell changes of 5 %; counts tell those of 0.1 %. Callgrind interprets the
//! program and gives the same count each time, but knows no AVX-512: what is counted are the AVX2
//! kernels. Counts are kept in a file, with the compiler that they came from: another compiler's are
//! shown beside them and judged by nobody.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::process;
use crate::project::Project;

/// Options of `cargo xtask bench instructions`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Keep these counts as those to compare with
    #[arg(long)]
    update: bool,
}

/// Where counts are kept, relative to the checkout.
const COUNTS: &str = "backend/cpu/examples/instructions.json";

/// What may change without a word: addresses decide about a few instructions of an allocation.
const TOLERANCE: f64 = 0.005;

/// What is counted: the arguments of the example, which are also its name.
const PASSES: [&str; 9] = [
    "draft int4-g32 1 off",
    "draft int4-g32 1 on",
    "draft int4-g32 4 on",
    "draft int4-g32 64 on",
    "draft int8 1 on",
    "draft int8 64 on",
    "shadow f16 1 on",
    "shadow f16 4 on",
    "shadow f16 64 on",
];

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Counts {
    rustc: String,
    /// Instructions of each pass.
    passes: BTreeMap<String, u64>,
}

/// How a count compares with the one that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    New,
    Same,
    Fewer,
    More,
}

/// Counts, shows, and compares or keeps.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--version");
    process::capture(valgrind).context("callgrind is part of valgrind: `apt install valgrind`")?;
    let rustc = rustc()?;
    process::visible(project.cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "rewind-cpu",
        "--example",
        "instructions",
    ]))?;

    let file = project.path(COUNTS);
    let before = read(&file)?;
    let comparable = before.as_ref().is_some_and(|counts| counts.rustc == rustc);
    let mut now = Counts { rustc, passes: BTreeMap::new() };
    let mut more = Vec::new();
    println!("{:<24} {:>14} {:>14}", "pass", "instructions", "before");
    for pass in PASSES {
        let count = count(project, pass)?;
        let known = before.as_ref().and_then(|counts| counts.passes.get(pass)).copied();
        let (told, verdict) = compare(count, known);
        println!("{pass:<24} {count:>14} {told:>14}");
        if verdict == Verdict::More {
            more.push(pass);
        }
        now.passes.insert(pass.to_owned(), count);
    }
    if options.update || before.is_none() {
        let text = serde_json::to_string_pretty(&now).context("counts are plain numbers")?;
        fs::write(&file, text + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("{COUNTS} is written.");
        return Ok(());
    }
    if !comparable {
        println!("SKIP the comparison: {COUNTS} is of another compiler than {}", now.rustc);
        return Ok(());
    }
    ensure!(
        more.is_empty(),
        "more instructions than {COUNTS} says: {}. If that is meant, `cargo xtask bench instructions --update`",
        more.join(", ")
    );
    Ok(())
}

fn compare(count: u64, before: Option<u64>) -> (String, Verdict) {
    let Some(before) = before else { return ("–".into(), Verdict::New) };
    let change = count as f64 / before as f64 - 1.0;
    let verdict = match change {
        change if change > TOLERANCE => Verdict::More,
        change if change < -TOLERANCE => Verdict::Fewer,
        _ => Verdict::Same,
    };
    (format!("{:+.2} %", 100.0 * change), verdict)
}

fn count(project: &Project, pass: &str) -> Result<u64> {
    let log = project.target("callgrind.log");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=instructions::watched*"]);
    command.arg("--callgrind-out-file=/dev/null");
    command.arg(format!("--log-file={}", log.display()));
    command.arg(project.release("examples/instructions")).args(pass.split(' '));
    process::capture(command)?;
    let told = fs::read_to_string(&log)
        .with_context(|| format!("callgrind wrote no {}", log.display()))?;
    collected(&told).with_context(|| format!("callgrind told no count of `{pass}`:\n{told}"))
}

/// The count in what callgrind says at its end.
fn collected(output: &str) -> Option<u64> {
    let line = output.lines().rev().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok().filter(|&count| count > 0)
}

fn rustc() -> Result<String> {
    let mut command = Command::new("rustc");
    command.arg("--version");
    Ok(process::capture(command)?.trim().to_owned())
}

fn read(file: &Path) -> Result<Option<Counts>> {
    match fs::read_to_string(file) {
        Ok(text) => {
            let counts = serde_json::from_str(&text);
            counts.map(Some).with_context(|| format!("{} holds no counts", file.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("cannot read {}: {error}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_where_callgrind_tells_them() {
        let told = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(collected(told), Some(123_456));
        assert_eq!(collected("==7== Collected : 0\n"), None, "the function was not found");
        assert_eq!(collected("Killed"), None);
    }

    #[test]
    fn only_growth_beyond_the_tolerance_is_held_against_a_pass() {
        assert_eq!(compare(1_004, Some(1_000)), ("+0.40 %".into(), Verdict::Same));
        assert_eq!(compare(1_006, Some(1_000)), ("+0.60 %".into(), Verdict::More));
        assert_eq!(compare(900, Some(1_000)), ("-10.00 %".into(), Verdict::Fewer));
        assert_eq!(compare(900, None), ("–".into(), Verdict::New));
    }

    #[test]
    fn kept_counts_are_those_of_all_passes() {
        let counts = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(COUNTS));
        let counts = counts.unwrap().expect("the file is part of the project");
        assert!(PASSES.iter().all(|pass| counts.passes.contains_key(*pass)));
        assert_eq!(counts.passes.len(), PASSES.len());
    }
}
