//! `rewind bench dead-compute`.
//!
//! Prompts of every domain are answered under every policy, and each answer is compared with the shadow's. Thresholds come
//! from answers to prompts of other documents, so that no policy has seen what it is measured on. Time is not measured
//! here: passes are priced by what `bench batch` and `bench rewind-cost` measured before.

mod costs;
mod plan;
mod table;
mod tasks;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{Policy, Settings, Token, Weights};
use rewind_evidence::dead_compute::{
    Answer, Case, CostTable, Figures, Play, Prompt, Verdict, composed, prompts, regret,
    threshold_at,
};
use rewind_evidence::domain::Domain;
use rewind_evidence::{Half, Resampling, split};
use rewind_monitor::{Detector, DetectorName, Gate, Profile};
use rewind_serving::{AnyEngine, Model};
use serde::Serialize;

use self::plan::{Judge, Run};
use crate::arguments::ModelArguments;
use crate::documents::{self, Cut};
use crate::{output, progress};

/// Flags of `rewind bench dead-compute`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// What `rewind bench batch --json` printed for this draft.
    #[arg(long, value_name = "FILE")]
    batch_costs: PathBuf,
    /// What `rewind bench rewind-cost --json` printed for this draft.
    #[arg(long, value_name = "FILE")]
    rewind_costs: PathBuf,
    /// Prompts of each domain that are answered under every policy.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..))]
    prompts: u32,
    /// Prompts of each domain, from other documents, that thresholds are taken from.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    observed: u32,
    /// Tokens of each answer: answers do not end early.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(8..=2048))]
    tokens: u32,
    /// 0 is greedy.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f32,
    /// Detectors that rewind; fused takes its weights from the profile of each domain in --profiles.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "margin,entropy")]
    detectors: Vec<DetectorName>,
    /// Shares of steps that they may rewind.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_value = "0.1,0.2")]
    budgets: Vec<f64>,
    /// Draft positions that a rewind writes anew.
    #[arg(long, value_name = "N", default_value_t = 8)]
    refresh: u32,
    /// Other numbers of such positions, for the first detector at the last budget.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,4,16,32")]
    refreshes: Vec<u32>,
    /// Tokens that lossless holds back.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    window: u32,
    /// Lengths at which answers are compared.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "32,64,128")]
    lengths: Vec<usize>,
    /// Numbers of sequences side by side to price.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batches: Vec<u16>,
    /// Checkable tasks of each kind that every policy does besides; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    tasks: u32,
    /// Of sampling, of random rewinds and of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Sequences that are answered side by side: tokens do not depend on it.
const BATCH: u32 = 16;

/// Draws of a bootstrap.
const DRAWS: usize = 1000;

/// Of what answers are scored by, and which passes would have run.
#[derive(Debug, Serialize)]
struct Report {
    draft: String,
    draft_identity: String,
    shadow_identity: String,
    model: String,
    temperature: f32,
    tokens: u32,
    prompts: usize,
    observed: usize,
    lengths: Vec<usize>,
    batches: Vec<u16>,
    costs: CostTable,
    runs: Vec<Line>,
    tasks: Vec<tasks::Line>,
    seconds: f64,
}

/// One policy.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    run: Run,
    /// All prompts, at each length.
    all: Vec<Figures>,
    /// Each domain, at the greatest length.
    domains: Vec<(String, Figures)>,
    /// Rows of shadow passes for each token, prompts not counted.
    shadow_rows_per_token: f64,
    /// Served tokens by decision.
    decisions: Vec<(&'static str, usize)>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = std::time::Instant::now();
    let costs = costs::read(&arguments.batch_costs, &arguments.rewind_costs)?;
    let runs = plan::runs(arguments)?;
    let mut options = arguments.model.options(arguments.threads);
    options.max_sequences = Some(BATCH);
    let (model, mut engine) = progress::load(options)?;
    let bench = Bench::new(&model, &mut engine, arguments)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut reference = Vec::new();
    let total = runs.len() * bench.prompts.len() * arguments.tokens as usize;
    let bar = progress::bar(total as u64, "tokens");
    for run in runs {
        bar.set_message(run.to_string());
        let gates = bench.gates(run.judge);
        let play = bench.play(&run, &gates);
        let answers = play.run(engine.executor_mut(), || bar.inc(1))?;
        if run.policy == Policy::Shadow {
            reference = answers.iter().map(|answer| answer.tokens.clone()).collect();
        }
        ensure!(
            !matches!(run.policy, Policy::Lossless { .. })
                || answers.iter().zip(&reference).all(|(answer, tokens)| answer.tokens == *tokens),
            "lossless gave other tokens than the shadow: this is a defect"
        );
        let line = bench.line(&mut engine, run, &play, &answers, &reference, &costs)?;
        lines.push(line);
    }
    bar.finish_and_clear();
    let tasks = tasks::run(&model, &mut engine, &bench, arguments)?;
    let report = Report {
        draft: arguments.model.draft.to_string(),
        draft_identity: model.identity(Weights::Draft).to_owned(),
        shadow_identity: model.identity(Weights::Full).to_owned(),
        model: model.fingerprint().to_owned(),
        temperature: arguments.temperature,
        tokens: arguments.tokens,
        prompts: bench.prompts.len(),
        observed: bench.observed,
        lengths: arguments.lengths.clone(),
        batches: arguments.batches.clone(),
        costs,
        runs: lines,
        tasks,
        seconds: start.elapsed().as_secs_f64(),
    };
    if arguments.json { output::json(&report) } else { table::print(&report) }
}

/// What all runs have in common.
struct Bench<'a> {
    arguments: &'a Arguments,
    vocabulary: Vocabulary,
    prompts: Vec<Prompt>,
    tokens: Vec<Vec<Token>>,
    /// Prompts that thresholds come from.
    observed: usize,
    /// For each domain, its detectors.
    detectors: BTreeMap<String, Vec<Detector>>,
    /// For each domain and detector, its scores over the answers to those.
    scores: BTreeMap<(String, DetectorName), Vec<f32>>,
    settings: Settings,
}

impl<'a> Bench<'a> {
    fn new(model: &Model, engine: &mut AnyEngine, arguments: &'a Arguments) -> Result<Self> {
        let pieces = (0..model.limits().vocabulary).map(|id| model.tokenizer().piece(id));
        let vocabulary = Vocabulary::new(pieces);
        let mut all = Vec::new();
        for domain in Domain::ALL {
            if domain == Domain::Chat && model.chat_template().is_none() {
                eprintln!("SKIP chat: this model has no chat template");
                continue;
            }
            all.extend(documents::built_in(model, engine, domain, &Cut::default())?);
        }
        let halves = split(&all);
        let cut = |half, of_each: u32| prompts(&all, &halves, half, of_each as usize);
        let (prompts, observed) =
            (cut(Half::Test, arguments.prompts), cut(Half::Train, arguments.observed));
        let tokens =
            |prompts: &[Prompt]| prompts.iter().map(|p| p.tokens.clone()).collect::<Vec<_>>();
        let prompts_domains: Vec<_> = prompts.iter().map(|prompt| prompt.domain.clone()).collect();
        let settings = Settings {
            verify_rows: model.options().verify_rows,
            verify_wait: model.options().verify_wait,
            ..Settings::default()
        };
        let mut bench = Self {
            arguments,
            vocabulary,
            tokens: tokens(&prompts),
            prompts,
            observed: observed.len(),
            detectors: detectors(arguments, &prompts_domains)?,
            scores: BTreeMap::new(),
            settings,
        };
        bench.observe(engine, &observed, &tokens(&observed))?;
        Ok(bench)
    }

    /// Answers other prompts with the draft, and keeps what detectors say of it.
    fn observe(
        &mut self,
        engine: &mut AnyEngine,
        prompts: &[Prompt],
        tokens: &[Vec<Token>],
    ) -> Result<()> {
        let gates = vec![NEVER; tokens.len()];
        let run = Run { policy: Policy::Observe, refresh: None, judge: None };
        // The prompt by the shadow, as under the policies that rewind.
        let play = Play { prompts: tokens, prefill: Weights::Full, ..self.play(&run, &gates) };
        let bar =
            progress::bar(tokens.len() as u64 * u64::from(self.arguments.tokens), "observing");
        let answers = play.run(engine.executor_mut(), || bar.inc(1))?;
        bar.finish_and_clear();
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let names = self.arguments.detectors.iter();
            for (&name, detector) in
                names.zip(self.detectors.get(&prompt.domain).into_iter().flatten())
            {
                // The first token comes with the prompt and is judged by nobody.
                let judged = answer.statistics.iter().skip(1).flatten();
                let scores = judged.map(|statistics| detector.score(statistics));
                self.scores.entry((prompt.domain.clone(), name)).or_default().extend(scores);
            }
        }
        Ok(())
    }

    /// The gate of each prompt.
    fn gates(&self, judge: Option<Judge>) -> Vec<Gate> {
        let gate = |domain: &str| {
            let Some(Judge::Detector { detector: name, budget }) = judge else { return NEVER };
            let place = self.arguments.detectors.iter().position(|one| *one == name);
            let detectors = self.detectors.get(domain);
            let Some(&detector) = place.and_then(|place| detectors?.get(place)) else {
                return NEVER;
            };
            let scores = self.scores.get(&(domain.to_owned(), name));
            let scores = scores.into_iter().flatten().copied();
            Gate { detector, threshold: threshold_at(budget, scores) }
        };
        self.prompts.iter().map(|prompt| gate(&prompt.domain)).collect()
    }

    fn play<'b>(&'b self, run: &Run, gates: &'b [Gate]) -> Play<'b> {
        let prefill = match run.policy {
            Policy::Off | Policy::Observe => Weights::Draft,
            _ => Weights::Full,
        };
        let judge = run.judge;
        let Arguments { tokens, temperature, seed, .. } = *self.arguments;
        Play {
            prompts: &self.tokens,
            gates,
            tokens,
            policy: run.policy,
            verdict: judge.map_or(Verdict::Measured, |judge| judge.verdict(seed)),
            prefill,
            sampling: Sampling { temperature, seed, ..Sampling::GREEDY },
            settings: self.settings.clone(),
            vocabulary: &self.vocabulary,
        }
    }

    /// Scores a run.
    fn line(
        &self,
        engine: &mut AnyEngine,
        run: Run,
        play: &Play<'_>,
        answers: &[Answer],
        reference: &[Vec<Token>],
        costs: &CostTable,
    ) -> Result<Line> {
        let priced = self
            .arguments
            .batches
            .iter()
            .map(|&batch| composed(play, answers, batch.into(), costs));
        let priced = priced.collect::<Result<Vec<_>, _>>()?;
        let regrets = self
            .tokens
            .iter()
            .zip(answers)
            .map(|(prompt, answer)| regret(engine.executor_mut(), prompt, &answer.tokens));
        let regrets = regrets.collect::<Result<Vec<_>, _>>()?;
        let by_answer: Vec<Vec<&[f64]>> = (0..answers.len())
            .map(|number| priced.iter().map(|costs| &costs.tokens[number][..]).collect())
            .collect();
        let cases: Vec<_> = answers
            .iter()
            .enumerate()
            .map(|(number, answer)| Case {
                shadow: reference.get(number).map_or(&[], Vec::as_slice),
                served: &answer.tokens,
                regret: &regrets[number],
                costs: &by_answer[number],
                rewinds: answer.rewinds,
            })
            .collect();
        let resampling = Resampling { draws: DRAWS, seed: self.arguments.seed };
        let longest = self.arguments.lengths.iter().copied().max().context("--lengths is empty")?;
        let mut domains: Vec<String> = self.prompts.iter().map(|p| p.domain.clone()).collect();
        domains.dedup();
        let of_domain = |domain: String| {
            let of: Vec<_> = cases
                .iter()
                .zip(&self.prompts)
                .filter(|(_, prompt)| prompt.domain == domain)
                .map(|(case, _)| *case)
                .collect();
            (domain, Figures::of(&of, longest, resampling))
        };
        let served: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
        let decisions = rewind_engine::Decision::ALL.map(|decision| {
            let all = answers.iter().flat_map(|answer| &answer.decisions);
            (decision.name(), all.filter(|&&one| one == decision).count())
        });
        Ok(Line {
            run,
            all: self
                .arguments
                .lengths
                .iter()
                .map(|&n| Figures::of(&cases, n, resampling))
                .collect(),
            domains: domains.into_iter().map(of_domain).collect(),
            shadow_rows_per_token: priced
                .first()
                .map_or(0.0, |c| c.shadow_rows as f64 / served as f64),
            decisions: decisions.into(),
        })
    }
}

/// A gate that never fires.
const NEVER: Gate = Gate { detector: Detector::Margin, threshold: f32::INFINITY };

/// The detectors of each domain, in the order of their names.
fn detectors(arguments: &Arguments, domains: &[String]) -> Result<BTreeMap<String, Vec<Detector>>> {
    let of = |domain: &String, name: DetectorName| match name {
        DetectorName::Entropy => Ok(Detector::Entropy),
        DetectorName::Top1 => Ok(Detector::Top1),
        DetectorName::Margin => Ok(Detector::Margin),
        DetectorName::Fused => {
            let folder = arguments
                .model
                .profiles
                .as_ref()
                .context("fused needs weights: give --profiles")?;
            let path = folder.join(format!("{domain}.toml"));
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let profile =
                Profile::parse(&text).with_context(|| format!("in {}", path.display()))?;
            Ok(profile.gate(name, 1.0)?.detector)
        }
    };
    let mut found = BTreeMap::new();
    for domain in domains {
        if !found.contains_key(domain) {
            let all = arguments.detectors.iter().map(|&name| of(domain, name));
            found.insert(domain.clone(), all.collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(found)
}
