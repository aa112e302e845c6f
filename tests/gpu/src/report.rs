//! What a program found: a short table on the screen, everything in two files.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rewind_kernels::Description;
use serde::Serialize;

use crate::budget::Budget;

/// Everything that a program found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `gpu-check` or `gpu-bench`.
    program: &'static str,
    /// Version of this package.
    version: &'static str,
    device: Device,
    sections: Vec<Section>,
    /// Where progress is told; nowhere in tests, whose output is searched for skips of their own.
    #[serde(skip)]
    tell: fn(&str),
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    architecture: String,
    multiprocessors: u32,
    memory: u64,
    /// Driver, clocks and power limit, in words.
    particulars: Option<String>,
}

/// A part of the work.
#[derive(Debug, Serialize)]
struct Section {
    name: String,
    #[serde(flatten)]
    outcome: Outcome,
    seconds: f64,
    #[serde(flatten)]
    findings: Findings,
}

/// How a section ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "note", rename_all = "lowercase")]
pub enum Outcome {
    /// All is well; what was found in a few words.
    Passed(String),
    /// Something is wrong; what.
    Failed(String),
    /// It did not run; why.
    Skipped(String),
}

/// What a section has to say beside its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Sentences.
    pub notes: Vec<String>,
    /// Tables.
    pub tables: Vec<Table>,
}

/// Measured figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// What the rows are.
    pub title: String,
    /// Heads of the columns, with units.
    pub columns: Vec<String>,
    /// A cell for each column.
    pub rows: Vec<Vec<String>>,
}

impl Report {
    /// A report about a device.
    pub fn new(program: &'static str, device: &Description, particulars: Option<String>) -> Self {
        let Description { name, architecture, multiprocessors, memory, .. } = device.clone();
        let device = Device { name, architecture, multiprocessors, memory, particulars };
        let (version, sections) = (env!("CARGO_PKG_VERSION"), Vec::new());
        Self { program, version, device, sections, tell: |line| println!("{line}") }
    }

    /// Runs a section if there is time for it. An error is a failure.
    pub fn section(
        &mut self,
        name: &str,
        budget: &Budget,
        work: impl FnOnce(&mut Findings) -> anyhow::Result<Outcome>,
    ) {
        (self.tell)(&format!("── {name} ──"));
        let started = Instant::now();
        let mut findings = Findings::default();
        let outcome = if budget.is_over() {
            Outcome::Skipped("no time was left".to_owned())
        } else {
            work(&mut findings).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
        };
        (self.tell)(&outcome.line());
        let seconds = started.elapsed().as_secs_f64();
        self.sections.push(Section { name: name.to_owned(), outcome, seconds, findings });
    }

    /// Notes a section that was not asked for or cannot run, and why.
    pub fn skip(&mut self, name: &str, why: &str) {
        (self.tell)(&format!("── {name} ──\nSKIP: {why}"));
        let outcome = Outcome::Skipped(why.to_owned());
        let findings = Findings::default();
        self.sections.push(Section { name: name.to_owned(), outcome, seconds: 0.0, findings });
    }

    /// True if a section failed.
    pub fn failed(&self) -> bool {
        self.sections.iter().any(|section| matches!(section.outcome, Outcome::Failed(_)))
    }

    /// A line for each section.
    pub fn summary(&self) -> String {
        let name_width = self.sections.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
        let mut text = format!("{} on {}\n", self.program, self.device.name);
        for Section { name, outcome, seconds, .. } in &self.sections {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<name_width$}  {seconds:>6.1} s  {}", outcome.line());
        }
        text
    }

    /// Writes `STEM.md` and `STEM.json` into a folder; returns the former's path.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let path = folder.join(self.stem());
        let markdown = path.with_added_extension("md");
        fs::write(&markdown, self.markdown())?;
        let json = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(path.with_added_extension("json"), json + "\n")?;
        Ok(markdown)
    }

    /// `gpu-DEVICE` for measurements, `gpu-DEVICE-check` for checks.
    fn stem(&self) -> String {
        let suffix = if self.program == "gpu-bench" { "" } else { "-check" };
        format!("gpu-{}{suffix}", slug(&self.device.name))
    }

    fn markdown(&self) -> String {
        let Device { name, architecture, multiprocessors, memory, particulars } = &self.device;
        let gib = *memory as f64 / f64::from(1 << 30);
        let mut text = format!(
            "# {name}: `{}`\n\n{architecture}, {multiprocessors} multiprocessors, {gib:.1} GiB",
            self.program
        );
        if let Some(particulars) = particulars {
            text += &format!("; {particulars}");
        }
        text += &format!(". Rewind {}.\n", self.version);
        for Section { name, outcome, seconds, findings } in &self.sections {
            text += &format!("\n## {name}\n\n{} ({seconds:.1} s)\n", outcome.line());
            for note in &findings.notes {
                text += &format!("\n{note}\n");
            }
            findings.tables.iter().for_each(|table| text += &table.markdown());
        }
        text
    }
}

impl Outcome {
    fn line(&self) -> String {
        match self {
            Self::Passed(note) => format!("ok: {note}"),
            Self::Failed(why) => format!("FAILED: {}", why.replace('\n', " ")),
            Self::Skipped(why) => format!("SKIP: {why}"),
        }
    }
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = vec!["---".to_owned(); self.columns.len()];
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("\n{}\n\n{}{}{rows}", self.title, line(&self.columns), line(&rule))
    }
}

/// A device's name as a part of a file's: "NVIDIA H100 80GB HBM3" is `h100-80gb-hbm3`.
fn slug(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty() && *word != "nvidia").collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let device = Description {
            name: "NVIDIA H100 80GB HBM3".into(),
            architecture: "sm_90".into(),
            multiprocessors: 132,
            memory: 80 << 30,
            free_memory: 0,
            pci_bus_id: None,
        };
        let report = Report::new("gpu-bench", &device, Some("driver 580.65".into()));
        Report { tell: |_| (), ..report }
    }

    fn hour() -> Budget {
        Budget::new(Duration::from_secs(3600))
    }

    #[test]
    fn a_section_passes_fails_or_is_skipped() {
        let mut report = report();
        report.section("one", &hour(), |_| Ok(Outcome::Passed("fine".into())));
        report.section("two", &Budget::new(Duration::ZERO), |_| panic!("there was no time"));
        report.skip("three", "not asked for");
        assert!(!report.failed());
        report.section("four", &hour(), |_| anyhow::bail!("broken\nbadly"));
        assert!(report.failed());
        let summary = report.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert_eq!(lines[0], "gpu-bench on NVIDIA H100 80GB HBM3");
        assert!(lines[1].starts_with("one ") && lines[1].ends_with("ok: fine"), "{summary}");
        assert!(lines[2].ends_with("SKIP: no time was left"), "{summary}");
        assert!(lines[4].ends_with("FAILED: broken badly"), "{summary}");
    }

    #[test]
    fn both_files_hold_notes_and_tables() {
        let mut report = report();
        report.section("copy", &hour(), |findings| {
            findings.notes.push("Measured twice.".into());
            let mut table = Table::new("Rates", &["bytes", "GB/s"]);
            table.row(["1 GiB", "2990"]);
            findings.tables.push(table);
            Ok(Outcome::Passed("2990 GB/s".into()))
        });
        let folder = tempfile::tempdir().unwrap();
        let path = report.write(&folder.path().join("deep")).unwrap();
        assert!(path.ends_with("gpu-h100-80gb-hbm3.md"), "{path:?}");
        let markdown = fs::read_to_string(&path).unwrap();
        assert!(markdown.contains("132 multiprocessors, 80.0 GiB; driver 580.65."), "{markdown}");
        assert!(markdown.contains("\nMeasured twice.\n"), "{markdown}");
        assert!(
            markdown.contains("| bytes | GB/s |\n| --- | --- |\n| 1 GiB | 2990 |"),
            "{markdown}"
        );
        let json = fs::read_to_string(path.with_extension("json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["sections"][0]["outcome"], "passed");
        assert_eq!(json["sections"][0]["tables"][0]["rows"][0][1], "2990");
    }

    #[test]
    fn names_become_parts_of_file_names() {
        assert_eq!(slug("NVIDIA GeForce RTX 4090"), "geforce-rtx-4090");
        assert_eq!(slug("Tesla/V100 (x)"), "tesla-v100-x");
    }
}
