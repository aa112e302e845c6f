//! `cargo xtask bench cpu`: the same work on Rewind and on llama.cpp, in turns, and a document of what came out.

mod document;
mod others;
mod pairs;
mod peak;
mod plot;
mod sides;
mod work;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Zoned;
use serde_json::{Map, Value, json};

use self::pairs::{Between, Line};
use self::sides::{Files, Sides};
use self::work::{Cell, Task};
use super::options::{self, Options};
use super::spread::Spread;
use super::{remarks, revision};
use crate::process;
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "cpu";

/// How long the processor's peak, and then other programs, are looked at between the two sides.
const BETWEEN_TIME: Duration = Duration::from_millis(200);

/// Everything that a run found out.
#[derive(Debug)]
struct Run {
    command: String,
    date: String,
    rounds: usize,
    /// Of Rewind.
    version: String,
    revision: String,
    rustc: String,
    machine: Map<String, Value>,
    /// What computed each copy of the weights.
    kernels: BTreeSet<String>,
    peer_version: String,
    /// Instruction sets and libraries that the peer uses, as it says.
    peer_system: String,
    /// What compiled the peer.
    compiler: String,
    files: Files,
    lines: Vec<Line>,
    /// Name of the file of all samples.
    samples: String,
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.place.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let peer = setup::llama_cpp(project, &tools)?;
    let sides = Sides::new(project, &assembly.cli, &tools.model, &peer);

    let mut run =
        Run::new(project, options, sides.files()?, &file_name(&out.with_extension("json")));
    let tasks = work::tasks(options.place.quick);
    for round in 0..run.rounds {
        for (place, task) in tasks.iter().enumerate() {
            // In turns over the rounds and from task to task, so that neither side is the first more often.
            run.pair(&sides, *task, (round + place).is_multiple_of(2))?;
            run.tell(round, *task);
        }
    }
    run.lines.sort_by_key(|line| tasks.iter().position(|task| task.gives(line)));
    run.write(&out)?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

impl Task {
    fn gives(&self, line: &Line) -> bool {
        (self.contest, self.threads, self.work) == (line.contest, line.threads, line.cell.work)
    }
}

impl Run {
    fn new(project: &Project, options: &Options, files: Files, samples: &str) -> Self {
        Self {
            command: options.command(NAME),
            date: Zoned::now().strftime("%Y-%m-%d").to_string(),
            rounds: options.rounds().into(),
            version: String::new(),
            revision: revision::of(project),
            rustc: first_line("rustc", "--version"),
            machine: Map::new(),
            kernels: BTreeSet::new(),
            peer_version: String::new(),
            peer_system: String::new(),
            compiler: first_line("c++", "--version"),
            files,
            lines: Vec::new(),
            samples: samples.to_owned(),
        }
    }

    /// Measures both sides once.
    fn pair(&mut self, sides: &Sides<'_>, task: Task, ours_first: bool) -> Result<()> {
        let between = || -> Result<Between> {
            let others = others::busy(BETWEEN_TIME)?;
            Ok(Between { peak: peak::measure(task.threads, BETWEEN_TIME), others })
        };
        let (ours, theirs, between) = if ours_first {
            let ours = sides.ours(task)?;
            let between = between()?;
            (ours, sides.theirs(task)?, between)
        } else {
            let theirs = sides.theirs(task)?;
            let between = between()?;
            (sides.ours(task)?, theirs, between)
        };
        pairs::add(&mut self.lines, task, (&ours, &theirs), between)?;
        if let Some(Value::Array(kernels)) = ours.machine.get("kernels") {
            self.kernels.extend(kernels.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        if self.machine.is_empty() {
            self.machine = ours.machine;
        }
        (self.version, self.peer_version, self.peer_system) =
            (ours.version, theirs.version, theirs.system);
        Ok(())
    }

    /// Shows the last pairs of `task`.
    fn tell(&self, round: usize, task: Task) {
        for cell in Cell::of(task.work) {
            let line = self.lines.iter().find(|line| task.gives(line) && line.cell == cell);
            let Some(pair) = line.and_then(|line| line.pairs.last()) else { continue };
            eprintln!(
                "round {}/{}, threads {}, {}, {cell}: {:.1} / {:.1} tok/s = {:.3}",
                round + 1,
                self.rounds,
                task.threads,
                task.contest,
                pair.ours,
                pair.theirs,
                pair.ours / pair.theirs
            );
        }
    }

    /// Cores that other programs kept busy.
    fn others(&self) -> Spread {
        let pairs = self.lines.iter().flat_map(|line| &line.pairs);
        Spread::of(pairs.map(|pair| pair.between.others))
    }

    fn thread_counts(&self) -> Vec<u32> {
        let mut counts: Vec<u32> = self.lines.iter().map(|line| line.threads).collect();
        counts.dedup();
        counts
    }

    /// Writes the document with the remarks that it had, the picture and the samples.
    fn write(&self, out: &Path) -> Result<()> {
        let picture = out.with_extension("svg");
        plot::draw(&self.lines, &picture)?;
        let samples = out.with_extension("json");
        fs::write(&samples, format!("{:#}\n", self.samples()))
            .with_context(|| format!("cannot write {}", samples.display()))?;
        options::write(out, |old| document::write(self, remarks::of(old), &file_name(&picture)))
    }

    fn samples(&self) -> Value {
        let line = |line: &Line| {
            json!({
                "rewind": line.contest.ours.format(),
                "llama_cpp": line.contest.theirs,
                "threads": line.threads,
                "work": line.cell.to_string(),
                "pairs": line.pairs,
            })
        };
        json!({
            "date": self.date,
            "revision": self.revision,
            "llama_cpp_python": self.peer_version,
            "units": "a second: tokens of Rewind (ours) and llama.cpp (theirs), bytes (bandwidth), f32 operations (peak); busy cores (others)",
            "lines": self.lines.iter().map(line).collect::<Vec<_>>(),
        })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn first_line(program: &str, argument: &str) -> String {
    let mut command = Command::new(program);
    command.arg(argument);
    let told = process::capture(command).unwrap_or_default();
    told.lines().next().unwrap_or("an unknown compiler").to_owned()
}
