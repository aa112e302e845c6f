//! `cargo xtask bench triton`: the engine through a server, beside the same engine alone, and a document of what came out.

mod bare;
mod cores;
mod document;
mod profile;
mod requests;
mod scrape;
mod sides;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Zoned;
use serde_json::{Map, Value};

use self::bare::Bare;
use self::cores::Cores;
use self::sides::{Client, Clients, Load, Round, Variant};
use super::options::{self, Options};
use super::{remarks, revision};
use crate::interrupt;
use crate::process;
use crate::progress::brief;
use crate::project::Project;
use crate::server::{self, Launch, Ports, Server};
use crate::setup::{self, Assembly, Kernels, PerfAnalyzer, Tools};

/// Of the bench.
const NAME: &str = "triton";

const PROMPTS: &str = "tests/data/prompts.txt";

const INFLIGHT: &str = "smollm2";
const ITERATIVE: &str = "smollm2_iterative";

/// Everything that a run found out.
#[derive(Debug)]
struct Run {
    command: String,
    date: String,
    rounds: usize,
    /// Name and version of every program.
    versions: Vec<(String, String)>,
    machine: Map<String, Value>,
    /// One compute thread with a core of its own.
    apart: Contest,
    /// A compute thread for each core; server and clients share the cores with them.
    shared: Contest,
    /// The iterative model under other schedulers.
    schedulers: Vec<Scheduler>,
}

/// All rounds with so many compute threads.
#[derive(Debug)]
struct Contest {
    cores: Option<Cores>,
    cells: Vec<Cell>,
}

/// All rounds at one load.
#[derive(Debug)]
struct Cell {
    load: Load,
    /// The engine alone.
    bare: Vec<Round>,
    served: Vec<Served>,
}

/// A served model under one client.
#[derive(Debug)]
struct Served {
    model: &'static str,
    client: Client,
    /// In the order of those of the bare engine.
    rounds: Vec<Round>,
}

/// The iterative model under a scheduler.
#[derive(Debug)]
struct Scheduler {
    /// As in config.pbtxt.
    setting: &'static str,
    name: &'static str,
    rounds: Vec<Round>,
}

/// Requests in flight, and requests of a round for each of these.
const LOADS: [(usize, usize); 3] = [(1, 16), (4, 8), (16, 4)];

/// What Triton's scheduler may be told. Each has a name on the server.
const SCHEDULERS: [(&str, &str); 6] = [
    ("direct", "direct { }"),
    ("direct_1000", "direct { max_queue_delay_microseconds: 1000 minimum_slot_utilization: 1.0 }"),
    ("oldest", "oldest { max_candidate_sequences: 16 }"),
    (
        "oldest_500",
        "oldest { max_candidate_sequences: 16 preferred_batch_size: [ 16 ] max_queue_delay_microseconds: 500 }",
    ),
    (
        "oldest_2000",
        "oldest { max_candidate_sequences: 16 preferred_batch_size: [ 16 ] max_queue_delay_microseconds: 2000 }",
    ),
    (
        "oldest_10000",
        "oldest { max_candidate_sequences: 16 preferred_batch_size: [ 16 ] max_queue_delay_microseconds: 10000 }",
    ),
];

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.place.document(project, NAME)?;
    let cores = Cores::choose()?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let analyzer = setup::perf_analyzer(project, &tools)?;
    interrupt::listen()?;

    let prompts = fs::read_to_string(project.path(PROMPTS))
        .with_context(|| format!("cannot read {PROMPTS}"))?;
    let requests = project.state("bench/triton/requests.json");
    let folder = requests.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    fs::write(&requests, requests::file(&prompts).to_string())
        .with_context(|| format!("cannot write {}", requests.display()))?;

    let bench = Bench { project, options, tools: &tools, assembly: &assembly, analyzer, requests };
    let run = bench.run(cores)?;
    options::write(&out, |old| document::write(&run, remarks::of(old)))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

/// Fewer requests if it is to be quick.
fn loads(quick: bool) -> impl Iterator<Item = Load> {
    let share = if quick { 2 } else { 1 };
    LOADS.into_iter().map(move |(concurrency, each)| Load {
        concurrency,
        requests: concurrency * each.div_ceil(share),
    })
}

/// Everything that is needed to measure.
struct Bench<'a> {
    project: &'a Project,
    options: &'a Options,
    tools: &'a Tools,
    assembly: &'a Assembly,
    analyzer: PerfAnalyzer,
    requests: PathBuf,
}

impl Bench<'_> {
    fn run(&self, cores: Cores) -> Result<Run> {
        let mut versions = vec![("Rewind's revision".to_owned(), revision::of(self.project))];
        let mut machine = Map::new();
        let apart = self.contest(1, Some(cores), &mut versions, &mut machine)?;
        let shared = self.contest(2, None, &mut Vec::new(), &mut Map::new())?;
        let schedulers = self.schedulers(cores)?;
        Ok(Run {
            command: self.options.command(NAME),
            date: Zoned::now().strftime("%Y-%m-%d").to_string(),
            rounds: self.options.rounds().into(),
            versions,
            machine,
            apart,
            shared,
            schedulers,
        })
    }

    /// The bare engine and the served models in turns.
    fn contest(
        &self,
        threads: usize,
        cores: Option<Cores>,
        versions: &mut Vec<(String, String)>,
        machine: &mut Map<String, Value>,
    ) -> Result<Contest> {
        let shipped =
            |base: &'static str| Variant { base, name: base.to_owned(), threads, replaced: None };
        let mut server = self.serve(&[shipped(INFLIGHT), shipped(ITERATIVE)])?;
        let clients = self.clients(cores);
        let mut bare = Bare::start(
            &self.assembly.cli,
            &self.tools.model,
            threads,
            &self.requests,
            cores.map(|cores| cores.compute),
        )?;
        machine.clone_from(&bare.machine);
        versions.extend(self.versions(&server, &bare)?);
        let warm = Load { concurrency: 2, requests: 4 };
        bare.round(warm)?;
        let compute = [
            clients.compute_thread(&mut server, INFLIGHT, warm)?,
            clients.compute_thread(&mut server, ITERATIVE, warm)?,
        ];
        if let Some(cores) = cores {
            cores.split(server.process(), &compute)?;
        }
        cores::level(server.process(), bare.process())?;

        let served = || {
            [(INFLIGHT, Client::PerfAnalyzer), (INFLIGHT, Client::Own), (ITERATIVE, Client::Own)]
                .map(|(model, client)| Served { model, client, rounds: Vec::new() })
                .into()
        };
        let mut cells: Vec<Cell> = loads(self.options.place.quick)
            .map(|load| Cell { load, bare: Vec::new(), served: served() })
            .collect();
        for round in 0..usize::from(self.options.rounds()) {
            for (place, cell) in cells.iter_mut().enumerate() {
                interrupt::check()?;
                // In turns over the rounds and from load to load, so that neither side is the first more often.
                let bare_first = (round + place).is_multiple_of(2);
                if bare_first {
                    cell.bare.push(bare.round(cell.load)?);
                }
                // The first of them is the one with a target, so it is next to the bare engine either way.
                let mut sides: Vec<&mut Served> = cell.served.iter_mut().collect();
                if !bare_first {
                    sides.reverse();
                }
                for side in sides {
                    let done = clients.round(&mut server, side.model, side.client, cell.load)?;
                    side.rounds.push(done);
                }
                if !bare_first {
                    cell.bare.push(bare.round(cell.load)?);
                }
                cell.tell(threads, round);
            }
        }
        Ok(Contest { cores, cells })
    }

    /// The iterative model under each scheduler, at the highest load.
    fn schedulers(&self, cores: Cores) -> Result<Vec<Scheduler>> {
        let variants = SCHEDULERS.map(|(name, setting)| Variant {
            base: ITERATIVE,
            name: name.to_owned(),
            threads: 1,
            replaced: Some((SCHEDULERS[0].1, setting.to_owned())),
        });
        let mut server = self.serve(&variants)?;
        let clients = self.clients(Some(cores));
        let warm = Load { concurrency: 2, requests: 4 };
        let mut compute = Vec::new();
        for (name, _) in SCHEDULERS {
            compute.push(clients.compute_thread(&mut server, name, warm)?);
        }
        cores.split(server.process(), &compute)?;
        let load = loads(self.options.place.quick).last().context("there is a load")?;
        let mut schedulers: Vec<Scheduler> = SCHEDULERS
            .into_iter()
            .map(|(name, setting)| Scheduler { setting, name, rounds: Vec::new() })
            .collect();
        for _ in 0..self.options.rounds() {
            for scheduler in &mut schedulers {
                interrupt::check()?;
                let round = clients.round(&mut server, scheduler.name, Client::Own, load)?;
                eprintln!("{}: {:.1} tok/s", scheduler.setting, round.figures.rate);
                scheduler.rounds.push(round);
            }
        }
        Ok(schedulers)
    }

    fn serve(&self, variants: &[Variant<'_>]) -> Result<Server> {
        let models = sides::lay_out(self.project, &self.tools.model, variants)?;
        let mut server = Server::start(Launch {
            program: &self.tools.server,
            backends: &self.assembly.backends,
            models: &models,
            ports: Ports::free()?,
            log: self.project.state("logs/bench-triton.log"),
        })?;
        server.wait_ready()?;
        Ok(server)
    }

    fn clients(&self, cores: Option<Cores>) -> Clients<'_> {
        Clients {
            project: self.project,
            analyzer: &self.analyzer,
            python: &self.tools.python,
            requests: &self.requests,
            core: cores.map(|cores| cores.rest),
        }
    }

    fn versions(&self, server: &Server, bare: &Bare) -> Result<Vec<(String, String)>> {
        let script = "from importlib.metadata import version; print(version('tritonclient'))";
        let client = self.tools.python.command(["-c", script]);
        Ok(vec![
            ("Rewind".into(), bare.version.clone()),
            ("tritonserver".into(), server_version(server)?),
            ("perf_analyzer".into(), self.analyzer.version().into()),
            ("tritonclient".into(), process::capture(client)?.trim().into()),
        ])
    }
}

/// What the server says it is.
fn server_version(server: &Server) -> Result<String> {
    let url = server.url("/v2");
    let text = server::agent(Some(Duration::from_secs(10)))
        .get(&url)
        .call()
        .and_then(|answer| answer.into_body().read_to_string())
        .with_context(|| format!("cannot read {url}"))?;
    let about: Value = serde_json::from_str(&text).with_context(|| format!("{url} is no JSON"))?;
    Ok(about["version"].as_str().unwrap_or("unknown").to_owned())
}

impl Cell {
    /// Shows the last round.
    fn tell(&self, threads: usize, round: usize) {
        let Some(bare) = self.bare.last() else { return };
        eprintln!(
            "round {}, threads {threads}, {} in flight: bare {:.1} tok/s",
            round + 1,
            self.load.concurrency,
            bare.figures.rate
        );
        for side in &self.served {
            let Some(served) = side.rounds.last() else { continue };
            eprintln!(
                "    {} by {}: {:.1} tok/s = {:.3}, idle {:.2} %",
                side.model,
                side.client,
                served.figures.rate,
                served.figures.rate / bare.figures.rate,
                100.0 * served.idle,
            );
        }
    }
}
