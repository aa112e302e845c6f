//! `rewind bench-engine`: the engine alone, under the load that a server gets from its clients.
//!
//! It is what a served model is measured against: the same requests through the same loop, without a server around it.
//! The file of requests is one of perf_analyzer's (`--input-data`), and the result has the shape of its profile export
//! (`--profile-export-file`), so that one reader compares the two. A round is run for each line on standard input, so
//! that rounds can take turns with those of a server and the model is loaded once. The first line printed tells
//! the machine.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_bench::Machine;
use rewind_engine::{Event, Request, RequestId, Selection};
use rewind_serving::{AnyEngine, Model, Parameters, Prompt};
use serde::{Deserialize, Serialize};

use crate::arguments::ModelArguments;
use crate::{output, progress};

/// Flags of `rewind bench-engine`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Requests, as perf_analyzer takes them: `{"data": [{"text_input": [TEXT], "sampling_parameters": [JSON]}, …]}`.
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,
}

/// One line of standard input.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Round {
    /// Requests in flight at once.
    concurrency: usize,
    /// Requests in all.
    requests: usize,
}

/// What is printed first.
#[derive(Debug, Serialize)]
struct Loaded {
    version: &'static str,
    machine: Machine,
}

/// What is printed for a round, on one line.
#[derive(Debug, Serialize)]
struct Report {
    experiments: [Experiment; 1],
    /// Time of all passes.
    pass_seconds: f64,
    /// From the first request to the last answer.
    active_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Experiment {
    requests: Vec<Answer>,
}

/// When a request was sent and when each of its tokens came, in nanoseconds of the system's clock.
#[derive(Debug, Serialize)]
struct Answer {
    timestamp: u64,
    response_timestamps: Vec<u64>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let asked = read(&arguments.requests)?;
    let (model, mut engine) = progress::load(arguments.model.options(arguments.threads))?;
    let clock = Clock::start()?;
    let described = model.describe();
    let kernels =
        described.into_iter().filter(|(what, _)| what == "kernels").map(|(_, kernel)| kernel);
    let machine = Machine::describe(kernels.collect());
    output::line(serde_json::to_string(&Loaded { version: env!("CARGO_PKG_VERSION"), machine })?)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let round: Round = serde_json::from_str(&line)
            .with_context(|| format!("not a round, such as {EXAMPLE}: {line}"))?;
        ensure!(round.concurrency > 0, "a round needs at least one request in flight: {line}");
        let report = run_round(&model, &mut engine, &asked, round, &clock)?;
        output::line(serde_json::to_string(&report)?)?;
    }
    Ok(())
}

const EXAMPLE: &str = r#"{"concurrency": 4, "requests": 16}"#;

/// A request before it is prepared.
#[derive(Clone, Debug)]
struct Asked {
    prompt: String,
    parameters: Parameters,
}

fn read(path: &Path) -> Result<Vec<Asked>> {
    #[derive(Deserialize)]
    struct File {
        data: Vec<Entry>,
    }
    // What else an entry may hold is for a server, such as `stream`.
    #[derive(Deserialize)]
    struct Entry {
        text_input: [String; 1],
        sampling_parameters: [String; 1],
    }

    let json = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the requests in {}", path.display()))?;
    let File { data } = serde_json::from_str(&json)
        .with_context(|| format!("{} does not hold requests", path.display()))?;
    ensure!(!data.is_empty(), "{} holds no request", path.display());
    data.into_iter()
        .map(|Entry { text_input: [prompt], sampling_parameters: [json] }| {
            let mut parameters = Parameters::default();
            parameters.merge_json(&json)?;
            Ok(Asked { prompt, parameters })
        })
        .collect()
}

/// One place of a round: it sends a request, and the next as soon as that has its answer.
struct Client {
    /// Requests it may still send.
    left: usize,
    /// Which of those in the file comes next.
    next: usize,
}

fn run_round(
    model: &Model,
    engine: &mut AnyEngine,
    asked: &[Asked],
    round: Round,
    clock: &Clock,
) -> Result<Report> {
    // As perf_analyzer deals them out: client i of n sends entries i, i + n, i + 2n, …
    let share = |client| {
        round.requests / round.concurrency
            + usize::from(client < round.requests % round.concurrency)
    };
    let mut clients: Vec<Client> =
        (0..round.concurrency).map(|client| Client { left: share(client), next: client }).collect();
    let mut open: HashMap<RequestId, (usize, Answer)> = HashMap::new();
    let mut requests = Vec::with_capacity(round.requests);
    let mut passes = Duration::ZERO;
    let mut due: Vec<usize> = (0..round.concurrency).collect();
    let start = Instant::now();
    loop {
        for index in due.drain(..) {
            let client = &mut clients[index];
            if client.left == 0 {
                continue;
            }
            let timestamp = clock.now();
            let request = prepare(model, &asked[client.next % asked.len()])?;
            client.left -= 1;
            client.next += round.concurrency;
            let answer = Answer { timestamp, response_timestamps: Vec::new() };
            open.insert(engine.submit(request)?, (index, answer));
        }
        if open.is_empty() {
            break;
        }
        let step = engine.step(Selection::All);
        passes += step.passes.iter().map(|pass| pass.time).sum::<Duration>();
        if step.events.is_empty() && step.passes.is_empty() {
            bail!("the engine stands still with requests in it: this is a defect");
        }
        let now = clock.now();
        for event in step.events {
            let id = event.id();
            match event {
                Event::Token { .. } => {
                    if let Some((_, answer)) = open.get_mut(&id) {
                        answer.response_timestamps.push(now);
                    }
                }
                Event::GateChosen { .. } | Event::Rewound { .. } => {}
                Event::Finished { .. } => {
                    if let Some((client, answer)) = open.remove(&id) {
                        requests.push(answer);
                        due.push(client);
                    }
                }
                Event::Cancelled { .. } => bail!("a request was cancelled"),
                Event::Failed { error, .. } => bail!("generation failed: {error}"),
            }
        }
    }
    Ok(Report {
        experiments: [Experiment { requests }],
        pass_seconds: passes.as_secs_f64(),
        active_seconds: start.elapsed().as_secs_f64(),
    })
}

fn prepare(model: &Model, asked: &Asked) -> Result<Request> {
    let prompt = Prompt::Text(asked.prompt.clone());
    Ok(model.prepare(prompt, &asked.parameters)?.request)
}

/// The system's time, from a clock that never jumps.
struct Clock {
    origin: Duration,
    start: Instant,
}

impl Clock {
    fn start() -> Result<Self> {
        let origin = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("this machine's clock stands before 1970")?;
        Ok(Self { origin, start: Instant::now() })
    }

    /// Nanoseconds since 1970; they fit until 2554.
    fn now(&self) -> u64 {
        (self.origin + self.start.elapsed()).as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(json: &str) -> Result<Vec<Asked>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("requests.json");
        std::fs::write(&file, json)?;
        read(&file)
    }

    #[test]
    fn requests_are_read_as_perf_analyzer_takes_them() {
        let asked = reading(
            r#"{"data": [{"text_input": ["Hi"], "stream": [true],
                          "sampling_parameters": ["{\"max_tokens\": 7, \"policy\": \"observe\"}"]}]}"#,
        )
        .unwrap();
        assert_eq!((asked.len(), asked[0].prompt.as_str()), (1, "Hi"));
        let mut expected = Parameters::default();
        expected.merge_json(r#"{"policy": "observe", "max_tokens": 7}"#).unwrap();
        assert_eq!(asked[0].parameters, expected);
    }

    #[test]
    fn requests_that_say_nothing_are_errors() {
        for json in ["{}", r#"{"data": []}"#, r#"{"data": [{"text_input": ["Hi"]}]}"#] {
            assert!(reading(json).is_err(), "{json}");
        }
        let unknown =
            r#"{"data": [{"text_input": ["a"], "sampling_parameters": ["{\"heat\": 1}"]}]}"#;
        assert!(reading(unknown).unwrap_err().to_string().contains("heat"));
    }

    #[test]
    fn a_round_is_a_line_of_json() {
        let round: Round = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!((round.concurrency, round.requests), (4, 16));
        assert!(serde_json::from_str::<Round>(r#"{"concurrency": 4}"#).is_err());
    }

    #[test]
    fn the_clock_goes_forward() {
        let clock = Clock::start().unwrap();
        let first = clock.now();
        assert!(clock.now() >= first && first > 1_600_000_000_000_000_000);
    }
}
