//! `rewind` as the benches of quality run it: a command that prints one JSON object.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;
use crate::project::Project;

/// The command, where it runs, and with what.
pub(super) struct Rewind {
    program: PathBuf,
    root: PathBuf,
    model: PathBuf,
}

impl Rewind {
    /// Runs in the checkout, on `model`.
    pub(super) fn new(project: &Project, program: &Path, model: &Path) -> Self {
        let root = project.path("");
        // Relative, since what is printed names it.
        let model = model.strip_prefix(&root).unwrap_or(model).to_owned();
        Self { program: program.to_owned(), root, model }
    }

    /// The same on another model.
    pub(super) fn of(&self, model: &Path) -> Self {
        Self { program: self.program.clone(), root: self.root.clone(), model: model.to_owned() }
    }

    /// What the command prints with `--json`.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(
        &self,
        arguments: &[impl AsRef<str>],
    ) -> Result<T> {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.root).args(arguments.iter().map(AsRef::as_ref));
        command.arg("--json").arg("--model").arg(&self.model);
        let text = process::printed(command)?;
        serde_json::from_str(&text).with_context(|| format!("not what was expected: {text}"))
    }
}
