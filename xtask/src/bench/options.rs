//! Options of the benches that write a document.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::project::Project;

/// Rounds of a whole run.
const ROUNDS: u16 = 5;

/// How much to measure, and where to tell it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds; each takes some minutes. 5 if not given, 1 if quick
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    #[command(flatten)]
    pub(super) place: Place,
}

/// Where to tell it, for benches whose figures are the same in every round.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Place {
    /// Less of everything, and the document into cargo's build folder
    #[arg(long)]
    pub(super) quick: bool,
    /// The document to write; what belongs to it goes beside it. In docs/benchmarks if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Place {
    /// Where the document of this bench goes. Its folder exists afterwards: before the work, not after it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn document(&self, project: &Project, bench: &str) -> Result<PathBuf> {
        let out = match &self.out {
            Some(out) => out.clone(),
            None if self.quick => project.target(&format!("bench/{bench}.md")),
            None => project.path(&format!("docs/benchmarks/{bench}.md")),
        };
        let folder = out.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        Ok(out)
    }
}

impl Options {
    pub(super) fn rounds(&self) -> u16 {
        self.rounds.unwrap_or(if self.place.quick { 1 } else { ROUNDS })
    }

    /// The command as a person would type it.
    pub(super) fn command(&self, bench: &str) -> String {
        let quick = if self.place.quick { " --quick" } else { "" };
        format!("cargo xtask bench {bench} --rounds {}{quick}", self.rounds())
    }
}

/// Writes a document anew; `text` is told what it was.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(out: &Path, text: impl FnOnce(&str) -> String) -> Result<()> {
    let before = fs::read_to_string(out).unwrap_or_default();
    fs::write(out, text(&before)).with_context(|| format!("cannot write {}", out.display()))
}
