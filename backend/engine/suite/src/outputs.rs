//! What a row answers, from the logits that it says it has.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rewind_checkpoint::Architecture;
use rewind_engine::sampling::{self, History, Sampling, Scratch};
use rewind_engine::{Choose, Outputs, Row, RowResult, Token, TokenMask, Weights};
use rewind_formats::{Format, Group};
use rewind_monitor::{Detector, Gate, Statistics, oracle};

use crate::bench::{
    Bench, DETECTORS, decisions, everything, generated, greedy, logits_of, prompt, prompt_rows,
    row, same_row,
};
use crate::model::{Oddity, Precision, TinyModel, small_spec};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("outputs: statistics and log-probabilities are the definitions'", statistics),
        Case::new("outputs: a row answers only what it is asked", only_what_is_asked),
        Case::new("outputs: taps are the residual stream", taps),
        Case::new("outputs: sampling is the engine's", sampled),
        Case::new("outputs: lists of any length", long_lists),
        Case::new("outputs: the gate judges by its detector", gates),
        Case::new("outputs: a row that is not finite harms no other", not_finite),
    ]
}

fn bench<M: Machine>(machine: &M) -> Result<Bench<M::Executor>> {
    let spec = small_spec(Architecture::Llama, machine.scale().vocabulary);
    let format = Format::Int4Group(Group::G32);
    Bench::new(machine, &TinyModel::new(spec, Precision::F16, format))
}

fn near(what: &str, found: f32, exact: f32, bound: f32) -> Result<()> {
    let error = (found - exact).abs();
    ensure!(error <= bound, "{what} is {found}, {error:.1e} from {exact}, above {bound:.1e}");
    Ok(())
}

fn statistics<M: Machine>(machine: &M) -> Result<()> {
    const LEN: usize = 40;
    let mut bench = bench(machine)?;
    let tokens = prompt(1, LEN, machine.scale().vocabulary);
    let most = |position| Outputs { logprobs: Some(20), ..everything(position) };
    let results = bench.run(Weights::Draft, prompt_rows(0, &tokens, most))?;
    for (position, result) in results.iter().enumerate() {
        against_definitions(result).with_context(|| format!("position {position}"))?;
    }
    Ok(())
}

fn against_definitions(result: &RowResult) -> Result<()> {
    let logits = logits_of(result)?;
    let exact = oracle::statistics(logits);
    let found = result.statistics;
    near("entropy", found.entropy, exact.entropy, 1e-4)?;
    near("varentropy", found.varentropy, exact.varentropy, 1e-3)?;
    near("top1", found.top1, exact.top1, 1e-5)?;
    near("margin", found.margin, exact.margin, 1e-5)?;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let id = |rank: usize| order[rank] as Token;
    ensure!(result.token == Some(id(0)), "{:?} was chosen, not {}", result.token, id(0));
    let second = result.runner_up;
    ensure!(second == Some(id(1)), "the runner-up is {second:?}, not {}", id(1));
    let p = oracle::softmax(logits);
    let listed = result.logprobs.len();
    ensure!(listed == 21, "{listed} log-probabilities for the choice and 20 best");
    for (entry, rank) in result.logprobs.iter().zip(std::iter::once(0).chain(0..20)) {
        let found = (entry.token, entry.rank as usize);
        ensure!(
            found == (id(rank), rank + 1),
            "(token, rank) {found:?} stands at rank {}",
            rank + 1
        );
        near("a log-probability", entry.logprob, p[order[rank]].ln() as f32, 1e-5)?;
    }
    Ok(())
}

fn only_what_is_asked<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = bench(machine)?;
    let tokens = prompt(2, 3, machine.scale().vocabulary);
    bench.prefill(Weights::Full, 0, &tokens[..2])?;
    // Twice each in one class, so that what remembers a shape is asked again.
    let mut ask = |outputs: Outputs| {
        let row = generated(0, 2, tokens[2], outputs);
        let first = bench.one(Weights::Full, row.clone())?;
        for _ in 0..2 {
            same_row(&first, &bench.one(Weights::Full, row.clone())?).context("asked again")?;
        }
        Ok::<_, anyhow::Error>(first)
    };
    let all = ask(everything(2))?;
    same_row(&RowResult::empty(), &ask(Outputs::default())?).context("nothing")?;

    let found = ask(Outputs { choose: Some(greedy(2)), ..Outputs::default() })?;
    let margin = Statistics { margin: all.statistics.margin, ..Statistics::UNMEASURED };
    let (token, runner_up) = (all.token, all.runner_up);
    let expected = RowResult { token, runner_up, statistics: margin, ..RowResult::empty() };
    same_row(&expected, &found).context("a choice")?;

    let found = ask(Outputs { statistics: true, ..Outputs::default() })?;
    let statistics = Statistics { margin: 0.0, ..all.statistics };
    same_row(&RowResult { statistics, ..RowResult::empty() }, &found).context("statistics")?;

    let found = ask(Outputs { logprobs: Some(2), ..Outputs::default() })?;
    let logprobs = all.logprobs[1..3].into();
    same_row(&RowResult { logprobs, ..RowResult::empty() }, &found)
        .context("log-probabilities alone")?;

    let choose = Some(greedy(2));
    let found = ask(Outputs { choose, logprobs: Some(0), ..Outputs::default() })?;
    let logprobs = all.logprobs[..1].into();
    same_row(&RowResult { logprobs, ..expected }, &found).context("the choice's")?;

    let found = ask(Outputs { logits: true, ..Outputs::default() })?;
    same_row(&RowResult { logits: all.logits, ..RowResult::empty() }, &found).context("logits")
}

fn taps<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = bench(machine)?;
    let tokens = prompt(2, 6, machine.scale().vocabulary);
    let layers = bench.limits.layers;
    // Odd rows want all, and those after them one.
    let outputs = |position: usize| Outputs {
        taps: if position % 2 == 1 { 0..layers + 1 } else { 1..2 },
        ..Outputs::default()
    };
    let all = bench.run(Weights::Full, prompt_rows(0, &tokens, outputs))?;
    let none = bench.run(Weights::Full, prompt_rows(0, &tokens, |_| Outputs::default()))?;
    ensure!(none.iter().all(|result| result.taps.is_empty()), "taps that nobody wanted");
    let one = |position: usize| Outputs {
        taps: if position % 2 == 1 { 1..2 } else { 0..0 },
        ..Outputs::default()
    };
    let one = bench.run(Weights::Full, prompt_rows(0, &tokens, one))?;
    let hidden = all[0].taps.len();
    for (position, (all, one)) in all.iter().zip(&one).enumerate().skip(1).step_by(2) {
        let mut layers_seen: Vec<_> = all.taps.chunks(hidden).collect();
        ensure!(one.taps == layers_seen[1], "position {position}: another tap, other numbers");
        // Exactness looks at what they hold; here, that each layer adds to it.
        layers_seen.dedup();
        let different = layers_seen.len();
        ensure!(
            different == usize::from(layers) + 1 && all.taps.len() == different * hidden,
            "position {position}: {different} taps differ after {layers} layers"
        );
    }
    Ok(())
}

/// Ways to choose, one of each kind and all together.
fn ways(vocabulary: usize) -> Vec<(&'static str, Choose)> {
    let way = |sampling: Sampling| Choose { sampling: Arc::new(sampling), ..greedy(0) };
    let plain = Sampling { temperature: 0.8, seed: 9, ..Sampling::GREEDY };
    let even = TokenMask(vec![0x5555_5555_5555_5555_u64; vocabulary.div_ceil(64)].into());
    let penalties = Sampling {
        repetition_penalty: 1.3,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        ..plain.clone()
    };
    let all = Sampling {
        top_k: 50,
        top_p: 0.95,
        min_p: 0.01,
        bias: vec![(5, 1.0), (17, -2.0)],
        ..penalties.clone()
    };
    let banned: Arc<[Token]> = Arc::new([0, 2, 4]);
    vec![
        ("greedy", way(Sampling::GREEDY)),
        ("temperature", way(plain.clone())),
        ("high temperature", way(Sampling { temperature: 1.9, seed: u64::MAX, ..plain.clone() })),
        ("top-k", way(Sampling { top_k: 3, ..plain.clone() })),
        ("top-k of one", way(Sampling { top_k: 1, ..plain.clone() })),
        ("top-p", way(Sampling { top_p: 0.5, ..plain.clone() })),
        ("min-p", way(Sampling { min_p: 0.2, ..plain.clone() })),
        ("bias", way(Sampling { bias: vec![(3, 2.5), (9, -100.0)], ..plain.clone() })),
        ("penalties", way(penalties)),
        ("greedy penalties", way(Sampling { repetition_penalty: 1.5, ..Sampling::GREEDY })),
        ("bans", Choose { banned: Arc::clone(&banned), ..way(plain.clone()) }),
        ("a mask", Choose { mask: Some(even.clone()), ..way(plain) }),
        ("all", Choose { banned, mask: Some(even), ..way(all) }),
    ]
}

fn sampled<M: Machine>(machine: &M) -> Result<()> {
    let vocabulary = machine.scale().vocabulary;
    let len = if machine.scale().exhaustive { 40 } else { 10 };
    let tokens = prompt(3, len, vocabulary);
    let mut bench = bench(machine)?;
    let greedy = bench.feed(Weights::Full, 0, &tokens, len)?;
    for (name, way) in ways(vocabulary) {
        let row = |(position, &token): (usize, &Token)| {
            let history = History { tokens: tokens[..=position].into(), prompt: len / 2 };
            let choose = Choose { history, position: position as u32 + 1, ..way.clone() };
            row(0, position, token, Outputs { choose: Some(choose), ..everything(position) })
        };
        let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
        let found = bench.run(Weights::Full, rows.clone())?;
        let mut changed = 0;
        for (position, (row, found)) in rows.iter().zip(&found).enumerate() {
            against_contract(row, found, greedy[position].statistics)
                .with_context(|| format!("{name}, position {position}"))?;
            changed += usize::from(found.token != greedy[position].token);
        }
        ensure!(
            changed > 0 || name.contains("greedy") || name.contains("of one"),
            "{name} changed none of {len} tokens"
        );
    }
    Ok(())
}

/// Whether a result's choice is what the engine makes of its logits.
fn against_contract(row: &Row, found: &RowResult, of_logits: Statistics) -> Result<()> {
    let choose = row.outputs.choose.as_ref().context("the row chooses")?;
    let choice = sampling::choose(
        logits_of(found)?,
        &choose.sampling,
        &choose.history,
        &choose.banned,
        choose.mask.as_ref(),
        choose.position,
        &mut Scratch::default(),
    );
    let (token, runner_up) = (found.token, found.runner_up);
    ensure!(token == Some(choice.token), "{token:?} was chosen, not {}", choice.token);
    let second = choice.runner_up;
    ensure!(runner_up == second, "the runner-up is {runner_up:?}, not {second:?}");
    // Logarithms differ in their last bits from machine to machine.
    near("the margin", found.statistics.margin, choice.margin, 1e-6 * (1.0 + choice.margin))?;
    let others = Statistics { margin: of_logits.margin, ..found.statistics };
    ensure!(others == of_logits, "the choice changed the statistics {of_logits:?} to {others:?}");
    let first = found.logprobs.first().map(|entry| entry.token);
    ensure!(first == token, "the first log-probability is that of {first:?}, not {token:?}");
    Ok(())
}

/// Biases, penalties and bans have no fixed size; a machine may have to make room, and what it had
/// prepared before must still work.
fn long_lists<M: Machine>(machine: &M) -> Result<()> {
    const ROWS: usize = 64;
    let vocabulary = machine.scale().vocabulary;
    let tokens = prompt(4, ROWS, vocabulary);
    let mut bench = bench(machine)?;
    let mut expected = Vec::new();
    for (position, &token) in tokens.iter().enumerate() {
        let row = generated(0, position, token, everything(position));
        expected.push(bench.one(Weights::Draft, row)?);
    }
    let bias = |strength: f32| -> Vec<(Token, f32)> {
        let bias = |token: Token| (token, (token % 7) as f32 * strength);
        (0..vocabulary as Token).map(bias).collect()
    };
    let rows = |strength: f32, count: usize| -> Vec<Row> {
        let sampling = Arc::new(Sampling {
            temperature: 0.7,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            bias: bias(strength),
            seed: 4,
            ..Sampling::GREEDY
        });
        let history: Arc<[Token]> = (0..vocabulary as Token).chain(0..9).collect();
        let row = |position: usize| {
            let choose = Choose {
                sampling: Arc::clone(&sampling),
                history: History { tokens: Arc::clone(&history), prompt: 5 },
                ..greedy(position)
            };
            let outputs = Outputs { choose: Some(choose), ..decisions(position) };
            generated(0, position, tokens[position], outputs)
        };
        (ROWS - count..ROWS).map(row).collect()
    };
    for (strength, count) in [(0.1, 2), (0.2, 2), (0.3, 2), (0.4, ROWS), (0.5, 2), (0.6, 2)] {
        let rows = rows(strength, count);
        let found = bench.run(Weights::Draft, rows.clone())?;
        for (row, found) in rows.iter().zip(found) {
            let plain = &expected[row.position as usize];
            let found = RowResult { logits: plain.logits.clone(), ..found };
            against_contract(row, &found, plain.statistics).with_context(|| {
                format!("{count} rows, bias {strength}, position {}", row.position)
            })?;
        }
    }
    Ok(())
}

fn gates<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = bench(machine)?;
    let token = prompt(4, 1, machine.scale().vocabulary)[0];
    let all = bench.one(Weights::Full, generated(0, 0, token, everything(0)))?;
    for detector in DETECTORS {
        let score = detector.score(&all.statistics);
        for (threshold, suspect) in [(score, false), (score - 1e-3, true), (f32::INFINITY, false)] {
            for statistics in [false, true] {
                let choose = Some(greedy(0));
                let outputs = Outputs { choose, statistics, ..Outputs::default() };
                let gate = Some(Gate { detector, threshold });
                let row = Row { gate, ..generated(0, 0, token, outputs) };
                let found = bench.one(Weights::Full, row)?.suspect;
                ensure!(
                    found == suspect,
                    "{detector} score {score} against {threshold}, statistics {statistics}: {found}"
                );
            }
        }
    }
    Ok(())
}

fn not_finite<M: Machine>(machine: &M) -> Result<()> {
    let spec = small_spec(Architecture::Mistral, machine.scale().vocabulary);
    let model = TinyModel {
        draft: None,
        oddity: Some(Oddity::Overflows),
        ..TinyModel::new(spec, Precision::F32, Format::Int8)
    };
    let mut bench = Bench::new(machine, &model)?;
    let bad = TinyModel::OVERFLOWING;
    // With logits, and without, as the steps of an engine are.
    for outputs in [everything(0), decisions(0)] {
        let row = |slot: usize, token: Token| generated(slot, 0, token, outputs.clone());
        let gate = Some(Gate { detector: Detector::Margin, threshold: f32::INFINITY });
        let rows = vec![row(0, 5), Row { gate, ..row(1, bad) }, row(2, 6)];
        let alone = [bench.one(Weights::Full, row(0, 5))?, bench.one(Weights::Full, row(2, 6))?];
        for time in 1..=3 {
            let what = || format!("logits {}, time {time}", outputs.logits);
            let found = bench.run(Weights::Full, rows.clone())?;
            let spoiled = &found[1];
            ensure!(
                spoiled.suspect
                    && spoiled.token.is_none()
                    && spoiled.logprobs.is_empty()
                    && spoiled.statistics == Statistics::NOT_FINITE,
                "{}: a row that is not finite gave {spoiled:?}",
                what()
            );
            for (expected, found) in alone.iter().zip([&found[0], &found[2]]) {
                same_row(expected, found).with_context(what)?;
                ensure!(found.token.is_some() && !found.suspect, "{}: {found:?}", what());
            }
        }
    }
    Ok(())
}
