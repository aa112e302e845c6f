//! `rewind regret`: what a draft costs, and what each policy gives back.
//!
//! Every prompt is answered under every policy, one request at a time, and each answer is compared
//! with the shadow twice. *Shadow regret* reads the served tokens again with the shadow weights alone
//! (teacher-forced, from a clean cache) and asks how much less probable each is than the shadow's own
//! favourite: the mean of max ln p − ln p(served), in nats. It needs no common past, so it does not
//! saturate. *Dead compute* compares with the shadow's own answer to the same request and seed: the
//! share of tokens, drafts thrown away included, that were computed at or after the first difference.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rewind_engine::{Decision, Executor, RewindReason, Token, Weights};
use rewind_evidence::dead_compute::{divergence, regret};
use rewind_monitor::profile::AUTO;
use rewind_serving::{AnyEngine, Model, Parameters, PolicyName, Prompt, Value};
use serde::Serialize;

use crate::arguments::{GateArguments, ModelArguments, SamplingArguments, set_number, set_policy};
use crate::output::{self, finite};
use crate::progress;
use crate::prompts;
use crate::run::{Trace, run_one};
use crate::score::Mean;

/// Flags of `rewind regret`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    gate: GateArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Policies to compare.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "off,step,shadow")]
    policies: Vec<PolicyName>,
    /// Prompts, one on each line.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Use only this many prompts, from the start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens to generate for each prompt, exactly: answers do not end early.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What one policy did over all prompts.
#[derive(Debug, Serialize)]
struct Line {
    policy: String,
    prompts: usize,
    tokens: usize,
    /// Nats.
    shadow_regret: f64,
    shadow_regret_error: f64,
    /// Share of served tokens that are not the shadow's favourite at their place.
    not_favourite: f64,
    /// Share of answers that leave the shadow's.
    diverged: f64,
    dead_compute: f64,
    /// Steps per served token that set off a rewind.
    trigger_rate: f64,
    /// Drafts thrown away, per served token.
    discarded: f64,
    /// Served tokens by decision.
    decisions: Vec<(&'static str, usize)>,
    shadow_passes_per_token: f64,
    shadow_rows_per_token: f64,
    tokens_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    draft: String,
    draft_identity: String,
    shadow_identity: String,
    profile: String,
    detector: &'static str,
    threshold: Option<f32>,
    thermal_coefficient: f32,
    temperature: f32,
    max_tokens: u32,
    policies: Vec<Line>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut texts = prompts::read(&arguments.prompts)?;
    texts.truncate(arguments.limit.map_or(usize::MAX, |n| n as usize));
    let mut options = arguments.model.options(arguments.threads);
    options.max_sequences = Some(1);
    let (model, mut engine) = progress::load(options)?;

    let bar = progress::bar((texts.len() * (arguments.policies.len() + 1)) as u64, "shadow");
    let reference = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let request = prepare(&model, &arguments, PolicyName::Shadow, index, text)?.request;
            bar.inc(1);
            run_one(&mut engine, request).map(|trace| trace.ids())
        })
        .collect::<Result<Vec<_>>>()?;
    let mut lines = Vec::with_capacity(arguments.policies.len());
    for &policy in &arguments.policies {
        bar.set_message(policy.name());
        let mut sums = Sums::default();
        for (index, text) in texts.iter().enumerate() {
            let request = prepare(&model, &arguments, policy, index, text)?.request;
            let prompt = request.prompt.clone();
            let trace = run_one(&mut engine, request)?;
            sums.add(&mut engine, &prompt, &trace, &reference[index])?;
            bar.inc(1);
        }
        lines.push(sums.line(policy, texts.len()));
    }
    bar.finish_and_clear();

    let first = prepare(&model, &arguments, PolicyName::Step, 0, &texts[0])?;
    let report = Report {
        draft: arguments.model.draft.to_string(),
        draft_identity: engine.executor().identity(Weights::Draft),
        shadow_identity: engine.executor().identity(Weights::Full),
        profile: match first.candidates[..] {
            [] => first.frozen.profile.to_string(),
            _ => AUTO.into(),
        },
        detector: first.frozen.gate.detector.name(),
        // Each prompt may choose another.
        threshold: finite(first.frozen.gate.threshold).filter(|_| first.candidates.is_empty()),
        thermal_coefficient: first.frozen.thermal_coefficient,
        temperature: arguments.sampling.temperature,
        max_tokens: arguments.max_tokens,
        policies: lines,
    };
    if arguments.json { output::json(&report) } else { table(&report) }
}

fn prepare(
    model: &Model,
    arguments: &Arguments,
    policy: PolicyName,
    index: usize,
    text: &str,
) -> Result<rewind_serving::Prepared> {
    let mut parameters = Parameters::default();
    set_policy(&mut parameters, policy)?;
    arguments.gate.apply(&mut parameters)?;
    arguments.sampling.apply(&mut parameters)?;
    // The same seed under every policy; another one for each prompt.
    let seed = arguments.sampling.seed.unwrap_or(0).wrapping_add(index as u64);
    parameters.set("seed", Value::String(seed.to_string()))?;
    parameters.set("ignore_eos", Value::Bool(true))?;
    set_number(&mut parameters, "max_tokens", Some(arguments.max_tokens))?;
    model
        .prepare(Prompt::Text(text.to_owned()), &parameters)
        .with_context(|| format!("prompt {}", index + 1))
}

/// Sums over the prompts of one policy.
#[derive(Default)]
struct Sums {
    regret: Mean,
    not_favourite: usize,
    diverged: usize,
    dead: f64,
    computed: f64,
    triggers: usize,
    discarded: u64,
    decisions: [usize; Decision::ALL.len()],
    decode_tokens: usize,
    seconds: f64,
    passes: usize,
    rows: usize,
}

impl Sums {
    fn add(
        &mut self,
        engine: &mut AnyEngine,
        prompt: &[Token],
        trace: &Trace,
        reference: &[Token],
    ) -> Result<()> {
        let served = trace.ids();
        self.add_regret(engine, prompt, &served)?;
        let divergence = divergence(&served, reference);
        self.diverged += usize::from(divergence < served.len());
        self.dead += (served.len() - divergence) as f64;
        self.computed += served.len() as f64;
        for rewind in &trace.rewinds {
            self.computed += f64::from(rewind.tokens);
            self.discarded += u64::from(rewind.tokens);
            if rewind.at > divergence {
                self.dead += f64::from(rewind.tokens);
            }
            self.triggers += usize::from(rewind.reason != RewindReason::Mismatch);
        }
        for committed in &trace.tokens {
            let place = Decision::ALL.iter().position(|d| *d == committed.decision);
            if let Some(place) = place {
                self.decisions[place] += 1;
            }
        }
        self.decode_tokens += served.len().saturating_sub(1);
        self.seconds += trace.decode.as_secs_f64();
        self.passes += trace.shadow_passes;
        self.rows += trace.shadow_rows;
        Ok(())
    }

    fn add_regret(
        &mut self,
        engine: &mut AnyEngine,
        prompt: &[Token],
        served: &[Token],
    ) -> Result<()> {
        let found = regret(engine.executor_mut(), prompt, served)?;
        for &one in &found {
            self.regret.add(one);
            self.not_favourite += usize::from(one > 0.0);
        }
        let scored = found.len();
        ensure!(scored == served.len(), "scored {scored} of {} tokens", served.len());
        Ok(())
    }

    fn line(&self, policy: PolicyName, prompts: usize) -> Line {
        let tokens: usize = self.decisions.iter().sum();
        let per_token = |n: f64| n / tokens as f64;
        Line {
            policy: policy.to_string(),
            prompts,
            tokens,
            shadow_regret: self.regret.mean(),
            shadow_regret_error: self.regret.standard_error(),
            not_favourite: per_token(self.not_favourite as f64),
            diverged: self.diverged as f64 / prompts as f64,
            dead_compute: self.dead / self.computed,
            trigger_rate: per_token(self.triggers as f64),
            discarded: per_token(self.discarded as f64),
            decisions: Decision::ALL.map(Decision::name).into_iter().zip(self.decisions).collect(),
            shadow_passes_per_token: per_token(self.passes as f64),
            shadow_rows_per_token: per_token(self.rows as f64),
            tokens_per_second: self.decode_tokens as f64 / self.seconds,
        }
    }
}

fn table(report: &Report) -> Result<()> {
    let threshold = match report.threshold {
        Some(threshold) => format!("{threshold:.3}"),
        None if report.profile == AUTO => "by prompt".into(),
        None => "never".into(),
    };
    output::line(format_args!(
        "draft {}, detector {}, threshold {threshold}, temperature {}, {} tokens a prompt",
        report.draft, report.detector, report.temperature, report.max_tokens
    ))?;
    output::line(format_args!(
        "{:10} {:>19} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "policy",
        "shadow regret, nats",
        "not best",
        "diverged",
        "dead",
        "triggers",
        "rows/tok",
        "tok/s"
    ))?;
    for line in &report.policies {
        output::line(format_args!(
            "{:10} {:>10.5} ± {:.5} {:>8.1}% {:>8.0}% {:>8.1}% {:>8.1}% {:>8.2} {:>8.1}",
            line.policy,
            line.shadow_regret,
            line.shadow_regret_error,
            100.0 * line.not_favourite,
            100.0 * line.diverged,
            100.0 * line.dead_compute,
            100.0 * line.trigger_rate,
            line.shadow_rows_per_token,
            line.tokens_per_second
        ))?;
    }
    Ok(())
}
