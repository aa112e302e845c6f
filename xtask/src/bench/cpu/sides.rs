//! The two sides of a comparison: each a process of its own that loads, warms up, measures, prints JSON and ends.
//!
//! The speed of a process is that of its median step. A step that another program got in the way of says nothing of
//! either side, and a mean would say it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::work::{BATCHES, Cell, Copy, PREFILLS, PROMPT, STEPS, Task, Work};
use crate::process;
use crate::project::Project;
use crate::setup::LlamaCpp;

const MEASURE: &str = "tests/peer/measure.py";

/// How to run either side.
#[derive(Debug)]
pub(super) struct Sides<'a> {
    project: &'a Project,
    cli: &'a Path,
    model: &'a Path,
    peer: &'a LlamaCpp,
}

/// What `rewind bench … --json` prints, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Ours {
    pub(super) version: String,
    pub(super) machine: Map<String, Value>,
    bandwidth: Bandwidth,
    measurements: Vec<Measurement>,
}

#[derive(Debug, Deserialize)]
struct Bandwidth {
    gigabytes_per_second: Figure,
}

#[derive(Debug, Deserialize)]
struct Measurement {
    name: String,
    batch: u32,
    step_seconds: Figure,
    step_bytes: f64,
    head_bytes: f64,
}

/// A figure with its samples, of which the median is enough.
#[derive(Debug, Deserialize)]
struct Figure {
    median: f64,
}

/// What one side of a pair did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    pub(super) tokens_per_second: f64,
    pub(super) bytes: Bytes,
}

/// Bytes of the weights that a pass reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bytes {
    pub(super) all: f64,
    /// The part of them that turns the last hidden state into logits.
    pub(super) head: f64,
}

/// What the peer's script prints.
#[derive(Debug, Deserialize)]
pub(super) struct Theirs {
    pub(super) version: String,
    pub(super) system: String,
    measurements: Vec<TheirMeasurement>,
}

#[derive(Debug, Deserialize)]
struct TheirMeasurement {
    name: String,
    batch: u32,
    median_step_seconds: f64,
}

/// What a file of the peer's holds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct File {
    pub(super) bytes_per_token: f64,
    pub(super) head_bytes: f64,
    pub(super) head_type: String,
}

/// The peer's files by format.
pub(super) type Files = BTreeMap<String, File>;

impl<'a> Sides<'a> {
    /// Sides that measure the demo model.
    pub(super) fn new(
        project: &'a Project,
        cli: &'a Path,
        model: &'a Path,
        peer: &'a LlamaCpp,
    ) -> Self {
        Self { project, cli, model, peer }
    }

    /// What the peer's files hold.
    pub(super) fn files(&self) -> Result<Files> {
        let path = self.peer.contents();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Measures Rewind.
    pub(super) fn ours(&self, task: Task) -> Result<Ours> {
        let mut command = Command::new(self.cli);
        command.args(["bench", task.work.name()]).args(our_arguments(task));
        match task.contest.ours {
            Copy::Draft(_) | Copy::Shadow => command.arg("--model").arg(self.model),
            Copy::ShadowOf(file) => command.arg("--model").arg(self.peer.model(file)),
        };
        let printed = process::capture(command)?;
        serde_json::from_str(&printed).context("cannot understand what `rewind bench` printed")
    }

    /// Measures llama.cpp.
    pub(super) fn theirs(&self, task: Task) -> Result<Theirs> {
        let mut command = self.peer.python.command([self.project.path(MEASURE)]);
        command.arg(task.work.name()).args(their_arguments(task));
        command.arg("--model").arg(self.peer.model(task.contest.theirs));
        let printed = process::capture(command)?;
        serde_json::from_str(&printed)
            .with_context(|| format!("cannot understand what {MEASURE} printed"))
    }
}

/// Arguments of `rewind bench WORK`, besides the model.
pub(super) fn our_arguments(task: Task) -> Vec<String> {
    let rounds = if task.work == Work::Prefill { PREFILLS } else { 1 };
    let mut arguments = vec!["--json".to_owned(), format!("--rounds={rounds}")];
    match task.contest.ours {
        Copy::Draft(format) => {
            arguments.extend(["--weights=draft".into(), format!("--draft={format}")]);
        }
        Copy::Shadow | Copy::ShadowOf(_) => arguments.push("--weights=shadow".into()),
    }
    arguments.extend(["--device=cpu".into(), format!("--threads={}", task.threads)]);
    match task.work {
        Work::Prefill => arguments.push(format!("--prompt={PROMPT}")),
        Work::Decode | Work::Batch => arguments.push(format!("--context={STEPS}")),
    }
    if task.work == Work::Batch {
        arguments.push(format!("--batch={}", BATCHES.map(|batch| batch.to_string()).join(",")));
    }
    arguments
}

/// Arguments of the peer's script after the work, besides the model.
pub(super) fn their_arguments(task: Task) -> Vec<String> {
    let mut arguments = vec![format!("--threads={}", task.threads)];
    match task.work {
        Work::Prefill => {
            arguments.extend([format!("--prompt={PROMPT}"), format!("--prefills={PREFILLS}")]);
        }
        Work::Decode | Work::Batch => arguments.push(format!("--steps={STEPS}")),
    }
    if task.work == Work::Batch {
        arguments.push("--batches".into());
        arguments.extend(BATCHES.map(|batch| batch.to_string()));
    }
    arguments
}

impl Ours {
    /// The figure of `cell`, if it was measured.
    pub(super) fn speed(&self, cell: Cell) -> Option<Speed> {
        let found = self.measurements.iter().find(|found| is(cell, &found.name, found.batch))?;
        let bytes = Bytes { all: found.step_bytes, head: found.head_bytes };
        let tokens_per_second = f64::from(cell.tokens()) / found.step_seconds.median;
        Some(Speed { tokens_per_second, bytes })
    }

    /// Bandwidth of the memory while it was measured, in bytes a second.
    pub(super) fn bandwidth(&self) -> f64 {
        self.bandwidth.gigabytes_per_second.median * 1e9
    }
}

impl Theirs {
    /// The figure of `cell`, if it was measured.
    pub(super) fn tokens_per_second(&self, cell: Cell) -> Option<f64> {
        let found = self.measurements.iter().find(|found| is(cell, &found.name, found.batch))?;
        Some(f64::from(cell.tokens()) / found.median_step_seconds)
    }
}

fn is(cell: Cell, name: &str, batch: u32) -> bool {
    name == cell.work.name() && batch == cell.sequences
}
