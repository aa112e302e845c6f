//! `cargo xtask bench quantize`: what each method of quantizing loses, and what making it takes; writes a document.
//!
//! Every figure is one that a `rewind` command prints. What a method has read is never what it is scored on: the
//! calibrated ones read one text and are scored on the other, and the other way round.

mod document;
mod large;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::command::Rewind;
use super::{options, remarks, revision};
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "quantize";

/// What is read: a name, a file.
const TEXTS: [(&str, &str); 2] =
    [("prose", "tests/golden/eighty_days.txt"), ("reference", "tests/data/python_reference.txt")];

const FORMATS: [&str; 3] = ["int4-g32", "int4-g128", "nf4"];
const METHODS: [&str; 3] = ["rtn", "gptq", "awq"];

/// Chunks of a text that calibration reads at most.
const CALIBRATION: u16 = 64;
/// The same, if quick.
const QUICK: u16 = 4;

/// Options of `cargo xtask bench quantize`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    place: options::Place,
    /// Chunks of 512 tokens that are scored of each text; all there are, or 2 if quick
    #[arg(long, value_name = "N")]
    chunks: Option<u16>,
    /// Also round a checkpoint of the shape of Llama 2 7B, made of random weights. Takes 25 GB of disk, and minutes
    #[arg(long)]
    large: bool,
    /// With --large, leave everything else as it was
    #[arg(long, requires = "large")]
    only_large: bool,
}

impl Options {
    /// The command as a person would type it.
    fn command(&self) -> String {
        let mut command = format!("cargo xtask bench {NAME}");
        if let Some(chunks) = self.chunks {
            command += &format!(" --chunks {chunks}");
        }
        for (given, flag) in [(self.place.quick, " --quick"), (self.large, " --large")] {
            command += if given { flag } else { "" };
        }
        command
    }

    fn chunks(&self) -> Option<u16> {
        self.chunks.or(self.place.quick.then_some(2))
    }
}

/// All that was found.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    machine: Machine,
    runs: Vec<Run>,
    #[serde(default)]
    large: Option<Large>,
}

/// One quantized folder.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    format: String,
    method: String,
    /// Name of the text that it was calibrated on.
    calibration: Option<String>,
    /// Tokens of it.
    tokens: Option<u64>,
    seconds: f64,
    peak_memory: Option<u64>,
    bits: f64,
    /// By name of the text, those that it has not read.
    scores: Vec<(String, Score)>,
}

/// The synthetic checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Large {
    shape: String,
    format: String,
    source_bytes: u64,
    bytes: u64,
    seconds: f64,
    peak_memory: Option<u64>,
}

/// `rewind perplexity --json`.
#[derive(Debug, Serialize, Deserialize)]
struct Score {
    perplexity: f64,
    perplexity_error: f64,
    tokens: u64,
    shadow: Beside,
}

#[derive(Debug, Serialize, Deserialize)]
struct Beside {
    perplexity: f64,
    agreement: f64,
    divergence: f64,
}

/// `rewind quantize --json`.
#[derive(Debug, Deserialize)]
struct Quantized {
    seconds: f64,
    peak_memory: Option<u64>,
    manifest: Manifest,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    calibration: Option<Calibrated>,
    layer_bits: f64,
}

#[derive(Debug, Deserialize)]
struct Calibrated {
    tokens: u64,
}

/// What measured it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Machine {
    cpu: String,
    cores: usize,
    system: String,
}

impl Machine {
    fn this() -> Self {
        let cpu = sysinfo::System::new().ok().and_then(|mut system| {
            system.refresh_cpu_all();
            system.cpus().first().map(|cpu| cpu.brand().to_owned())
        });
        Self {
            cpu: cpu.unwrap_or_else(|| "an unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: sysinfo::System::long_os_version().unwrap_or_default(),
        }
    }
}

/// Measures, and writes the document and the samples.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.place.document(project, NAME)?;
    let samples = out.with_extension("json");
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let folder = project.target(&format!("bench/{NAME}"));
    let mut found = match fs::read_to_string(&samples) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is not what this bench writes", samples.display()))?,
        Err(_) => Found::default(),
    };
    found.machine = Machine::this();
    if !options.only_large {
        let rewind = Rewind::new(project, &assembly.cli, &tools.model);
        found.runs = runs(&rewind, &tools.model, &folder, options)?;
    }
    if options.large {
        let rewind = |model: &Path| Rewind::new(project, &assembly.cli, model);
        found.large = Some(large::measure(rewind, &folder, options.place.quick)?);
    }
    let text = serde_json::to_string_pretty(&found).context("cannot write JSON")?;
    fs::write(&samples, text + "\n")
        .with_context(|| format!("cannot write {}", samples.display()))?;
    let told = document::Told { command: options.command(), state: revision::of(project) };
    options::write(&out, |before| document::write(&found, &told, remarks::of(before)))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

/// Every method in every format, calibrated on each text.
fn runs(rewind: &Rewind, model: &Path, folder: &Path, options: &Options) -> Result<Vec<Run>> {
    let formats = if options.place.quick { &FORMATS[..1] } else { &FORMATS[..] };
    let mut runs = Vec::new();
    for &format in formats {
        for method in METHODS {
            let calibrations: Vec<_> = match method {
                "rtn" => vec![None],
                _ => TEXTS.iter().rev().map(Some).collect(),
            };
            for calibration in calibrations {
                let place = Emptied::new(folder.join("folder"))?;
                let run = one(rewind, model, &place.0, (format, method, calibration), options)?;
                let scores = run
                    .scores
                    .iter()
                    .map(|(text, score)| format!(", {text}: perplexity {:.3}", score.perplexity));
                let read = calibration.map_or_else(String::new, |(name, _)| format!(" on {name}"));
                println!(
                    "{format}, {method}{read}: {:.1} s{}",
                    run.seconds,
                    scores.collect::<String>()
                );
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// Makes a folder and scores it on the texts that it has not read.
fn one(
    rewind: &Rewind,
    model: &Path,
    out: &Path,
    (format, method, calibration): (&str, &str, Option<&(&str, &str)>),
    options: &Options,
) -> Result<Run> {
    let out_text = out.display().to_string();
    let mut arguments = vec!["quantize", "--method", method, "--draft", format, "--out", &out_text];
    let read = if options.place.quick { QUICK } else { CALIBRATION }.to_string();
    if let Some((_, file)) = calibration {
        arguments.extend(["--text", file, "--chunks", &read]);
    }
    let made: Quantized = rewind.json(&arguments)?;
    let mut scores = Vec::new();
    let model = model.display().to_string();
    for (name, file) in TEXTS.into_iter().filter(|text| Some(text) != calibration) {
        let mut arguments: Vec<String> = ["perplexity", "--device", "cpu", "--weights", "stored"]
            .into_iter()
            .chain(["--compare", "--shadow", &model, "--text", file])
            .map(str::to_owned)
            .collect();
        if let Some(chunks) = options.chunks() {
            arguments.extend(["--chunks".to_owned(), chunks.to_string()]);
        }
        scores.push((name.to_owned(), rewind.of(out).json(&arguments)?));
    }
    Ok(Run {
        format: format.to_owned(),
        method: method.to_owned(),
        calibration: calibration.map(|(name, _)| (*name).to_owned()),
        tokens: made.manifest.calibration.map(|read| read.tokens),
        seconds: made.seconds,
        peak_memory: made.peak_memory,
        bits: made.manifest.layer_bits,
        scores,
    })
}

/// A folder that is not there before, nor after.
struct Emptied(PathBuf);

impl Emptied {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(Self(path))
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        // What cannot be removed is removed before the next use, or fails there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn found() -> Found {
        let score = |perplexity: f64| Score {
            perplexity,
            perplexity_error: 0.5,
            tokens: 512,
            shadow: Beside { perplexity: 20.0, agreement: 0.75, divergence: perplexity / 100.0 },
        };
        let run = |method: &str, calibration: Option<&str>, scores: &[(&str, f64)]| Run {
            format: "int4-g32".into(),
            method: method.into(),
            calibration: calibration.map(str::to_owned),
            tokens: calibration.map(|_| 2048),
            seconds: 12.34,
            peak_memory: Some(250_000_000),
            bits: 4.5,
            scores: scores.iter().map(|(text, p)| ((*text).to_owned(), score(*p))).collect(),
        };
        Found {
            machine: Machine { cpu: "A CPU".into(), cores: 2, system: "A system".into() },
            runs: vec![
                run("rtn", None, &[("prose", 25.0), ("reference", 30.0)]),
                run("gptq", Some("reference"), &[("prose", 22.0)]),
                run("gptq", Some("prose"), &[("reference", 24.0)]),
            ],
            large: None,
        }
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
        let told = |given: &[&str]| {
            let matches = Options::augment_args(Command::new("quantize")).get_matches_from(given);
            Options::from_arg_matches(&matches).unwrap().command()
        };
        assert_eq!(told(&["quantize"]), "cargo xtask bench quantize");
        let given = ["quantize", "--large", "--quick", "--chunks", "8"];
        assert_eq!(told(&given), "cargo xtask bench quantize --chunks 8 --quick --large");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_string(&found()).unwrap();
        let again: Found = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
