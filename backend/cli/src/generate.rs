//! `rewind generate`: continue a prompt, and show what was decided at each token.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use console::Style;
use rewind_engine::{Committed, Decision, Event};
use rewind_monitor::Gate;
use rewind_serving::{Frozen, Parameters, PolicyName, Prepared, Prompt, Value};
use serde::Serialize;

use crate::arguments::{GateArguments, ModelArguments, SamplingArguments, set_number, set_policy};
use crate::output::{self, finite};
use crate::progress;
use crate::run::{Trace, run_all};

/// Flags of `rewind generate`.
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
    /// off, observe, step, window, lossless or shadow.
    #[arg(long, default_value = "step")]
    policy: PolicyName,
    #[command(flatten)]
    prompt: PromptArguments,
    /// Tokens to generate, at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Stop before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
    /// Put the prompt into the model's chat template.
    #[arg(long)]
    chat: bool,
    /// Print one JSON object instead of the text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PromptArguments {
    /// Text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, such as 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_tokens: Option<Vec<i32>>,
    /// File whose text to continue.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

impl PromptArguments {
    fn read(self) -> Result<Prompt> {
        if let Some(tokens) = self.prompt_tokens {
            return Ok(Prompt::Tokens(tokens));
        }
        if let Some(path) = self.prompt_file {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(Prompt::from_bytes(bytes)?);
        }
        Ok(Prompt::Text(self.prompt.unwrap_or_default()))
    }
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let parameters = parameters(&arguments)?;
    let mut options = arguments.model.options(arguments.threads);
    options.policy = arguments.policy;
    options.max_sequences = Some(1);
    let prompt = arguments.prompt.read()?;
    let (model, mut engine) = progress::load(options)?;

    let Prepared { request, prompt_tokens, seed, frozen, candidates, .. } =
        model.prepare(prompt, &parameters)?;
    let policy = request.policy;
    let mut terminal = Terminal::new(arguments.json);
    let mut traces = run_all(&mut engine, vec![request], |_, event| terminal.show(event))?;
    ensure!(traces.len() == 1, "the engine lost the request");
    let trace = traces.remove(0);
    let chosen = trace.candidate.and_then(|candidate| candidates.get(candidate));
    let Frozen { profile, gate, thermal_coefficient } = chosen.unwrap_or(&frozen);

    let answer = Answer {
        policy: policy.to_string(),
        prompt_tokens,
        seed,
        profile,
        detector: gate.detector.name(),
        threshold: finite(gate.threshold),
        thermal_coefficient: *thermal_coefficient,
        finish_reason: trace.finish.name(),
        rewinds: trace.rewinds.len(),
        rewound_tokens: trace.rewinds.iter().map(|rewind| rewind.tokens).sum(),
        token_ids: trace.ids(),
        text: &trace.text,
        tokens: trace.tokens.iter().map(|committed| Token::new(committed, *gate)).collect(),
        timings: Timings::new(&trace, prompt_tokens),
    };
    if arguments.json {
        return output::json(&answer);
    }
    eprintln!("{}", console::style(answer.totals()).dim().for_stderr());
    Ok(())
}

fn parameters(arguments: &Arguments) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    set_policy(&mut parameters, arguments.policy)?;
    arguments.gate.apply(&mut parameters)?;
    arguments.sampling.apply(&mut parameters)?;
    set_number(&mut parameters, "max_tokens", Some(arguments.max_tokens))?;
    parameters.set_list("stop", arguments.stop.clone())?;
    parameters.set("ignore_eos", Value::Bool(arguments.ignore_eos))?;
    parameters.set("chat", Value::Bool(arguments.chat))?;
    Ok(parameters)
}

/// Text as it comes, a colour for each decision.
struct Terminal {
    silent: bool,
    styles: [Style; Decision::ALL.len()],
}

impl Terminal {
    fn new(silent: bool) -> Self {
        let styles = Decision::ALL.map(|decision| match decision {
            Decision::Draft => Style::new(),
            Decision::Verified => Style::new().green(),
            Decision::Rewound => Style::new().red().bold().underlined(),
            Decision::Shadow => Style::new().cyan(),
        });
        Self { silent, styles }
    }

    fn show(&mut self, event: &Event) {
        if self.silent {
            return;
        }
        let mut out = std::io::stdout().lock();
        let written = match event {
            Event::Token { committed, .. } => {
                let place = Decision::ALL.iter().position(|d| *d == committed.decision);
                let style = place.map_or_else(Style::new, |place| self.styles[place].clone());
                write!(out, "{}", style.apply_to(&committed.text))
            }
            Event::Finished { text, .. } => writeln!(out, "{text}"),
            _ => Ok(()),
        };
        // Whoever closed the pipe wants no more of it.
        self.silent = written.and_then(|()| out.flush()).is_err();
    }
}

/// The JSON of an answer. Numbers that JSON cannot hold (an infinite threshold) are null.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    policy: String,
    prompt_tokens: u32,
    seed: u64,
    profile: &'a str,
    detector: &'static str,
    threshold: Option<f32>,
    thermal_coefficient: f32,
    finish_reason: &'static str,
    rewinds: usize,
    rewound_tokens: u32,
    token_ids: Vec<u32>,
    text: &'a str,
    tokens: Vec<Token>,
    timings: Timings,
}

/// What was measured and decided at one token; null where nothing was.
#[derive(Debug, Serialize)]
struct Token {
    id: u32,
    text: String,
    entropy: Option<f32>,
    top1: Option<f32>,
    margin: Option<f32>,
    score: Option<f32>,
    threshold: Option<f32>,
    decision: &'static str,
}

impl Token {
    fn new(committed: &Committed, gate: Gate) -> Self {
        let statistics = committed.statistics.filter(|statistics| statistics.finite);
        Self {
            id: committed.token,
            text: committed.text.clone(),
            entropy: statistics.and_then(|s| finite(s.entropy)),
            top1: statistics.and_then(|s| finite(s.top1)),
            margin: statistics.and_then(|s| finite(s.margin)),
            score: statistics.and_then(|s| finite(gate.detector.score(&s))),
            threshold: finite(gate.threshold),
            decision: committed.decision.name(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Timings {
    first_token_seconds: f64,
    prompt_tokens_per_second: f64,
    decode_seconds: f64,
    decode_tokens_per_second: Option<f64>,
    shadow_passes: usize,
    shadow_rows: usize,
}

impl Timings {
    fn new(trace: &Trace, prompt_tokens: u32) -> Self {
        let first_token_seconds = trace.first_token.as_secs_f64();
        Self {
            first_token_seconds,
            prompt_tokens_per_second: f64::from(prompt_tokens) / first_token_seconds.max(1e-9),
            decode_seconds: trace.decode.as_secs_f64(),
            decode_tokens_per_second: trace.decode_rate(),
            shadow_passes: trace.shadow_passes,
            shadow_rows: trace.shadow_rows,
        }
    }
}

impl Answer<'_> {
    fn totals(&self) -> String {
        let measured: Vec<f64> =
            self.tokens.iter().filter_map(|token| token.entropy.map(f64::from)).collect();
        let entropy = match measured.len() {
            0 => String::new(),
            n => format!(", mean entropy {:.2} nats", measured.iter().sum::<f64>() / n as f64),
        };
        let rate = match self.timings.decode_tokens_per_second {
            Some(rate) => format!(", {rate:.1} tok/s"),
            None => String::new(),
        };
        format!(
            "{}: {} tokens, {} rewinds{entropy}{rate}, finished by {}, seed {}",
            self.policy,
            self.token_ids.len(),
            self.rewinds,
            self.finish_reason,
            self.seed
        )
    }
}
