//! A real model on the device: it agrees with the CPU, `lossless` is the shadow, and nobody's answer
//! depends on who is served beside them.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rewind_engine::sampling::Sampling;
use rewind_engine::{
    Engine, Event, Executor, FinishReason, Policy, Request, Selection, Token, Weights,
};
use rewind_executor_suite::agreement::{Agreement, compare};
use rewind_serving::{AnyEngine, Device, Model, Options, Parameters, Prompt};

use crate::budget::Budget;
use crate::report::{Findings, Outcome, Table};

/// The model's name in the folder of the programs.
const FILE: &str = "model.gguf";

/// English text to feed.
const TEXT: &str = include_str!("../../golden/eighty_days.txt");

/// Prompts to answer, one on each line.
const PROMPTS: &str = include_str!("../../data/prompts.txt");

/// Sequences that run beside each other.
const BATCH: usize = 8;

/// Tokens that `lossless` holds back.
const WINDOW: u32 = 4;

/// How much is compared.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Positions of the text.
    pub positions: usize,
    /// Prompts that are answered.
    pub prompts: usize,
    /// Tokens of an answer.
    pub tokens: u32,
}

impl Extent {
    /// What `gpu-check` compares.
    pub const FULL: Self = Self { positions: 512, prompts: 16, tokens: 48 };
}

/// The model to check: the given one, or the one beside this program.
///
/// # Errors
/// It is not there.
pub fn find(given: Option<&Path>) -> Result<PathBuf, String> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => {
            let program = env::current_exe().map_err(|error| error.to_string())?;
            program.with_file_name(FILE)
        }
    };
    let missing = || format!("there is no {}; --model names another", path.display());
    path.is_file().then_some(path.clone()).ok_or_else(missing)
}

/// Compares a model on two devices, and its answers on the second with each other.
///
/// # Errors
/// The model cannot be loaded, a pass fails, or something differs that must not.
pub fn check(
    path: &Path,
    devices: [Device; 2],
    extent: Extent,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    let [(_, mut cpu), (model, mut gpu)] = [load(path, devices[0])?, load(path, devices[1])?];
    let said = agreement(&model, &mut cpu, &mut gpu, extent, findings)?;
    drop(cpu);
    if budget.is_over() {
        findings.notes.push("No time was left for answers.".to_owned());
        return Ok(Outcome::Skipped(format!("{said}, but no time was left for answers")));
    }
    let (answers, all) = answers(&model, &mut gpu, extent, budget, findings)?;
    if !all {
        return Ok(Outcome::Skipped(format!(
            "{said}, {answers} equal answers until time was over"
        )));
    }
    Ok(Outcome::Passed(format!("{said}, {answers} answers as they must be")))
}

fn load(path: &Path, device: Device) -> Result<(Arc<Model>, AnyEngine)> {
    let mut options = Options::new(path.to_owned());
    options.device = device;
    options.max_sequences = Some(BATCH as u32);
    Ok(Model::load(options)?)
}

/// Feeds both the same text; the shadows and the drafts must think the same of every next token.
fn agreement(
    model: &Model,
    cpu: &mut AnyEngine,
    gpu: &mut AnyEngine,
    extent: Extent,
    findings: &mut Findings,
) -> Result<String> {
    let mut tokens = model.tokenizer().encode(TEXT, true)?;
    tokens.truncate(extent.positions);
    let columns = ["weights", "positions", "same token", "mean regret, nats", "worst", "apart"];
    let mut table = Table::new("Agreement with the CPU, the same text fed to both", &columns);
    let mut worst: f64 = 0.0;
    let mut verdict = Ok(());
    for (weights, name) in [(Weights::Full, "shadow"), (Weights::Draft, "draft")] {
        let (cpu, gpu) = (cpu.executor_mut(), gpu.executor_mut());
        let found = compare(cpu, gpu, weights, std::slice::from_ref(&tokens))?;
        let Agreement { positions, same, mean, apart, .. } = found;
        worst = worst.max(found.worst);
        table.row([
            name.to_owned(),
            positions.to_string(),
            same.to_string(),
            format!("{mean:.6}"),
            format!("{:.4}", found.worst),
            format!("{apart:.4}"),
        ]);
        verdict = verdict.and(found.check().with_context(|| format!("the {name} on CPU and GPU")));
    }
    // The table first: where they are too far apart, the figures are wanted most.
    findings.tables.push(table);
    verdict?;
    Ok(format!("CPU and GPU are {worst:.4} nats apart at worst"))
}

/// What a client sees of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    tokens: Vec<Token>,
    text: String,
    reason: FinishReason,
}

/// Answers every prompt under several policies, alone and in batches. Returns how many answers were
/// right, and whether there was time for all.
fn answers(
    model: &Model,
    engine: &mut AnyEngine,
    extent: Extent,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<(usize, bool)> {
    let prompts: Vec<_> =
        PROMPTS.lines().filter(|line| !line.is_empty()).take(extent.prompts).collect();
    let columns = ["policy", "temperature", "batch", "equal to", "answers", "tokens"];
    let mut table = Table::new("Answers, compared token by token and byte by byte", &columns);
    let lossless = Policy::Lossless { tokens: WINDOW };
    let mut all = true;
    let mut right = 0;
    'temperatures: for temperature in [0.0, 0.8] {
        // Each is compared with the answers of the policy beside it, one prompt at a time.
        for (alone, others) in [
            (Policy::Shadow, &[(Policy::Shadow, BATCH), (lossless, 1), (lossless, BATCH)][..]),
            (Policy::Off, &[(Policy::Off, BATCH)]),
        ] {
            let requests = |policy| requests(model, &prompts, policy, temperature, extent.tokens);
            let expected = serve(engine, &requests(alone)?, 1)?;
            for &(policy, batch) in others {
                if budget.is_over() {
                    findings
                        .notes
                        .push(format!("No time was left from {policy} at {temperature} on."));
                    all = false;
                    break 'temperatures;
                }
                let found = serve(engine, &requests(policy)?, batch)?;
                if let Some(difference) = difference(&prompts, &expected, &found) {
                    bail!(
                        "{policy} in batches of {batch}, temperature {temperature}: {difference}"
                    );
                }
                right += found.len();
                let tokens: usize = found.iter().map(|answer| answer.tokens.len()).sum();
                table.row([
                    policy.to_string(),
                    temperature.to_string(),
                    batch.to_string(),
                    format!("{alone} alone"),
                    found.len().to_string(),
                    tokens.to_string(),
                ]);
            }
        }
    }
    findings.tables.push(table);
    Ok((right, all))
}

fn requests(
    model: &Model,
    prompts: &[&str],
    policy: Policy,
    temperature: f32,
    tokens: u32,
) -> Result<Vec<Request>> {
    let exact = matches!(policy, Policy::Lossless { .. } | Policy::Shadow);
    let request = |(number, prompt): (usize, &&str)| {
        let prompt = Prompt::Text((*prompt).to_owned());
        let request = model.prepare(prompt, &Parameters::default())?.request;
        let sampling = Sampling { temperature, seed: number as u64, ..request.sampling };
        let prefill = if exact { Weights::Full } else { Weights::Draft };
        Ok(Request { policy, sampling, prefill, max_tokens: tokens, ..request })
    };
    prompts.iter().enumerate().map(request).collect()
}

/// Answers requests, `batch` of them beside each other.
fn serve<E: Executor>(
    engine: &mut Engine<E>,
    requests: &[Request],
    batch: usize,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for requests in requests.chunks(batch) {
        let mut open = Vec::new();
        for request in requests {
            let answer =
                Answer { tokens: vec![], text: String::new(), reason: FinishReason::Length };
            open.push((engine.submit(request.clone())?, answer));
        }
        while !engine.is_idle() {
            let step = engine.step(Selection::All);
            ensure!(!step.passes.is_empty() || !step.events.is_empty(), "the engine stands still");
            for event in step.events {
                let id = event.id();
                let answer = open.iter_mut().find(|(other, _)| *other == id);
                let (_, answer) = answer.context("an event of an unknown request")?;
                match event {
                    Event::Token { committed, .. } => {
                        answer.tokens.push(committed.token);
                        answer.text.push_str(&committed.text);
                    }
                    Event::GateChosen { .. } | Event::Rewound { .. } => {}
                    Event::Finished { reason, text, .. } => {
                        answer.text.push_str(&text);
                        answer.reason = reason;
                    }
                    Event::Failed { error, .. } => bail!("a request failed: {error}"),
                    Event::Cancelled { .. } => bail!("a request was cancelled by nobody"),
                }
            }
        }
        answers.extend(open.into_iter().map(|(_, answer)| answer));
    }
    Ok(answers)
}

/// The first prompt with another answer.
fn difference(prompts: &[&str], expected: &[Answer], found: &[Answer]) -> Option<String> {
    let pairs = expected.iter().zip(found);
    let (number, (expected, found)) = pairs.enumerate().find(|(_, (a, b))| a != b)?;
    let equal = expected.tokens.iter().zip(&found.tokens).take_while(|(a, b)| a == b).count();
    let prompt = prompts.get(number).unwrap_or(&"");
    Some(format!("{prompt:?} is answered by {found:?}, not {expected:?}; {equal} tokens are equal"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// The demo model, where `cargo xtask` has fetched it.
    fn model() -> Option<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.rewind/models");
        let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        files.into_iter().find(|path| path.extension().is_some_and(|name| name == "gguf"))
    }

    #[test]
    fn a_model_agrees_with_itself() {
        let Some(path) = model() else {
            println!("SKIP: the demo model is not here; `cargo xtask test` fetches it");
            return;
        };
        let extent = Extent { positions: 24, prompts: 2, tokens: 4 };
        let budget = Budget::new(Duration::from_secs(3600));
        let mut findings = Findings::default();
        let outcome =
            check(&path, [Device::Cpu, Device::Cpu], extent, &budget, &mut findings).unwrap();
        let said = "CPU and GPU are 0.0000 nats apart at worst, 16 answers as they must be";
        assert_eq!(outcome, Outcome::Passed(said.into()));
        let rows: Vec<_> = findings.tables.iter().map(|table| table.rows.len()).collect();
        assert_eq!(rows, [2, 8]);
        assert_eq!(findings.tables[0].rows[0][..3], ["shadow", "24", "24"]);
    }

    #[test]
    fn another_answer_is_found() {
        let answer = |tokens: &[Token]| Answer {
            tokens: tokens.to_vec(),
            text: "a".into(),
            reason: FinishReason::Stop,
        };
        let expected = [answer(&[1]), answer(&[1, 2, 3])];
        assert_eq!(difference(&["p", "q"], &expected, &expected), None);
        let found = [answer(&[1]), answer(&[1, 2, 4])];
        let said = difference(&["p", "q"], &expected, &found).unwrap();
        assert!(said.starts_with("\"q\" is answered by ") && said.ends_with("2 tokens are equal"));
        let longer = Answer { text: "ab".into(), ..expected[0].clone() };
        assert!(difference(&["p"], &expected[..1], &[longer]).is_some());
    }

    #[test]
    fn a_model_that_is_not_there_is_named() {
        let why = find(Some(Path::new("nowhere/model.gguf"))).unwrap_err();
        assert_eq!(why, "there is no nowhere/model.gguf; --model names another");
    }
}
