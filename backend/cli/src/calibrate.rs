//! `rewind calibrate`: fit detectors and thresholds to texts, and say how good they are on texts held out.

mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_engine::{Executor, Weights};
use rewind_evidence::domain::Domain;
use rewind_evidence::{
    Calibration, Document, Held, Reading, RecordsFile, Resampling, Target, Trace, TraceSettings,
    split, trace,
};
use rewind_serving::{AnyEngine, Model};
use serde::Serialize;

use crate::arguments::ModelArguments;
use crate::documents::{self, Cut, file_name};
use crate::{output, progress};

/// Flags of `rewind calibrate`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Built-in domains to read (chat, code, math, prose, adversarial), all if not given; with --text, the
    /// name of the domain that these texts are.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    domain: Vec<String>,
    /// Texts of one's own, UTF-8: documents, if there are at least ten, else each is cut into documents of
    /// --context tokens.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "domain")]
    text: Vec<PathBuf>,
    #[command(flatten)]
    target: TargetArguments,
    #[command(flatten)]
    cut: Cut,
    /// Temperatures at which agreement is measured besides, with the same noise for draft and shadow.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0.7,1", value_parser = temperature)]
    temperatures: Vec<f32>,
    /// Weights of the fused detector: one set for all domains that are read, or a set for each.
    #[arg(long, value_name = "domain|all", default_value = "domain")]
    fuse: Fuse,
    /// Of the noise, and of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder for the profiles, a file NAME.toml for each domain and `default.toml`, fitted to all; made if
    /// need be.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Parquet file for the raw records, a row for each position.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What thresholds aim at.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct TargetArguments {
    /// Flag at most this share of steps; 0.2 if no target is given.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    budget: Option<f64>,
    /// Flag at least this share of the steps where draft and shadow differ.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    recall: Option<f64>,
    /// Leave at most this mean shadow regret, in nats, once flagged steps are repaired.
    #[arg(long, value_name = "NATS", value_parser = nats)]
    regret: Option<f64>,
}

impl TargetArguments {
    fn target(&self) -> Target {
        const BUDGET: Target = Target::Budget(0.2);
        let budget = self.budget.map(Target::Budget);
        let others = [self.recall.map(Target::Recall), self.regret.map(Target::Regret)];
        others.into_iter().flatten().next().or(budget).unwrap_or(BUDGET)
    }
}

/// Whose weights a fused detector has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Fuse {
    Domain,
    All,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| "expected a number between 0 and 1".into())
}

fn nats(text: &str) -> Result<f64, String> {
    let nats = text.parse().ok().filter(|nats: &f64| nats.is_finite() && *nats >= 0.0);
    nats.ok_or_else(|| "expected a number that is not negative".into())
}

fn temperature(text: &str) -> Result<f32, String> {
    let temperature = text.parse().ok().filter(|t: &f32| t.is_finite() && *t > 0.0);
    temperature.ok_or_else(|| "expected a number above 0".into())
}

/// Draws of a bootstrap: the ends of an interval then move by less than a tenth of its width from one seed to
/// another.
const DRAWS: usize = 1000;

/// Name of the profile of all domains together.
const DEFAULT: &str = "default";

#[derive(Debug, Serialize)]
struct Report {
    draft: String,
    draft_identity: String,
    shadow_identity: String,
    model: String,
    target: String,
    context: u32,
    prompt: u32,
    seed: u64,
    budgets: [f64; 4],
    domains: Vec<Calibration>,
    profiles: Vec<PathBuf>,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let start = std::time::Instant::now();
    // A mistake in the names should not cost the time of loading a model.
    let mut wanted = Wanted::of(&arguments)?;
    let mut options = arguments.model.options(arguments.threads);
    options.max_sequences = Some(documents::BATCH);
    let (model, mut engine) = progress::load(options)?;
    if let Wanted::BuiltIn(domains) = &mut wanted
        && arguments.domain.is_empty()
        && model.chat_template().is_none()
    {
        eprintln!("SKIP chat: this model has no chat template");
        domains.retain(|domain| *domain != Domain::Chat);
    }
    let documents = match &wanted {
        Wanted::BuiltIn(domains) => {
            let mut all = Vec::new();
            for &domain in domains {
                all.extend(documents::built_in(&model, &mut engine, domain, &arguments.cut)?);
            }
            all
        }
        Wanted::Own(domain) => documents::own(&model, domain, &arguments.text, &arguments.cut)?,
    };
    let traces = read(&model, &mut engine, &documents, &arguments)?;
    let held: Vec<_> = documents
        .iter()
        .zip(split(&documents))
        .zip(&traces)
        .map(|((document, half), trace)| Held { document, half, trace })
        .collect();
    let draft = arguments.model.draft.to_string();
    if let Some(path) = &arguments.records {
        let mut file = RecordsFile::create(path, &arguments.temperatures)?;
        for one in &held {
            file.add(&draft, one)?;
        }
        file.close()?;
    }
    let domains = fit(&wanted, &held, &arguments)?;
    let mut report = Report {
        draft,
        draft_identity: engine.executor().identity(Weights::Draft),
        shadow_identity: engine.executor().identity(Weights::Full),
        model: model.fingerprint().to_owned(),
        target: arguments.target.target().to_string(),
        context: arguments.cut.context,
        prompt: arguments.cut.prompt,
        seed: arguments.seed,
        budgets: rewind_evidence::BUDGETS,
        domains,
        profiles: Vec::new(),
        seconds: 0.0,
    };
    if let Some(folder) = &arguments.out {
        report.profiles = write_profiles(folder, &wanted, &report, &arguments)?;
    }
    report.seconds = start.elapsed().as_secs_f64();
    if arguments.json { output::json(&report) } else { table::print(&report) }
}

/// What is read.
enum Wanted {
    BuiltIn(Vec<Domain>),
    /// Files, as a domain of this name.
    Own(String),
}

impl Wanted {
    fn of(arguments: &Arguments) -> Result<Self> {
        if arguments.text.is_empty() {
            if arguments.domain.is_empty() {
                return Ok(Self::BuiltIn(Domain::ALL.into()));
            }
            let mut domains =
                arguments.domain.iter().map(|d| d.parse()).collect::<Result<Vec<_>, _>>()?;
            domains.sort();
            domains.dedup();
            return Ok(Self::BuiltIn(domains));
        }
        let [domain] = &arguments.domain[..] else {
            bail!("--text takes one name of a domain, not {}", arguments.domain.len());
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            (1..=64).contains(&domain.len()) && domain.chars().all(fits) && domain != "auto",
            "--domain is {domain:?}: use 1 to 64 letters, digits, '-', '_' and '.', but not \"auto\""
        );
        Ok(Self::Own(domain.clone()))
    }
}

/// Traces every document.
fn read(
    model: &Model,
    engine: &mut AnyEngine,
    documents: &[Document],
    arguments: &Arguments,
) -> Result<Vec<Trace>> {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let settings = TraceSettings {
        temperatures: arguments.temperatures.clone(),
        seed: arguments.seed,
        threads: arguments.threads.map_or_else(cores, usize::from),
    };
    let tokens: usize = documents.iter().map(|document| document.tokens.len()).sum();
    let bar = progress::bar(tokens as u64, "tokens");
    // No sensor of clocks is read yet.
    let sensors = || Reading { celsius: model.thermal().celsius, megahertz: None };
    let traces = documents
        .iter()
        .map(|document| {
            trace(engine.executor_mut(), document, &settings, sensors, |done| bar.inc(done as u64))
        })
        .collect::<Result<Vec<_>, _>>()?;
    bar.finish_and_clear();
    Ok(traces)
}

/// Each domain, and all together if there are several.
fn fit(wanted: &Wanted, held: &[Held<'_>], arguments: &Arguments) -> Result<Vec<Calibration>> {
    let target = arguments.target.target();
    let resampling = Resampling { draws: DRAWS, seed: arguments.seed };
    let shared = match arguments.fuse {
        Fuse::All => Calibration::fuse(held),
        Fuse::Domain => None,
    };
    let mut names: Vec<&str> = match wanted {
        Wanted::BuiltIn(domains) => domains.iter().map(|domain| domain.name()).collect(),
        Wanted::Own(domain) => vec![domain],
    };
    if names.len() > 1 {
        names.push(DEFAULT);
    }
    let bar = progress::bar(names.len() as u64, "fitting");
    let calibrations = names
        .iter()
        .map(|&name| {
            let of_domain = held
                .iter()
                .filter(|one| one.document.domain == name || name == DEFAULT && names.len() > 1);
            let of_domain: Vec<_> = of_domain.copied().collect();
            let found = Calibration::fit(name, &of_domain, target, shared, resampling);
            bar.inc(1);
            found
        })
        .collect::<Result<_, _>>()?;
    bar.finish_and_clear();
    Ok(calibrations)
}

fn write_profiles(
    folder: &Path,
    wanted: &Wanted,
    report: &Report,
    arguments: &Arguments,
) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut written = Vec::new();
    for calibration in &report.domains {
        let name = &calibration.domain;
        let (description, text) = match wanted {
            Wanted::Own(_) => {
                let names = arguments.text.iter().map(|path| file_name(path)).collect();
                (format!("Fitted to {}", plural(arguments.text.len(), "text")), names)
            }
            Wanted::BuiltIn(domains) => match domains.iter().find(|domain| domain.name() == name) {
                Some(domain) => (domain.description().to_owned(), vec![built_in(domain)]),
                None => (
                    format!(
                        "All of {}",
                        domains.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
                    ),
                    domains.iter().map(built_in).collect(),
                ),
            },
        };
        let mut profile =
            calibration.profile(name, &description, &report.draft_identity, &report.model, text);
        if name == DEFAULT {
            // A mixture of domains is nothing that a prompt could be recognized by.
            profile.prompt = None;
        }
        let path = folder.join(format!("{name}.toml"));
        std::fs::write(&path, profile.to_toml())
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

fn built_in(domain: &Domain) -> String {
    format!("built-in: {domain}")
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
