//! One pass on one thread, for an instruction counter to watch: `cargo xtask bench instructions`.
//!
//! ```console
//! $ instructions draft|shadow FORMAT ROWS on|off
//! ```
//!
//! `on` measures statistics of every row that chooses a token: the row itself if there is one, else the
//! last of a prompt. The model is a layer of SmolLM2-135M's shape with random weights and a small
//! vocabulary.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rewind_checkpoint::{Architecture, ModelSpec};
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::{Outputs, Row, Weights};
use rewind_executor_suite::bench::{Bench, greedy, prompt, prompt_rows};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, format, rows, monitor] = &arguments[..] else {
        bail!("expected draft|shadow FORMAT ROWS on|off, got {arguments:?}");
    };
    let weights = match weights.as_str() {
        "draft" => Weights::Draft,
        "shadow" => Weights::Full,
        other => bail!("expected draft or shadow, got {other}"),
    };
    let format: Format = format.parse().with_context(|| format!("{format} is no format"))?;
    let rows: usize = rows.parse().with_context(|| format!("{rows} is no number of rows"))?;
    let statistics = monitor == "on";

    let spec = spec();
    let tokens = prompt(1, rows, spec.vocab_size);
    let model = TinyModel::new(spec, Precision::F16, format);
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: true,
        threads: 1,
        isa: Isa::detect(),
    };
    let loaded = CpuModel::load(&model.spec, model.source(), options, |_| ())?;
    let config = Config {
        threads: 1,
        slots: 1,
        rows,
        pages: rows.div_ceil(16),
        page_tokens: 16,
        positions: rows,
    };
    let mut bench = Bench::of(CpuExecutor::new(Arc::new(loaded), config)?);
    let outputs = |position: usize| {
        let last = position + 1 == rows;
        Outputs { choose: last.then(|| greedy(position)), statistics, ..Outputs::default() }
    };
    // The first one also pays for what happens once.
    let warm = prompt_rows(0, &tokens, outputs);
    bench.run(weights, warm)?;
    watched(&mut bench, weights, prompt_rows(0, &tokens, outputs))
}

/// What is counted; its name is known to the command.
#[inline(never)]
fn watched(bench: &mut Bench<CpuExecutor>, weights: Weights, rows: Vec<Row>) -> Result<()> {
    bench.run(weights, rows).map(drop)
}

/// A layer as SmolLM2-135M has thirty of.
fn spec() -> ModelSpec {
    ModelSpec {
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 1,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ..small_spec(Architecture::Llama, 4096)
    }
}
