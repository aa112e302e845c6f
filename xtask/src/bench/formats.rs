//! `cargo xtask bench formats`: what each format of a draft loses, and what it saves, and a document of it.
//!
//! Every figure is one that a `rewind` command prints, or a script that asks llama.cpp the same. Quality does not
//! depend on the machine's load; speed does, so each format's is measured in rounds, all formats in every round.

mod document;
mod peer;
mod plot;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use rewind_formats::FORMAT_NAMES;
use serde::{Deserialize, Serialize};

use super::command::Rewind;
use super::{options, remarks, revision};
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "formats";

/// What the shadow is called where formats are.
const SHADOW: &str = "shadow";

/// What is read: a name, a file.
const TEXTS: [(&str, &str); 2] =
    [("prose", "tests/golden/eighty_days.txt"), ("reference", "tests/data/python_reference.txt")];

/// Options of `cargo xtask bench formats`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    common: options::Options,
    /// Chunks of 512 tokens that are read of each text; all there are, or 2 if quick
    #[arg(long, value_name = "N")]
    chunks: Option<u16>,
    /// Leave out llama.cpp's formats; it takes minutes to build
    #[arg(long)]
    alone: bool,
}

impl Options {
    fn chunks(&self) -> Option<u16> {
        self.chunks.or(self.common.place.quick.then_some(2))
    }

    /// The command as a person would type it.
    fn command(&self) -> String {
        let mut command = self.common.command(NAME);
        if let Some(chunks) = self.chunks {
            command += &format!(" --chunks {chunks}");
        }
        if self.alone {
            command += " --alone";
        }
        command
    }
}

/// What was found about one format.
#[derive(Debug, Serialize)]
struct Found {
    name: String,
    /// Whether it is llama.cpp's.
    peer: bool,
    bits: f64,
    bytes: u64,
    /// For each text.
    scores: Vec<Score>,
    /// Tokens a second, a sample for each round.
    speeds: Vec<f64>,
}

/// `rewind perplexity --json`.
#[derive(Debug, Serialize, Deserialize)]
struct Score {
    perplexity: f64,
    perplexity_error: f64,
    tokens: u64,
    shadow: Option<Beside>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Beside {
    perplexity: f64,
    agreement: f64,
    divergence: f64,
}

/// `rewind inspect --json`.
#[derive(Debug, Deserialize)]
struct Inspected {
    shadow: Size,
    drafts: Vec<Size>,
}

#[derive(Debug, Deserialize)]
struct Size {
    bytes: u64,
    bits_per_weight: f64,
}

/// `rewind bench decode --json`.
#[derive(Debug, Deserialize)]
struct Decoded {
    machine: Machine,
    measurements: Vec<Measurement>,
}

/// What measured it.
#[derive(Debug, Default, Deserialize)]
struct Machine {
    cpu: String,
    cores: usize,
    system: String,
    load_average: Option<[f64; 3]>,
}

#[derive(Debug, Deserialize)]
struct Measurement {
    tokens_per_second: Median,
}

#[derive(Debug, Deserialize)]
struct Median {
    median: f64,
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.common.place.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let rewind = Rewind::new(project, &assembly.cli, &tools.model);
    let names: Vec<_> = FORMAT_NAMES.split(", ").collect();
    let inspected: Inspected =
        rewind.json(&["inspect", "--device", "cpu", "--draft", &names.join(",")])?;
    let sizes = std::iter::once(inspected.shadow).chain(inspected.drafts);
    let mut found = Vec::new();
    for (name, size) in std::iter::once(SHADOW).chain(names).zip(sizes) {
        let mut scores = Vec::new();
        for (_, text) in TEXTS {
            let score: Score = rewind.json(&score_arguments(name, text, options))?;
            println!("{name}, {text}: perplexity {:.3}", score.perplexity);
            scores.push(score);
        }
        let Size { bytes, bits_per_weight: bits } = size;
        let name = name.to_owned();
        found.push(Found { name, peer: false, bits, bytes, scores, speeds: Vec::new() });
    }
    let peer = match options.alone {
        true => None,
        false => Some(setup::llama_cpp(project, &tools)?),
    };
    if let (Some(peer), Some(shadow)) = (&peer, found.first()) {
        let weights = 8.0 * shadow.bytes as f64 / shadow.bits;
        found.extend(peer::scores(project, peer, options.chunks(), weights)?);
    }
    let mut machine = Machine::default();
    for round in 1..=options.common.rounds() {
        for one in &mut found {
            let speed = match peer.as_ref().filter(|_| one.peer) {
                Some(peer) => peer::speed(project, peer, &one.name)?,
                None => {
                    let decoded: Decoded = rewind.json(&speed_arguments(&one.name))?;
                    machine = decoded.machine;
                    let speed = decoded.measurements.first().context("nothing was measured")?;
                    speed.tokens_per_second.median
                }
            };
            println!("round {round}, {}: {speed:.1} tok/s", one.name);
            one.speeds.push(speed);
        }
    }
    let samples = out.with_extension("json");
    let text = serde_json::to_string_pretty(&found).context("cannot write JSON")?;
    fs::write(&samples, text + "\n")
        .with_context(|| format!("cannot write {}", samples.display()))?;
    let picture = out.with_extension("svg");
    plot::draw(&found, &picture)?;
    let told = document::Told { command: options.command(), state: revision::of(project), machine };
    options::write(&out, |before| document::write(&found, &told, remarks::of(before)))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

fn score_arguments(name: &str, text: &str, options: &Options) -> Vec<String> {
    let fixed = ["perplexity", "--device", "cpu", "--text", text, "--weights", name];
    let mut arguments: Vec<_> = fixed.map(str::to_owned).to_vec();
    if name != SHADOW {
        arguments.push("--compare".into());
    }
    if let Some(chunks) = options.chunks() {
        arguments.extend(["--chunks".into(), chunks.to_string()]);
    }
    arguments
}

fn speed_arguments(name: &str) -> Vec<&str> {
    let mut arguments = vec!["bench", "decode", "--device=cpu", "--rounds=1", "--context=128"];
    match name {
        SHADOW => arguments.push("--weights=shadow"),
        format => arguments.extend(["--weights=draft", "--draft", format]),
    }
    arguments
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    pub(super) fn found() -> Vec<Found> {
        let score =
            |perplexity, shadow| Score { perplexity, perplexity_error: 0.5, tokens: 512, shadow };
        let one = |name: &str, bits, perplexity, shadow: Option<f64>, peer| {
            let beside = |half: f64| {
                let perplexity = shadow? / half;
                Some(Beside { perplexity, agreement: 0.75, divergence: 0.25 })
            };
            Found {
                name: name.into(),
                peer,
                bits,
                bytes: 1_500_000,
                scores: [1.0, 2.0].map(|half| score(perplexity / half, beside(half))).into(),
                speeds: vec![90.0, 110.0, 100.0],
            }
        };
        vec![
            one("shadow", 16.0, 20.0, None, false),
            one("nf4", 4.5, 25.0, Some(20.0), false),
            one("Q4_0", 5.0, 27.5, Some(22.0), true),
        ]
    }

    #[test]
    fn the_texts_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, file) in TEXTS {
            assert!(root.join(file).exists(), "{name}: {file}");
        }
    }

    #[test]
    fn the_command_is_told_with_what_it_was_given() {
        use clap::{Command, FromArgMatches};
        let given = ["formats", "--chunks", "8", "--rounds", "3", "--alone"];
        let matches = Options::augment_args(Command::new("formats")).get_matches_from(given);
        let options = Options::from_arg_matches(&matches).unwrap();
        let told = "cargo xtask bench formats --rounds 3 --chunks 8 --alone";
        assert_eq!(options.command(), told);
    }
}
