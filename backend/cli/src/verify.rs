//! `rewind verify`: lossless answers are the shadow's, byte for byte, whatever runs beside them.
//!
//! Each prompt is answered once by the shadow policy, alone. Then the same requests run under
//! `lossless` with every window, and under `shadow` again, in batches of every size, on every number
//! of threads; token ids, text and finish reason must be the same. The first difference ends the
//! command with exit code 1.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_engine::{FinishReason, Request, Token};
use rewind_serving::{AnyEngine, MAX_WINDOW, Model, Parameters, PolicyName, Prompt, Value};
use serde::Serialize;

use crate::arguments::{ModelArguments, set_number, set_policy};
use crate::output;
use crate::progress;
use crate::prompts;
use crate::run::{Trace, run_all, run_one};

/// Flags of `rewind verify`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Prompts, one on each line.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Use only this many prompts, from the start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Windows of `lossless`.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "2,4,8", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WINDOW)))]
    windows: Vec<u32>,
    /// Temperatures; 0 is greedy.
    #[arg(long, value_name = "XS", value_delimiter = ',', default_value = "0,0.8")]
    temperatures: Vec<f32>,
    /// Requests that run side by side.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,8", value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: Vec<u16>,
    /// Numbers of compute threads.
    #[arg(long, value_name = "NS", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Tokens to generate, at most.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    equal: bool,
    prompts: usize,
    answers: usize,
    tokens: usize,
    rewinds: usize,
}

/// What must not differ.
#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<Token>,
    text: String,
    finish: FinishReason,
}

impl From<Trace> for Answer {
    fn from(trace: Trace) -> Self {
        Self { tokens: trace.ids(), finish: trace.finish, text: trace.text }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut texts = prompts::read(&arguments.prompts)?;
    texts.truncate(arguments.limit.map_or(usize::MAX, |n| n as usize));
    let variants = arguments.windows.len() + 1;
    let runs = texts.len()
        * arguments.temperatures.len()
        * (1 + arguments.threads.len() * arguments.batch.len() * variants);
    let bar = progress::bar(runs as u64, "verify");
    let mut report =
        Report { equal: true, prompts: texts.len(), answers: 0, tokens: 0, rewinds: 0 };
    let mut references: Vec<Vec<Answer>> = Vec::new();
    for &threads in &arguments.threads {
        let mut options = arguments.model.options(Some(threads));
        options.max_sequences = arguments.batch.iter().max().copied().map(u32::from);
        let (model, mut engine) = Model::load(options)?;
        for (place, &temperature) in arguments.temperatures.iter().enumerate() {
            if references.len() == place {
                let answers = texts.iter().enumerate().map(|(index, text)| {
                    let request = prepare(&model, &arguments, temperature, index, text, None)?;
                    bar.inc(1);
                    run_one(&mut engine, request).map(Answer::from)
                });
                references.push(answers.collect::<Result<_>>()?);
            }
            let windows = arguments.windows.iter().copied().map(Some).chain([None]);
            for (window, &batch) in
                windows.flat_map(|window| arguments.batch.iter().map(move |batch| (window, batch)))
            {
                let case = Case { threads, temperature, window, batch };
                bar.set_message(case.to_string());
                let expected = &references[place];
                check(&model, &mut engine, &arguments, &texts, expected, case, &mut report)?;
                bar.inc(texts.len() as u64);
            }
        }
    }
    bar.finish_and_clear();
    if arguments.json {
        return output::json(&report);
    }
    output::line(format_args!(
        "equal: {} answers to {} prompts, {} tokens, {} rewinds on the way",
        report.answers, report.prompts, report.tokens, report.rewinds
    ))
}

/// One combination of settings. No window: the shadow policy.
#[derive(Clone, Copy)]
struct Case {
    threads: u16,
    temperature: f32,
    window: Option<u32>,
    batch: u16,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { threads, temperature, window, batch } = self;
        match window {
            Some(window) => write!(f, "lossless({window})")?,
            None => f.write_str("shadow")?,
        }
        write!(f, ", temperature {temperature}, batch {batch}, {threads} threads")
    }
}

fn check(
    model: &Model,
    engine: &mut AnyEngine,
    arguments: &Arguments,
    texts: &[String],
    expected: &[Answer],
    case: Case,
    report: &mut Report,
) -> Result<()> {
    let numbered: Vec<_> = texts.iter().enumerate().collect();
    for part in numbered.chunks(usize::from(case.batch)) {
        let requests = part
            .iter()
            .map(|(index, text)| {
                prepare(model, arguments, case.temperature, *index, text, case.window)
            })
            .collect::<Result<Vec<_>>>()?;
        let traces = run_all(engine, requests, |_, _| ())?;
        ensure!(traces.len() == part.len(), "the engine lost a request");
        for ((index, text), trace) in part.iter().zip(traces) {
            report.rewinds += trace.rewinds.len();
            let answer = Answer::from(trace);
            report.answers += 1;
            report.tokens += answer.tokens.len();
            if answer != expected[*index] {
                bail!(difference(&case, *index, text, &expected[*index], &answer));
            }
        }
    }
    Ok(())
}

fn difference(case: &Case, index: usize, text: &str, shadow: &Answer, other: &Answer) -> String {
    let place = shadow
        .tokens
        .iter()
        .zip(&other.tokens)
        .position(|(a, b)| a != b)
        .unwrap_or_else(|| shadow.tokens.len().min(other.tokens.len()));
    format!(
        "prompt {} ({text:?}) differs under {case}, first at token {place}:\n  shadow: {:?} ({}) \
         {:?}\n  here:   {:?} ({}) {:?}",
        index + 1,
        shadow.tokens,
        shadow.finish.name(),
        shadow.text,
        other.tokens,
        other.finish.name(),
        other.text
    )
}

fn prepare(
    model: &Model,
    arguments: &Arguments,
    temperature: f32,
    index: usize,
    text: &str,
    window: Option<u32>,
) -> Result<Request> {
    let mut parameters = Parameters::default();
    let policy = if window.is_some() { PolicyName::Lossless } else { PolicyName::Shadow };
    set_policy(&mut parameters, policy)?;
    set_number(&mut parameters, "window", window)?;
    set_number(&mut parameters, "max_tokens", Some(arguments.max_tokens))?;
    parameters.set("temperature", Value::Double(temperature.into()))?;
    parameters.set("seed", Value::Int(index as i64))?;
    model
        .prepare(Prompt::Text(text.to_owned()), &parameters)
        .map(|prepared| prepared.request)
        .with_context(|| format!("prompt {}", index + 1))
}
