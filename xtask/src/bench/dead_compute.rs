//! `cargo xtask bench dead-compute`: what a draft costs in tokens that nobody needed, and what each policy gives back.
//!
//! `rewind bench dead-compute` answers the prompts, once for each draft and way of choosing, and each answer to that is a
//! file, so that a run that was interrupted can go on. What passes cost is measured first, by `rewind bench batch` and
//! `rewind bench rewind-cost`.

mod document;
mod plot;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::command::Rewind;
use super::{options, remarks, revision};
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "dead-compute";

/// Poorer and poorer.
const DRAFTS: [&str; 3] = ["int8", "int6-g64", "int4-g32"];

/// Of sampling.
const TEMPERATURE: &str = "0.7";

/// Options of `cargo xtask bench dead-compute`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    place: options::Place,
    /// Formats of drafts
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', default_values_t = DRAFTS.map(str::to_owned))]
    drafts: Vec<String>,
    /// Go on where the same command was interrupted
    #[arg(long)]
    resume: bool,
    /// Further arguments of `rewind bench dead-compute`, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Options {
    /// The command as a person would type it.
    fn command(&self) -> String {
        let mut command = format!("cargo xtask bench {NAME}");
        if self.place.quick {
            command += " --quick";
        }
        if self.drafts != DRAFTS {
            command += &format!(" --drafts {}", self.drafts.join(","));
        }
        if !self.arguments.is_empty() {
            command += &format!(" -- {}", self.arguments.join(" "));
        }
        command
    }
}

/// What `rewind bench dead-compute --json` prints, as far as the document tells it.
#[derive(Debug, Deserialize)]
struct Found {
    draft: String,
    draft_identity: String,
    shadow_identity: String,
    temperature: f64,
    tokens: u32,
    prompts: usize,
    observed: usize,
    lengths: Vec<usize>,
    batches: Vec<u16>,
    runs: Vec<Line>,
    tasks: Vec<Task>,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(flatten)]
    run: Run,
    all: Vec<Figures>,
    domains: Vec<(String, Figures)>,
    shadow_rows_per_token: f64,
}

/// A policy with who judges.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Run {
    policy: String,
    refresh: Option<u32>,
    judge: Option<Judge>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Judge {
    Detector { detector: String, budget: f64 },
    Random { budget: f64 },
    Periodic { budget: f64 },
}

#[derive(Debug, Deserialize)]
struct Figures {
    hazard: Figure,
    dead_tokens: Figure,
    dead_compute: Vec<Figure>,
    cost_per_token: Vec<Figure>,
    cost_per_live_token: Vec<Figure>,
    regret: Option<Figure>,
    rewinds_per_token: Figure,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Figure {
    /// Infinity is no number of JSON.
    value: Option<f64>,
    interval: Option<[f64; 2]>,
}

#[derive(Debug, Deserialize)]
struct Task {
    #[serde(flatten)]
    run: Run,
    kind: String,
    tasks: usize,
    right: usize,
    gained: usize,
    lost: usize,
    same: usize,
}

impl Run {
    /// For people.
    fn name(&self) -> String {
        let budget = |budget: f64| format!("{} %", (1000.0 * budget).round() / 10.0);
        let judge = match &self.judge {
            None => return format!("`{}`", self.policy),
            Some(Judge::Detector { detector, budget: share }) => {
                format!("{detector}, {}", budget(*share))
            }
            Some(Judge::Random { budget: share }) => format!("chance, {}", budget(*share)),
            Some(Judge::Periodic { budget: share }) => format!("every {}th", (1.0 / share).round()),
        };
        let refresh =
            self.refresh.map_or_else(String::new, |refresh| format!(", refresh {refresh}"));
        format!("`{}`: {judge}{refresh}", self.policy)
    }
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.place.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let rewind = Rewind::new(project, &assembly.cli, &tools.model);
    let folder = project.target(&format!("bench/{NAME}"));
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let mut found: Vec<Found> = Vec::new();
    for draft in &options.drafts {
        for temperature in ["0", TEMPERATURE] {
            let text =
                Bench { rewind: &rewind, folder: &folder, options }.answers(draft, temperature)?;
            let read: Found = serde_json::from_str(&text).with_context(|| {
                format!("{draft}, temperature {temperature}: not what was expected")
            })?;
            println!("{draft}, temperature {temperature}: {:.0} s", read.seconds);
            found.push(read);
        }
    }
    plot::draw(&found, &out.with_extension("svg"))?;
    let told = document::Told { command: options.command(), state: revision::of(project) };
    options::write(&out, |before| document::write(&found, &told, remarks::of(before)))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

struct Bench<'a> {
    rewind: &'a Rewind,
    folder: &'a Path,
    options: &'a Options,
}

impl Bench<'_> {
    /// What the command printed for this draft, now or before.
    fn answers(&self, draft: &str, temperature: &str) -> Result<String> {
        let path = self.file("answers", &format!("{draft}-{temperature}"));
        let (batch, rewind) = self.costs(draft)?;
        let mut arguments: Vec<String> =
            ["bench", "dead-compute", "--device", "cpu"].map(str::to_owned).into();
        let named = [
            ("--draft", draft.to_owned()),
            ("--temperature", temperature.to_owned()),
            ("--batch-costs", batch.display().to_string()),
            ("--rewind-costs", rewind.display().to_string()),
        ];
        arguments.extend(named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        let quick: &[&str] = match self.options.place.quick {
            true => &[
                "--prompts",
                "4",
                "--observed",
                "4",
                "--tokens",
                "32",
                "--lengths",
                "16,32",
                "--tasks",
                "4",
            ],
            false => &["--tasks", "100"],
        };
        // Tasks are answered greedily whatever the temperature: once is enough, and they are the last two words.
        let quick = if temperature == "0" { quick } else { &quick[..quick.len() - 2] };
        arguments.extend(quick.iter().map(|&one| one.to_owned()));
        arguments.extend(self.options.arguments.iter().cloned());
        self.printed(&path, &arguments)
    }

    /// Files with what passes of a draft cost.
    fn costs(&self, draft: &str) -> Result<(PathBuf, PathBuf)> {
        let (batch, rewind) = (self.file("batch", draft), self.file("rewind-cost", draft));
        let rounds = if self.options.place.quick { "1" } else { "3" };
        let common = ["--device", "cpu", "--draft", draft, "--rounds", rounds];
        let words = |words: &[&str]| -> Vec<String> {
            words.iter().chain(&common).map(|&word| word.to_owned()).collect()
        };
        self.printed(&batch, &words(&["bench", "batch", "--weights", "draft"]))?;
        let further = ["bench", "rewind-cost", "--rows", "16", "--further", "24,32,48,64,96,144"];
        self.printed(&rewind, &words(&further))?;
        Ok((batch, rewind))
    }

    fn file(&self, what: &str, of: &str) -> PathBuf {
        let quick = if self.options.place.quick { "-quick" } else { "" };
        self.folder.join(format!("{what}-{of}{quick}.json"))
    }

    /// What a command prints, out of the file if it is there and this goes on.
    fn printed(&self, path: &Path, arguments: &[String]) -> Result<String> {
        if self.options.resume
            && let Ok(text) = fs::read_to_string(path)
        {
            return Ok(text);
        }
        let value: Value = self.rewind.json(arguments)?;
        let text = value.to_string();
        fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn found() -> Vec<Found> {
        let figure =
            |value: f64| Figure { value: Some(value), interval: Some([0.5 * value, 2.0 * value]) };
        let figures = |dead: f64| Figures {
            hazard: figure(0.01),
            dead_tokens: figure(dead),
            dead_compute: vec![figure(dead)],
            cost_per_token: vec![figure(0.004)],
            cost_per_live_token: vec![figure(0.008)],
            regret: Some(figure(0.002)),
            rewinds_per_token: figure(0.2),
        };
        let line = |policy: &str, judge: Option<Judge>, dead: f64| Line {
            run: Run { policy: policy.into(), refresh: judge.as_ref().map(|_| 8), judge },
            all: vec![figures(dead)],
            domains: vec![("chat".into(), figures(dead)), ("code".into(), figures(dead / 2.0))],
            shadow_rows_per_token: 1.5,
        };
        let margin = Judge::Detector { detector: "margin".into(), budget: 0.2 };
        vec![Found {
            draft: "int8".into(),
            draft_identity: "a".into(),
            shadow_identity: "b".into(),
            temperature: 0.0,
            tokens: 128,
            prompts: 200,
            observed: 80,
            lengths: vec![128],
            batches: vec![1],
            runs: vec![
                line("shadow", None, 0.0),
                line("off", None, 0.6),
                line("step", Some(margin), 0.06),
                line("step", Some(Judge::Random { budget: 0.2 }), 0.4),
            ],
            tasks: vec![Task {
                run: Run { policy: "off".into(), refresh: None, judge: None },
                kind: "copying".into(),
                tasks: 100,
                right: 40,
                gained: 1,
                lost: 3,
                same: 80,
            }],
            seconds: 1.0,
        }]
    }

    #[test]
    fn runs_have_names() {
        let names: Vec<_> = found()[0].runs.iter().map(|line| line.run.name()).collect();
        assert_eq!(
            names[1..],
            ["`off`", "`step`: margin, 20 %, refresh 8", "`step`: chance, 20 %, refresh 8"]
        );
    }

    #[test]
    fn what_the_command_prints_is_read() {
        let text = r#"{"policy": "step", "refresh": 8, "judge": {"detector": {"detector": "margin", "budget": 0.1}}}"#;
        let run: Run = serde_json::from_str(text).unwrap();
        assert_eq!(run.judge, Some(Judge::Detector { detector: "margin".into(), budget: 0.1 }));
        let text = r#"{"policy": "off", "refresh": null, "judge": null}"#;
        assert_eq!(serde_json::from_str::<Run>(text).unwrap().name(), "`off`");
        let figure: Figure = serde_json::from_str(r#"{"value": null, "interval": null}"#).unwrap();
        assert!(figure.value.is_none());
    }
}
