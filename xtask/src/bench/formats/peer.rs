//! llama.cpp's formats of as many bits, made of the same weights and read by the same protocol.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Found, Score, TEXTS};
use crate::process;
use crate::project::Project;
use crate::setup::LlamaCpp;

/// Formats that are compared.
const FORMATS: [&str; 2] = ["Q8_0", "Q4_0"];
/// What they are made of.
const SHADOW: &str = "F16";

const SCORE: &str = "tests/peer/perplexity.py";
const SPEED: &str = "tests/peer/measure.py";

/// Of a decode measurement, as Rewind's.
const STEPS: u32 = 128;

/// What `SCORE` prints.
#[derive(Debug, Deserialize)]
struct Scored {
    scores: Vec<Score>,
}

/// What `SPEED` prints.
#[derive(Debug, Deserialize)]
struct Timed {
    measurements: Vec<Steps>,
}

#[derive(Debug, Deserialize)]
struct Steps {
    median_step_seconds: f64,
}

/// What a file holds. A decode step reads all of it, since the demo model's embedding is its head.
#[derive(Debug, Deserialize)]
struct File {
    bytes_per_token: u64,
}

/// Quality of every format, no speed yet. `weights` are those of the model.
pub(super) fn scores(
    project: &Project,
    peer: &LlamaCpp,
    chunks: Option<u16>,
    weights: f64,
) -> Result<Vec<Found>> {
    let contents = peer.contents();
    let text = fs::read_to_string(&contents)
        .with_context(|| format!("cannot read {}", contents.display()))?;
    let files: BTreeMap<String, File> = serde_json::from_str(&text)
        .with_context(|| format!("cannot understand {}", contents.display()))?;
    let score = |format: &str| {
        let mut command = peer.python.command([project.path(SCORE)]);
        command.current_dir(project.path(""));
        command.arg("--model").arg(peer.model(format)).arg("--shadow").arg(peer.model(SHADOW));
        command.arg("--texts").args(TEXTS.map(|(_, file)| file));
        command.arg("--threads").arg(threads());
        if let Some(chunks) = chunks {
            command.arg("--chunks").arg(chunks.to_string());
        }
        let printed = process::printed(command)?;
        let Scored { scores } = serde_json::from_str(&printed)
            .with_context(|| format!("cannot understand what {SCORE} printed"))?;
        let bytes = files.get(format).with_context(|| format!("no file {format}"))?.bytes_per_token;
        let bits = 8.0 * bytes as f64 / weights;
        Ok(Found { name: format.into(), peer: true, bits, bytes, scores, speeds: Vec::new() })
    };
    FORMATS.into_iter().map(score).collect()
}

/// Tokens a second of one sequence.
pub(super) fn speed(project: &Project, peer: &LlamaCpp, format: &str) -> Result<f64> {
    let mut command = peer.python.command([project.path(SPEED)]);
    command.args(["decode", "--steps", &STEPS.to_string(), "--threads", &threads()]);
    command.arg("--model").arg(peer.model(format));
    let printed = process::printed(command)?;
    let Timed { measurements } = serde_json::from_str(&printed)
        .with_context(|| format!("cannot understand what {SPEED} printed"))?;
    let steps = measurements.first().context("nothing was measured")?;
    Ok(1.0 / steps.median_step_seconds)
}

fn threads() -> String {
    thread::available_parallelism().map_or(1, usize::from).to_string()
}
