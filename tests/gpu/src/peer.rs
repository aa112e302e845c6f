//! The same decode work in PyTorch, where it is installed: what is reached is told beside what others
//! reach on the same device.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rewind_formats::Format;
use serde::Deserialize;

use crate::budget::Budget;
use crate::child;
use crate::report::{Findings, Outcome, Table};
use crate::speed::{Cell, DRAFT};

/// The script, beside this program.
const SCRIPT: &str = "peer.py";

/// What the script exits with where PyTorch or its GPU is missing; its last line says which.
const MISSING: i32 = 3;

/// A line of the script's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Line {
    Time { shape: String, batch: usize, context: usize, seconds: f64 },
    Skipped { shape: String, batch: usize, context: usize, skipped: String },
    About { torch: String, cuda: String, device: String },
}

/// The script.
///
/// # Errors
/// It is not beside this program.
pub fn find() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let script = program.with_file_name(SCRIPT);
    let missing = || format!("there is no {} beside this program", script.display());
    script.is_file().then_some(script.clone()).ok_or_else(missing)
}

/// Runs the script and holds what was measured here against it.
///
/// # Errors
/// The script cannot be waited for.
pub fn compare(
    python: &str,
    script: &Path,
    gpu: usize,
    cells: &[Cell],
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    // Stops on its own a little earlier than it would be stopped.
    let seconds = budget.left().as_secs_f64() * 0.9;
    let mut command = Command::new(python);
    command.arg(script).arg("--gpu").arg(gpu.to_string());
    command.arg("--seconds").arg(format!("{seconds:.0}"));
    let Ok(ended) = child::run(command, budget) else {
        return Ok(Outcome::Skipped(format!("{python} is not installed")));
    };
    let last = || ended.printed.trim_end().lines().last().unwrap_or("it said nothing").to_owned();
    let code = ended.status.map(|status| status.code());
    if code == Some(Some(MISSING)) {
        return Ok(Outcome::Skipped(last()));
    }
    let lines: Vec<Line> =
        ended.printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let compared = table(&lines, cells, findings);
    Ok(match (code, compared) {
        (Some(Some(0)), Some(headline)) => Outcome::Passed(headline),
        (Some(Some(0)), None) => Outcome::Skipped("nothing was measured on both sides".to_owned()),
        (Some(_), _) => Outcome::Failed(format!("{SCRIPT}: {}", last())),
        (None, Some(headline)) => Outcome::Passed(format!("{headline} (not finished in its time)")),
        (None, None) => Outcome::Skipped("it did not finish in its time".to_owned()),
    })
}

/// Both sides in one table; the ratio to tell first, if there is one.
fn table(lines: &[Line], cells: &[Cell], findings: &mut Findings) -> Option<String> {
    let columns = ["shape", "batch", "context", "PyTorch bf16, ms", "bf16, ms", "times as fast"];
    let drafts = [format!("{DRAFT}, ms"), "times as fast".to_owned()];
    let mut table = Table::new("Decode steps in PyTorch and here", &columns);
    table.columns.extend(drafts);
    let mut headline = None;
    for line in lines {
        let (shape, batch, context, seconds) = match line {
            Line::Time { shape, batch, context, seconds } => (shape, *batch, *context, *seconds),
            Line::Skipped { shape, batch, context, skipped } => {
                let note = format!("PyTorch, {shape}, batch {batch} at {context}: {skipped}.");
                findings.notes.push(note);
                continue;
            }
            Line::About { torch, cuda, device } => {
                let about = format!("PyTorch {torch}, CUDA {cuda}, {device}");
                findings.notes.push(format!(
                    "{about}: bf16, CUDA graphs, scaled_dot_product_attention, static cache."
                ));
                continue;
            }
        };
        let mut row = vec![shape.clone(), batch.to_string(), context.to_string()];
        row.push(format!("{:.3}", seconds * 1e3));
        for draft in [Format::Bf16, DRAFT] {
            let here = cells.iter().find(|cell| {
                (cell.shape, cell.draft, cell.batch, cell.context)
                    == (shape.as_str(), draft, batch, context)
            });
            let Some(cell) = here else {
                row.extend(["–".to_owned(), "–".to_owned()]);
                continue;
            };
            let ratio = seconds / cell.seconds;
            row.extend([format!("{:.3}", cell.seconds * 1e3), format!("{ratio:.2}")]);
            if draft == DRAFT {
                headline.get_or_insert(format!(
                    "{shape} {draft}, batch {batch} at {context}: {ratio:.2} times as fast as PyTorch in bf16"
                ));
            }
        }
        table.row(row);
    }
    findings.tables.push(table);
    headline
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn cell(draft: Format, seconds: f64) -> Cell {
        Cell { shape: "Llama-3.1-8B", draft, batch: 1, context: 512, seconds, bytes: 1 }
    }

    /// What a script that runs in a shell comes to.
    fn compared(script: &str, seconds: u64) -> (Outcome, Findings) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SCRIPT);
        fs::write(&path, script).unwrap();
        let cells = [cell(Format::Bf16, 0.008), cell(DRAFT, 0.002)];
        let mut findings = Findings::default();
        let budget = Budget::new(Duration::from_secs(seconds));
        let outcome = compare("sh", &path, 0, &cells, &budget, &mut findings);
        (outcome.unwrap(), findings)
    }

    const TIME: &str = r#"echo '{"torch": "2.9.0", "cuda": "13.0", "device": "NVIDIA H100"}'
echo '{"shape": "Llama-3.1-8B", "batch": 1, "context": 512, "seconds": 0.0082}'
echo '{"shape": "Llama-3.1-8B", "batch": 64, "context": 8192, "skipped": "does not fit"}'
echo '{"shape": "Qwen3-4B", "batch": 1, "context": 512, "seconds": 0.004}'
"#;

    #[test]
    fn ratios_are_peer_to_own() {
        let (outcome, findings) = compared(TIME, 60);
        let said = "Llama-3.1-8B int4-g32, batch 1 at 512: 4.10 times as fast as PyTorch in bf16";
        assert_eq!(outcome, Outcome::Passed(said.into()));
        let [table] = &findings.tables[..] else { panic!("{findings:?}") };
        let expected = ["Llama-3.1-8B", "1", "512", "8.200", "8.000", "1.03", "2.000", "4.10"];
        assert_eq!(table.rows[0], expected);
        assert_eq!(table.rows[1][3..], ["4.000", "–", "–", "–", "–"]);
        assert!(findings.notes[0].starts_with("PyTorch 2.9.0, CUDA 13.0, NVIDIA H100: "));
        assert_eq!(findings.notes[1], "PyTorch, Llama-3.1-8B, batch 64 at 8192: does not fit.");
    }

    #[test]
    fn what_is_missing_is_a_skip_and_an_error_a_failure() {
        let (outcome, _) = compared("echo 'torch is not installed'; exit 3", 60);
        assert_eq!(outcome, Outcome::Skipped("torch is not installed".into()));
        let (outcome, _) = compared("echo 'RuntimeError: no'; exit 1", 60);
        assert_eq!(outcome, Outcome::Failed("peer.py: RuntimeError: no".into()));
        let (outcome, _) = compared(&format!("{TIME}sleep 60"), 1);
        assert!(
            matches!(&outcome, Outcome::Passed(line) if line.ends_with("(not finished in its time)"))
        );
        let mut findings = Findings::default();
        let budget = Budget::new(Duration::from_secs(9));
        let outcome = compare("no-python", Path::new("x"), 0, &[], &budget, &mut findings);
        assert_eq!(outcome.unwrap(), Outcome::Skipped("no-python is not installed".into()));
    }
}
