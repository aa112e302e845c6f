//! `cargo xtask bench formats`: what each format of a draft loses, and what it saves, and a document of it.
//!
//! Every figure is one that a `rewind` command prints. Quality does not depend on the machine's load; speed does,
//! so each format's is measured in rounds, all formats in every round.

mod plot;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Zoned;
use rewind_formats::FORMAT_NAMES;
use serde::Deserialize;

use super::spread::Spread;
use super::{markdown, options, remarks, revision};
use crate::process;
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "formats";

/// What the shadow is called where formats are.
const SHADOW: &str = "shadow";

/// What is read: a name, a file.
const TEXTS: [(&str, &str); 2] =
    [("prose", "tests/golden/eighty_days.txt"), ("reference", "tests/data/python_reference.txt")];

/// Options of `cargo xtask bench formats`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    common: options::Options,
    /// Chunks of 512 tokens that are read of each text; all there are, or 2 if quick
    #[arg(long, value_name = "N")]
    chunks: Option<u16>,
}

/// What was found about one format.
#[derive(Debug)]
struct Found {
    name: String,
    bits: f64,
    bytes: u64,
    /// For each text.
    scores: Vec<Score>,
    /// Tokens a second, a sample for each round.
    speeds: Vec<f64>,
}

/// `rewind perplexity --json`.
#[derive(Debug, Deserialize)]
struct Score {
    perplexity: f64,
    perplexity_error: f64,
    tokens: u64,
    shadow: Option<Beside>,
}

#[derive(Debug, Deserialize)]
struct Beside {
    agreement: f64,
    divergence: f64,
}

/// `rewind inspect --json`.
#[derive(Debug, Deserialize)]
struct Inspected {
    shadow: Size,
    drafts: Vec<Size>,
}

#[derive(Debug, Deserialize)]
struct Size {
    bytes: u64,
    bits_per_weight: f64,
}

/// `rewind bench decode --json`.
#[derive(Debug, Deserialize)]
struct Decoded {
    measurements: Vec<Measurement>,
}

#[derive(Debug, Deserialize)]
struct Measurement {
    tokens_per_second: Median,
}

#[derive(Debug, Deserialize)]
struct Median {
    median: f64,
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.common.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let root = project.path("");
    // Relative, since what is printed names it.
    let model = tools.model.strip_prefix(&root).unwrap_or(&tools.model);
    let rewind = Rewind { program: &assembly.cli, root: &root, model };
    let names: Vec<_> = FORMAT_NAMES.split(", ").collect();
    let inspected: Inspected =
        rewind.json(&["inspect", "--device", "cpu", "--draft", &names.join(",")])?;
    let sizes = std::iter::once(inspected.shadow).chain(inspected.drafts);
    let mut found = Vec::new();
    for (name, size) in std::iter::once(SHADOW).chain(names).zip(sizes) {
        let mut scores = Vec::new();
        for (_, text) in TEXTS {
            let score: Score = rewind.json(&score_arguments(name, text, options))?;
            println!("{name}, {text}: perplexity {:.3}", score.perplexity);
            scores.push(score);
        }
        let Size { bytes, bits_per_weight: bits } = size;
        found.push(Found { name: name.to_owned(), bits, bytes, scores, speeds: Vec::new() });
    }
    for round in 1..=options.common.rounds() {
        for one in &mut found {
            let decoded: Decoded = rewind.json(&speed_arguments(&one.name))?;
            let speed = decoded.measurements.first().context("nothing was measured")?;
            one.speeds.push(speed.tokens_per_second.median);
            println!("round {round}, {}: {:.1} tok/s", one.name, speed.tokens_per_second.median);
        }
    }
    let picture = out.with_extension("svg");
    plot::draw(&found, &picture)?;
    let state = revision::of(project);
    options::write(&out, |before| document(&found, options, &state, before))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

/// The command, where it runs, and with what.
struct Rewind<'a> {
    program: &'a Path,
    root: &'a Path,
    model: &'a Path,
}

impl Rewind<'_> {
    fn json<T: for<'de> Deserialize<'de>>(&self, arguments: &[impl AsRef<str>]) -> Result<T> {
        let mut command = Command::new(self.program);
        command.current_dir(self.root).args(arguments.iter().map(AsRef::as_ref));
        command.arg("--json").arg("--model").arg(self.model);
        let text = process::printed(command)?;
        serde_json::from_str(&text).with_context(|| format!("not what was expected: {text}"))
    }
}

fn score_arguments(name: &str, text: &str, options: &Options) -> Vec<String> {
    let fixed = ["perplexity", "--device", "cpu", "--text", text, "--weights", name];
    let mut arguments: Vec<_> = fixed.map(str::to_owned).to_vec();
    if name != SHADOW {
        arguments.push("--compare".into());
    }
    let chunks = options.chunks.or(options.common.quick.then_some(2));
    if let Some(chunks) = chunks {
        arguments.extend(["--chunks".into(), chunks.to_string()]);
    }
    arguments
}

fn speed_arguments(name: &str) -> Vec<&str> {
    let mut arguments = vec!["bench", "decode", "--device=cpu", "--rounds=1", "--context=128"];
    match name {
        SHADOW => arguments.push("--weights=shadow"),
        format => arguments.extend(["--weights=draft", "--draft", format]),
    }
    arguments
}

fn document(found: &[Found], options: &Options, state: &str, before: &str) -> String {
    let mut head = vec!["format", "bits a weight", "MB"];
    let columns: Vec<String> = TEXTS
        .iter()
        .flat_map(|(name, _)| {
            ["perplexity", "to the shadow's", "agreement", "divergence, nats"]
                .map(|column| format!("{name}: {column}"))
        })
        .collect();
    head.extend(columns.iter().map(String::as_str));
    head.push("decode, tok/s");
    let shadow = &found[0];
    let rows: Vec<Vec<String>> = found.iter().map(|one| row(one, shadow)).collect();
    let tokens: Vec<_> = shadow.scores.iter().map(|score| score.tokens.to_string()).collect();
    let mut text = format!(
        "# Formats of a draft\n\n\
         Written by `cargo xtask bench formats --rounds {}` on {}, {state}; only the remarks are kept from one time\n\
         to the next. Model: SmolLM2-135M-Instruct, on the CPU.\n\n\
         ![Perplexity against size]({NAME}.svg)\n\n",
        options.common.rounds(),
        Zoned::now().strftime("%Y-%m-%d"),
    );
    text += &markdown::table(&head, &rows);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n\
         - Embedding and LM head are `int8-g32` in every draft below 16 bits. Bits and bytes count all tensors, with\n\
         \x20 scales, norms in 32 bits. Weights are rounded to the nearest, with scales of least squared error; no other\n\
         \x20 method yet.\n\
         - Perplexity: the protocol of llama.cpp's tool, chunks of 512 tokens of which the second half is scored:\n\
         \x20 {} tokens of {}. ± is the standard error over tokens; two formats on the same tokens differ by far less\n\
         \x20 than that by chance.\n\
         - Agreement: the share of these tokens whose most likely one is the shadow's. Divergence: KL(shadow ‖ draft),\n\
         \x20 the mean over them.\n\
         - Integer formats are multiplied with activations in 8 bits on a CPU, `nf4` and `fp8` with activations in f32.\n\
         - Speed: one sequence, 128 tokens, all cores; the median of the rounds, in brackets the lowest and the highest.\n\
         - `prose` is `{}`, `reference` is `{}`.\n\n\
         ## Remarks\n\n{}",
        tokens.join(" and "),
        if tokens.len() == 1 { "the text" } else { "the two texts" },
        TEXTS[0].1,
        TEXTS[1].1,
        remarks::marked(remarks::of(before)),
    );
    text
}

fn row(one: &Found, shadow: &Found) -> Vec<String> {
    let mut cells = vec![
        format!("`{}`", one.name),
        format!("{:.2}", one.bits),
        format!("{:.1}", one.bytes as f64 / 1e6),
    ];
    for (score, of_shadow) in one.scores.iter().zip(&shadow.scores) {
        let more = 100.0 * (score.perplexity / of_shadow.perplexity - 1.0);
        cells.push(format!("{:.3} ± {:.2}", score.perplexity, score.perplexity_error));
        match &score.shadow {
            Some(beside) => cells.extend([
                format!("{more:+.2} %"),
                format!("{:.1} %", 100.0 * beside.agreement),
                format!("{:.4}", beside.divergence),
            ]),
            None => cells.extend(["–", "–", "–"].map(str::to_owned)),
        }
    }
    cells.push(format!("{:.0}", Spread::of(one.speeds.iter().copied())));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn found() -> Vec<Found> {
        let score =
            |perplexity, shadow| Score { perplexity, perplexity_error: 0.5, tokens: 512, shadow };
        let beside = || Some(Beside { agreement: 0.75, divergence: 0.25 });
        let one = |name: &str, bits, perplexity, beside: &dyn Fn() -> Option<Beside>| Found {
            name: name.into(),
            bits,
            bytes: 1_500_000,
            scores: vec![score(perplexity, beside()), score(perplexity / 2.0, beside())],
            speeds: vec![90.0, 110.0, 100.0],
        };
        vec![one("shadow", 16.0, 20.0, &|| None), one("nf4", 4.5, 25.0, &beside)]
    }

    fn options() -> Options {
        use clap::{Command, FromArgMatches};
        let matches = Options::augment_args(Command::new("formats")).get_matches_from(["formats"]);
        Options::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn the_document_compares_with_the_shadow_and_keeps_remarks() {
        let before = format!("# Old\n{}", remarks::marked("Kept."));
        let text = document(&found(), &options(), "commit abc", &before);
        let row = "| `nf4` | 4.50 | 1.5 | 25.000 ± 0.50 | +25.00 % | 75.0 % | 0.2500 | 12.500 ± 0.50 | \
                   +25.00 % | 75.0 % | 0.2500 | 100 (90–110) |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| `shadow` | 16.00 | 1.5 | 20.000 ± 0.50 | – | – | – |"), "{text}");
        assert_eq!(remarks::of(&text), "Kept.");
    }

    #[test]
    fn the_texts_are_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, file) in TEXTS {
            assert!(root.join(file).exists(), "{name}: {file}");
        }
    }
}
