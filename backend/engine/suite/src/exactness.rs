//! Logits against the textbook's.

use anyhow::{Context, Result, ensure};
use rewind_checkpoint::{Architecture, ModelSpec, RopeScaling};
use rewind_engine::{Outputs, RowResult, Weights};
use rewind_formats::{FORMAT_NAMES, Format, FormatError, Group};

use crate::bench::{
    Bench, Sizes, decisions, everything, generated, logits_of, prompt, prompt_rows, same, same_row,
};
use crate::model::{Oddity, Precision, TinyModel, small_spec};
use crate::reference::{self, Textbook};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("exactness: the shadow is the textbook's", shadow),
        Case::new("exactness: a checkpoint of mixed precision", mixed),
        Case::new("exactness: a long context", long_context),
        Case::new("exactness: drafts are as close as their bits allow", drafts),
    ]
}

/// Every block shape there is, and a rotary scaling that keeps, blends and divides.
fn specs(vocabulary: usize) -> Vec<(&'static str, ModelSpec)> {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 64.0,
    };
    let of = |architecture| small_spec(architecture, vocabulary);
    let mut scaled = of(Architecture::Llama);
    scaled.rope.scaling = scaling;
    vec![
        ("Llama", of(Architecture::Llama)),
        ("Mistral", of(Architecture::Mistral)),
        ("Qwen2", of(Architecture::Qwen2)),
        ("Qwen3", of(Architecture::Qwen3)),
        ("Llama 3, scaled", scaled),
    ]
}

fn shadow<M: Machine>(machine: &M) -> Result<()> {
    let scale = machine.scale();
    let tokens = prompt(1, 40, scale.vocabulary);
    for (number, (name, spec)) in specs(scale.vocabulary).into_iter().enumerate() {
        let precisions = [Precision::F32, Precision::F16, Precision::Bf16];
        for (place, precision) in precisions.into_iter().enumerate() {
            if !scale.exhaustive && number % precisions.len() != place {
                continue;
            }
            let model =
                TinyModel { draft: None, ..TinyModel::new(spec.clone(), precision, Format::Int8) };
            let exact = reference::run(&model, &tokens, |x| machine.cached(x));
            let mut bench = Bench::new(machine, &model)?;
            // A prompt, then rows as a decode step has them.
            let mut found = bench.feed(Weights::Full, 0, &tokens[..30], 30)?;
            let rows = (30..40).map(|p| generated(0, p, tokens[p], everything(p)));
            found.extend(bench.run(Weights::Full, rows.collect())?);
            let mut errors = Vec::new();
            for (position, found) in found.iter().enumerate() {
                let what = || format!("{name}, {precision:?}, position {position}");
                errors.push(compare(machine, &exact, position, found).with_context(what)?);
                ensure!(!found.taps.is_empty(), "a row that wanted a tap came without");
                let error = relative_error(&found.taps, &exact.streams[1][position]);
                let bound = machine.shadow_error().worst;
                ensure!(error <= bound, "{}: tap is off by {error:.1e}, above {bound:.1e}", what());
            }
            errors.sort_by(f64::total_cmp);
            let (median, bound) = (errors[errors.len() / 2], machine.shadow_error().typical);
            ensure!(
                median <= bound,
                "{name}, {precision:?}: half of the rows are off by {median:.1e}, above {bound:.1e}"
            );
        }
    }
    Ok(())
}

fn mixed<M: Machine>(machine: &M) -> Result<()> {
    let spec = small_spec(Architecture::Llama, machine.scale().vocabulary);
    let model = TinyModel {
        oddity: Some(Oddity::Mixed),
        ..TinyModel::new(spec, Precision::F16, Format::Int8Group(Group::G64))
    };
    let tokens = prompt(9, 8, machine.scale().vocabulary);
    let exact = reference::run(&model, &tokens, |x| machine.cached(x));
    let mut bench = Bench::new(machine, &model)?;
    let found = bench.feed(Weights::Full, 0, &tokens, tokens.len())?;
    for (position, found) in found.iter().enumerate() {
        compare(machine, &exact, position, found)
            .with_context(|| format!("position {position}"))?;
    }
    Ok(())
}

/// Beyond 256 positions a machine may split a row's attention.
fn long_context<M: Machine>(machine: &M) -> Result<()> {
    const LEN: usize = 270;
    let spec = small_spec(Architecture::Mistral, machine.scale().vocabulary);
    let model = TinyModel { draft: None, ..TinyModel::new(spec, Precision::F16, Format::Int8) };
    let tokens = prompt(2, LEN, machine.scale().vocabulary);
    let exact = reference::run(&model, &tokens, |x| machine.cached(x));
    let sizes = Sizes { slots: 2, rows: LEN, positions: LEN };
    let mut bench = Bench::sized(machine, &model, sizes)?;
    let mut rows = prompt_rows(0, &tokens, |_| Outputs::default());
    rows[LEN - 1].outputs = everything(LEN - 1);
    let last = bench.run(Weights::Full, rows)?.pop().context("there are rows")?;
    compare(machine, &exact, LEN - 1, &last).context("as a prompt row")?;
    let step = |position: usize, outputs: fn(usize) -> Outputs| {
        generated(0, position, tokens[position], outputs(position))
    };
    let positions = [31, 255, 256, LEN - 1];
    let mut alone = Vec::new();
    for position in positions {
        let found = bench.one(Weights::Full, step(position, everything))?;
        let what = || format!("as a generated row, position {position}");
        compare(machine, &exact, position, &found).with_context(what)?;
        alone.push(RowResult { logits: None, taps: Vec::new(), ..found });
    }
    // Rows of one pass may need different numbers of splits.
    for time in 1..=3 {
        let rows = positions.iter().map(|&position| step(position, decisions)).collect();
        same(&alone, &bench.run(Weights::Full, rows)?, &format!("together, time {time}"))?;
        for (position, alone) in positions.into_iter().zip(&alone) {
            let found = bench.one(Weights::Full, step(position, decisions))?;
            same_row(alone, &found).with_context(|| format!("position {position}, time {time}"))?;
        }
    }
    Ok(())
}

/// The error of a row's logits, which is not above what the machine says is the worst.
fn compare<M: Machine>(
    machine: &M,
    exact: &Textbook,
    position: usize,
    found: &RowResult,
) -> Result<f64> {
    let error = relative_error(logits_of(found)?, &exact.logits[position]);
    let bound = machine.shadow_error().worst;
    ensure!(error <= bound, "logits are off by {error:.1e}, above {bound:.1e}");
    Ok(error)
}

fn drafts<M: Machine>(machine: &M) -> Result<()> {
    const LEN: usize = 20;
    let scale = machine.scale();
    let tokens = prompt(2, LEN, scale.vocabulary);
    let spec = small_spec(Architecture::Qwen3, scale.vocabulary);
    let formats: Vec<Format> =
        FORMAT_NAMES.split(", ").map(str::parse).collect::<Result<_, FormatError>>()?;
    let exact =
        reference::run(&TinyModel::new(spec.clone(), Precision::F32, Format::Int8), &tokens, |x| {
            machine.cached(x)
        });
    for format in formats {
        let model = TinyModel::new(spec.clone(), Precision::F32, format);
        let mut bench = Bench::new(machine, &model)?;
        let found = bench.feed(Weights::Draft, 0, &tokens, LEN)?;
        let mut mean = 0.0;
        for (found, exact) in found.iter().zip(&exact.logits) {
            mean += relative_error(logits_of(found)?, exact) / LEN as f64;
        }
        let bound = machine.draft_error(format);
        ensure!(mean <= bound, "{format} is off by {mean:.1e}, above {bound:.1e}");
        let shadow = bench.feed(Weights::Full, 1, &tokens[..1], 1)?;
        let differ = logits_of(&shadow[0])? != logits_of(&found[0])?;
        ensure!(differ, "{format}: the draft's logits are the shadow's, so it was not used");
    }
    Ok(())
}

/// Root mean square of the differences over that of the exact values.
fn relative_error(found: &[f32], exact: &[f64]) -> f64 {
    if found.len() != exact.len() {
        return f64::INFINITY;
    }
    let error: f64 = found.iter().zip(exact).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (error / exact.iter().map(|e| e * e).sum::<f64>()).sqrt()
}
