//! `cargo xtask bench plans`: what layers with fewer bits cost, in order of importance and in none.
//!
//! What "Layer-Wise Quantization" (arXiv 2406.17415) found on large models, looked at on the demo model. Importance
//! is asked of `rewind quantize` once; the plans are composed here, and every figure is one that `rewind perplexity`
//! prints. Figures of quality do not depend on the machine's load and are the same each time, so there are no rounds.

mod document;
mod orders;
mod plot;
mod samples;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use jiff::Zoned;
use serde::{Deserialize, Serialize};

use self::orders::{Measure, Order};
use self::samples::{Found, Measured, Sample, Size, Treatment};
use super::command::Rewind;
use super::{options, remarks, revision};
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "plans";

/// Format of the layers that have not been moved.
const HIGH: &str = "int8";
/// Format of those that have: no format takes fewer bits.
const LOW: &str = "int4-g128";
/// Half-way, to see what the ordering is worth where little is lost.
const MILD: &str = "int6-g128";

/// What is scored, and what LIM reads: of other kinds, so that neither fits the other.
const TEXT: &str = "tests/golden/eighty_days.txt";
const CALIBRATION: &str = "tests/data/python_reference.txt";

/// Shares of the layers that are moved, per cent.
const SHARES: [usize; 10] = [0, 10, 20, 30, 40, 50, 60, 75, 90, 100];
const MILD_SHARES: [usize; 5] = [0, 20, 50, 75, 100];
const QUICK_SHARES: [usize; 3] = [0, 50, 100];
/// Layers that are removed.
const REMOVED: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const QUICK_REMOVED: [usize; 2] = [1, 4];

/// Options of `cargo xtask bench plans`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    place: options::Place,
    /// Chunks of 512 tokens that are scored; all 16, or 2 if quick
    #[arg(long, value_name = "N")]
    chunks: Option<u16>,
    /// Measure these parts only; the others stay as they were
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Part>,
    /// Go on where the same command was interrupted
    #[arg(long)]
    resume: bool,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// More and more layers in the low format, by every order
    Shares,
    /// The same layers removed
    Pruning,
    /// A low format that costs little
    Mild,
}

/// Measures, and writes the document, the picture and the samples.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.place.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let rewind = Rewind::new(project, &assembly.cli, &tools.model);
    let folder = project.target(&format!("bench/{NAME}"));
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;

    let samples = out.with_extension("json");
    let mut found = Found::read(&samples)?.unwrap_or_default();
    let bench = Bench::new(rewind, folder, options)?;
    found.sizes.clone_from(&bench.sizes);
    found.orders.clone_from(&bench.orders);
    let wanted = |part: &Part| options.only.is_empty() || options.only.contains(part);
    for &part in Part::value_variants().iter().filter(|part| wanted(part)) {
        let command = options.command(part);
        let same = |before: &Measured| options.resume && before.command == command;
        let mut measured = found.parts.remove(&part).filter(same).unwrap_or_default();
        measured.command = command;
        measured.when = format!("{}, {}", Zoned::now().strftime("%Y-%m-%d"), revision::of(project));
        found.parts.insert(part, measured);
        for (order, count, treatment) in bench.cases(part) {
            let measured = found.parts.entry(part).or_default();
            if measured.has(order.map(|order| order.name.as_str()), count, treatment) {
                continue;
            }
            let (score, sample) = bench.sample(order, count, treatment)?;
            let name = sample.order.as_deref().unwrap_or("any order");
            println!("{treatment}, {name}, {count}: perplexity {:.3}", sample.perplexity);
            measured.identity = score.identity;
            measured.samples.push(sample);
            // After each: what is interrupted can go on.
            found.write(&samples)?;
        }
        plot::draw(&found, &out.with_extension("svg"))?;
        options::write(&out, |before| document::write(&found, remarks::of(before)))?;
    }
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

impl Options {
    /// The command that measures a part, as a person would type it.
    fn command(&self, part: Part) -> String {
        let mut command = format!("cargo xtask bench {NAME} --only {}", part.name());
        if let Some(chunks) = self.chunks {
            command += &format!(" --chunks {chunks}");
        }
        if self.place.quick {
            command += " --quick";
        }
        command
    }
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// All that measuring needs.
struct Bench {
    rewind: Rewind,
    /// For plans.
    folder: PathBuf,
    chunks: Option<u16>,
    quick: bool,
    /// Of the shadow, and of drafts in one format each.
    sizes: Vec<Size>,
    orders: Vec<Order>,
}

/// `rewind inspect --json`.
#[derive(Debug, Deserialize)]
struct Inspected {
    shadow: Size,
    drafts: Vec<Size>,
}

/// `rewind quantize --json`.
#[derive(Debug, Deserialize)]
struct Quantized {
    importance: Vec<f64>,
}

/// `rewind perplexity --json`.
#[derive(Debug, Deserialize)]
struct Score {
    identity: String,
    tokens: u64,
    perplexity: f64,
    perplexity_error: f64,
    shadow: Option<Beside>,
}

#[derive(Debug, Deserialize)]
struct Beside {
    perplexity: f64,
    agreement: f64,
    divergence: f64,
}

impl Bench {
    fn new(rewind: Rewind, folder: PathBuf, options: &Options) -> Result<Self> {
        let quick = options.place.quick;
        let drafts = [HIGH, MILD, LOW].join(",");
        let inspected: Inspected =
            rewind.json(&["inspect", "--device", "cpu", "--draft", &drafts])?;
        let mut orders = Vec::new();
        let mut lim: Option<Vec<f64>> = None;
        for measure in Measure::all(quick) {
            if let (Measure::LimReversed, Some(importance)) = (measure, &lim) {
                orders.push(Order::new(measure, importance));
                continue;
            }
            let name = measure.name();
            let plan = folder.join(format!("{name}.toml"));
            let mut arguments =
                ["quantize", "--device", "cpu", "--low", LOW, "--high", HIGH, "--out"]
                    .map(str::to_owned)
                    .to_vec();
            arguments.push(plan.to_string_lossy().into_owned());
            arguments.extend(measure.arguments(CALIBRATION, quick));
            let Quantized { importance } = rewind.json(&arguments)?;
            orders.push(Order::new(measure, &importance));
            if measure == Measure::Lim {
                lim = Some(importance);
            }
        }
        let sizes = [vec![inspected.shadow], inspected.drafts].concat();
        let chunks = options.chunks.or(quick.then_some(2));
        Ok(Self { rewind, folder, chunks, quick, sizes, orders })
    }

    /// What a part is made of: an order, how many of its first layers, and what becomes of them. With none or
    /// all of them the order says nothing.
    fn cases(&self, part: Part) -> Vec<(Option<&Order>, usize, Treatment)> {
        let layers = self.orders.first().map_or(0, |order| order.layers.len());
        let counts = |shares: &[usize]| {
            let shares = if self.quick { &QUICK_SHARES } else { shares };
            shares.iter().map(|share| of(*share, layers)).collect::<Vec<_>>()
        };
        let removed = if self.quick { &QUICK_REMOVED[..] } else { &REMOVED };
        let (treatments, counts): (&[Treatment], _) = match part {
            Part::Shares => (&[Treatment::Low], counts(&SHARES)),
            Part::Mild => (&[Treatment::Mild], counts(&MILD_SHARES)),
            Part::Pruning => (&[Treatment::Low, Treatment::Removed], [&[0][..], removed].concat()),
        };
        let mut cases = Vec::new();
        for &treatment in treatments {
            for &count in &counts {
                if count == 0 || count == layers {
                    // Without a layer that is removed it is the draft itself.
                    if treatment != Treatment::Removed {
                        cases.push((None, count, treatment));
                    }
                    continue;
                }
                let orders = self.orders.iter().filter(|order| order.is_in(part));
                cases.extend(orders.map(|order| (Some(order), count, treatment)));
            }
        }
        cases
    }

    fn sample(
        &self,
        order: Option<&Order>,
        count: usize,
        treatment: Treatment,
    ) -> Result<(Score, Sample)> {
        // Any order does for none and for all.
        let moved = &order.or(self.orders.first()).context("no order")?.layers[..count];
        let total = self.orders.first().map_or(0, |order| order.layers.len());
        let fixed = ["perplexity", "--device", "cpu", "--text", TEXT];
        let mut arguments = fixed.map(str::to_owned).to_vec();
        if let Some(chunks) = self.chunks {
            arguments.extend(["--chunks".into(), chunks.to_string()]);
        }
        let score: Score = match treatment {
            Treatment::Removed => {
                let layers: Vec<_> = moved.iter().map(usize::to_string).collect();
                arguments.extend(["--compare", "--weights", HIGH].map(str::to_owned));
                arguments.extend(["--without-layers".into(), layers.join(",")]);
                self.rewind.json(&arguments)?
            }
            Treatment::Low | Treatment::Mild => {
                let plan = self.plan(total, moved, treatment)?;
                arguments.extend(["--compare", "--weights", &plan].map(str::to_owned));
                self.rewind.json(&arguments)?
            }
        };
        let sample = Sample {
            order: order.map(|order| order.name.clone()),
            layers: count,
            treatment,
            tokens: score.tokens,
            perplexity: score.perplexity,
            perplexity_error: score.perplexity_error,
            shadow: score.shadow.as_ref().map(|beside| beside.perplexity),
            agreement: score.shadow.as_ref().map(|beside| beside.agreement),
            divergence: score.shadow.as_ref().map(|beside| beside.divergence),
        };
        Ok((score, sample))
    }

    /// Writes the plan that moves these layers, and gives the draft of it.
    fn plan(&self, total: usize, moved: &[usize], treatment: Treatment) -> Result<String> {
        let low = if treatment == Treatment::Mild { MILD } else { LOW };
        let path = self.folder.join("plan.toml");
        fs::write(&path, orders::plan(total, moved, low, HIGH))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(format!("plan:{}", path.display()))
    }
}

/// So many per cent of the layers.
fn of(share: usize, layers: usize) -> usize {
    (2 * share * layers + 100) / 200
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn shares_become_layers() {
        assert_eq!(SHARES.map(|share| of(share, 30)), [0, 3, 6, 9, 12, 15, 18, 23, 27, 30]);
    }

    #[test]
    fn the_texts_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in [TEXT, CALIBRATION] {
            assert!(root.join(file).exists(), "{file}");
        }
    }
}
