//! compute-sanitizer over the operation suite, where CUDA's tools are installed.
//!
//! The suite runs in another process, this program again, under each of the tool's checkers. They slow
//! kernels down ten- to a hundredfold, so each gets its share of the time and may not come to the end.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::budget::Budget;
use crate::child;
use crate::report::{Findings, Outcome, Table};

const PROGRAM: &str = "compute-sanitizer";

/// What the tool exits with when it found something.
const FOUND: i32 = 77;

/// Checkers, the most telling first.
const TOOLS: [(&str, &str); 4] = [
    ("memcheck", "accesses outside of allocations, misaligned ones"),
    ("racecheck", "hazards in shared memory"),
    ("initcheck", "reads of device memory that nobody wrote"),
    ("synccheck", "barriers that not all threads reach"),
];

/// The tool: of `$CUDA_HOME`, `$CUDA_PATH`, `PATH`, `/usr/local/cuda`.
///
/// # Errors
/// It is in none of them.
pub fn find() -> Result<PathBuf, String> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = homes
        .map(|home| home.join("bin"))
        .chain(env::split_paths(&path))
        .chain([PathBuf::from("/usr/local/cuda/bin")]);
    let mut files = folders.map(|folder| folder.join(PROGRAM));
    files.find(|file| file.is_file()).ok_or_else(|| {
        format!("{PROGRAM} is neither on PATH nor in CUDA_HOME; it comes with the CUDA toolkit")
    })
}

/// Runs the program `suite` (with `arguments`) under every checker.
///
/// # Errors
/// The tool cannot be started.
pub fn check(
    sanitizer: &Path,
    suite: &Path,
    arguments: &[&str],
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    let mut table = Table::new("What the checkers found", &["checker", "looks for", "result"]);
    let (mut clean, mut dirty, mut unfinished) = (0, 0, 0);
    for (index, (tool, looks_for)) in TOOLS.into_iter().enumerate() {
        let share = budget.share(1.0 / (TOOLS.len() - index) as f64);
        let mut command = Command::new(sanitizer);
        command.args(["--tool", tool, "--error-exitcode", &FOUND.to_string()]);
        command.arg(suite).args(arguments);
        let ended =
            child::run(command, &share).with_context(|| format!("{PROGRAM} --tool {tool}"))?;
        let result = match ended.status.map(|status| status.code()) {
            Some(Some(0)) => {
                clean += 1;
                "clean"
            }
            Some(Some(FOUND)) => {
                dirty += 1;
                "errors"
            }
            Some(_) => {
                dirty += 1;
                "the suite failed"
            }
            None => {
                unfinished += 1;
                "not finished in its time"
            }
        };
        if ended.status.is_some_and(|status| !status.success()) {
            let printed = tail(&ended.printed);
            findings.notes.push(format!("{tool}:\n\n```text\n{printed}\n```"));
        }
        println!("{tool}: {result}");
        table.row([tool, looks_for, result]);
    }
    findings.tables.push(table);
    Ok(if dirty > 0 {
        Outcome::Failed(format!("{dirty} of {} checkers found errors", TOOLS.len()))
    } else if clean == 0 {
        Outcome::Skipped("no checker finished in its time".to_owned())
    } else {
        let unfinished = match unfinished {
            0 => String::new(),
            count => format!(", {count} not finished"),
        };
        Outcome::Passed(format!("{clean} checkers clean{unfinished}"))
    })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    /// A tool whose checkers end as `racecheck` says; the others find nothing.
    fn checked(racecheck: &str, seconds: u64) -> (Outcome, Findings) {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join(PROGRAM);
        let script = format!("#!/bin/sh\n[ \"$2\" = racecheck ] || exit 0\n{racecheck}\n");
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let mut findings = Findings::default();
        let budget = Budget::new(Duration::from_secs(seconds));
        let outcome = check(&tool, Path::new("suite"), &["--only"], &budget, &mut findings);
        (outcome.unwrap(), findings)
    }

    #[test]
    fn clean_checkers_pass() {
        let (outcome, findings) = checked("exit 0", 60);
        assert_eq!(outcome, Outcome::Passed("4 checkers clean".into()));
        assert_eq!(findings.tables[0].rows.len(), 4);
    }

    #[test]
    fn what_a_checker_finds_is_kept() {
        let (outcome, findings) = checked("echo hazard $3 $5 $6; exit 77", 60);
        assert_eq!(outcome, Outcome::Failed("1 of 4 checkers found errors".into()));
        assert!(findings.notes[0].contains("hazard --error-exitcode suite --only"), "{findings:?}");
        assert_eq!(findings.tables[0].rows[1][2], "errors");
        let (outcome, findings) = checked("exit 1", 60);
        assert!(matches!(outcome, Outcome::Failed(_)));
        assert_eq!(findings.tables[0].rows[1][2], "the suite failed");
    }

    #[test]
    fn a_checker_that_takes_too_long_is_stopped() {
        let (outcome, findings) = checked("sleep 60", 1);
        assert_eq!(outcome, Outcome::Passed("3 checkers clean, 1 not finished".into()));
        assert_eq!(findings.tables[0].rows[1][2], "not finished in its time");
    }
}
