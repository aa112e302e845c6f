//! A row's bits depend on its class and inputs: on nothing else that runs, ran or stands by.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rewind_checkpoint::Architecture;
use rewind_engine::{Executor, Outputs, PageCopy, Row, RowClass, RowResult, Token, Weights};
use rewind_formats::{Format, Group, Mixture};

use crate::bench::{
    Bench, SLOTS, decisions, everything, generated, prompt, prompt_rows, row, same, same_row,
};
use crate::model::{Precision, TinyModel, mixtures, small_spec};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("invariance: chunks change nothing", chunks),
        Case::new("invariance: the machine's set-up changes nothing", siblings),
        Case::new("invariance: a generated row among any number of others", company),
        Case::new("invariance: ragged batches give what each sequence gives alone", ragged),
        Case::new("invariance: verification overwrites what the draft wrote", verification),
        Case::new("invariance: nothing behind a position is read", stale),
        Case::new("invariance: copied pages part ways", copies),
    ]
}

const BOTH: [Weights; 2] = [Weights::Draft, Weights::Full];

fn model<M: Machine>(machine: &M) -> TinyModel {
    let spec = small_spec(Architecture::Qwen2, machine.scale().vocabulary);
    TinyModel::new(spec, Precision::F16, Format::Int4Group(Group::G32))
}

/// A model for each kind of draft: by row, by group, of floats, of several.
fn kinds<M: Machine>(machine: &M) -> Vec<TinyModel> {
    let spec = small_spec(Architecture::Llama, machine.scale().vocabulary);
    let formats = [
        Format::Int4Group(Group::G64),
        Format::Int6Group(Group::G32),
        Format::Int4Affine(Group::G128),
        Format::Nf4,
        Format::Fp8,
        Format::Int8,
        Format::Bf16,
    ];
    let mut drafts: Vec<Mixture> = formats.map(Mixture::from).to_vec();
    drafts.extend(mixtures(spec.layers));
    let some = if machine.scale().exhaustive { &drafts[..] } else { &drafts[..1] };
    some.iter().map(|draft| TinyModel::new(spec.clone(), Precision::F16, draft.clone())).collect()
}

fn describe(model: &TinyModel, weights: Weights) -> String {
    match (weights, &model.draft) {
        (Weights::Draft, Some(formats)) => format!("{formats} draft"),
        _ => "shadow".to_owned(),
    }
}

fn chunks<M: Machine>(machine: &M) -> Result<()> {
    let all = machine.scale().prompt;
    let tokens = prompt(3, all, machine.scale().vocabulary);
    for model in kinds(machine) {
        let mut bench = Bench::new(machine, &model)?;
        for weights in BOTH {
            let whole = bench.feed(weights, 0, &tokens, all)?;
            // Few rows at a time for a part of it, which is what takes long.
            for (slot, chunk, len) in
                [(1, all / 3, all), (2, 33, all), (3, 2, all / 4), (4, 1, all / 5)]
            {
                let found = bench.feed(weights, slot, &tokens[..len], chunk)?;
                let what = format!("{}, chunks of {chunk}", describe(&model, weights));
                same(&whole[..len], &found, &what)?;
            }
        }
    }
    Ok(())
}

fn siblings<M: Machine>(machine: &M) -> Result<()> {
    let len = machine.scale().prompt / 3;
    let tokens = prompt(3, len + 4, machine.scale().vocabulary);
    for model in kinds(machine) {
        let run = |bench: &mut Bench<M::Executor>, weights, chunk| {
            let mut results = bench.feed(weights, 0, &tokens[..len], chunk)?;
            for (position, &token) in tokens.iter().enumerate().skip(len) {
                let row = generated(0, position, token, everything(position));
                results.push(bench.one(weights, row)?);
            }
            Ok::<_, anyhow::Error>(results)
        };
        for weights in BOTH {
            let expected = run(&mut Bench::new(machine, &model)?, weights, len)?;
            for ((name, sibling), chunk) in
                machine.siblings().iter().zip([len, 33, 7].iter().cycle())
            {
                let found = run(&mut Bench::new(sibling, &model)?, weights, *chunk)?;
                same(&expected, &found, &format!("{}, {name}", describe(&model, weights)))?;
            }
        }
    }
    Ok(())
}

/// Rows of a decode step or of verifications, from one to many, each shape three times: a machine may
/// run a shape plainly at first, record it, and replay the record from then on.
fn company<M: Machine>(machine: &M) -> Result<()> {
    const COUNTS: [usize; 7] = [1, 2, 3, 8, 16, 17, 64];
    let model = model(machine);
    let vocabulary = machine.scale().vocabulary;
    // Each sequence is at another position when it starts to generate.
    let start = |slot: usize| 3 + 5 * slot;
    // Sequences take turns, so that few rows are of many sequences and many are of all.
    let rows = |count: usize, outputs: fn(usize) -> Outputs| -> Vec<Row> {
        let of_slot = |slot: usize| {
            let end = start(slot) + (count + SLOTS - 1 - slot) / SLOTS;
            let tokens = prompt(slot, end, vocabulary);
            let row =
                move |position| generated(slot, position, tokens[position], outputs(position));
            (start(slot)..end).map(row)
        };
        (0..SLOTS).flat_map(of_slot).collect()
    };
    for weights in BOTH {
        let mut bench = Bench::new(machine, &model)?;
        for slot in 0..SLOTS {
            bench.prefill(weights, slot, &prompt(slot, start(slot), vocabulary))?;
        }
        let most = if machine.scale().exhaustive || weights == Weights::Draft { 64 } else { 17 };
        let mut alone = BTreeMap::new();
        for row in rows(most, everything) {
            alone.insert((row.slot, row.position), bench.one(weights, row)?);
        }
        let check = |rows: &[Row], found: &[RowResult]| {
            for (row, found) in rows.iter().zip(found) {
                let (slot, position) = (row.slot.0, row.position);
                let alone = &alone[&(row.slot, position)];
                let logits = alone.logits.clone().filter(|_| row.outputs.logits);
                let wanted = !row.outputs.taps.is_empty();
                let taps = if wanted { alone.taps.clone() } else { Vec::new() };
                same_row(&RowResult { logits, taps, ..alone.clone() }, found)
                    .with_context(|| format!("slot {slot}, position {position}"))?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let name = describe(&model, weights);
        for count in COUNTS.into_iter().filter(|&count| count <= most) {
            for time in 1..=3 {
                let rows = rows(count, decisions);
                let found = bench.run(weights, rows.clone())?;
                check(&rows, &found)
                    .with_context(|| format!("{name}, {count} rows, time {time}"))?;
            }
        }
        let rows = rows(most, everything);
        let found = bench.run(weights, rows.clone())?;
        check(&rows, &found).with_context(|| format!("{name}, {most} rows with logits"))?;
    }
    Ok(())
}

/// Sequences that advance by random numbers of rows, in random company, against each alone.
fn ragged<M: Machine>(machine: &M) -> Result<()> {
    let model = model(machine);
    // How many rows of each sequence, and whether they are generated.
    let step = prop::collection::vec((0_usize..9, any::<bool>()), SLOTS);
    let steps = prop::collection::vec(step, 1..if machine.scale().exhaustive { 12 } else { 4 });
    let config = Config {
        cases: machine.scale().passes,
        max_shrink_iters: 32,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(steps, any::<bool>()), |(steps, full)| {
            let weights = if full { Weights::Full } else { Weights::Draft };
            ragged_batches(machine, &model, weights, &steps)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow!("{error}"))
}

fn ragged_batches<M: Machine>(
    machine: &M,
    model: &TinyModel,
    weights: Weights,
    steps: &[Vec<(usize, bool)>],
) -> Result<()> {
    let vocabulary = machine.scale().vocabulary;
    let mut bench = Bench::new(machine, model)?;
    let mut sequences: [Vec<Row>; SLOTS] = Default::default();
    let mut found: [Vec<RowResult>; SLOTS] = Default::default();
    for step in steps {
        let mut rows = Vec::new();
        for (slot, &(count, generated)) in step.iter().enumerate() {
            let sequence = &mut sequences[slot];
            let first = sequence.len();
            let tokens = prompt(slot, first + count, vocabulary);
            let class = if generated { RowClass::Generated } else { RowClass::Prompt };
            let row = |position: usize| {
                let row = row(slot, position, tokens[position], everything(position));
                Row { class, ..row }
            };
            sequence.extend((first..first + count).map(row));
            rows.extend_from_slice(&sequence[first..]);
        }
        let owners: Vec<_> = rows.iter().map(|row| row.slot.0 as usize).collect();
        let results = bench.run(weights, rows)?;
        owners.into_iter().zip(results).for_each(|(slot, result)| found[slot].push(result));
    }
    let mut bench = Bench::new(machine, model)?;
    for (slot, (sequence, found)) in sequences.into_iter().zip(&found).enumerate() {
        for (position, (row, found)) in sequence.into_iter().zip(found).enumerate() {
            let alone = bench.one(weights, row)?;
            same_row(&alone, found)
                .with_context(|| format!("{weights:?}, slot {slot}, position {position}"))?;
        }
    }
    Ok(())
}

fn verification<M: Machine>(machine: &M) -> Result<()> {
    let tokens = prompt(4, 30, machine.scale().vocabulary);
    let window =
        || -> Vec<Row> { (20..30).map(|p| generated(0, p, tokens[p], everything(p))).collect() };
    let mut bench = Bench::new(machine, &model(machine))?;
    bench.prefill(Weights::Full, 0, &tokens[..20])?;
    let clean = bench.run(Weights::Full, window())?;

    let mut bench = Bench::new(machine, &model(machine))?;
    bench.prefill(Weights::Full, 0, &tokens[..20])?;
    let draft = bench.run(Weights::Draft, window())?;
    let verified = bench.run(Weights::Full, window())?;
    same(&clean, &verified, "verified")?;
    ensure!(same_row(&draft[9], &clean[9]).is_err(), "the draft does not differ from the shadow");
    Ok(())
}

fn stale<M: Machine>(machine: &M) -> Result<()> {
    let len = 40;
    let tokens = prompt(5, len, machine.scale().vocabulary);
    let mut bench = Bench::new(machine, &model(machine))?;
    let first = bench.feed(Weights::Full, 0, &tokens, len)?;
    // Entries 10 .. 40 are stale now.
    let again = bench.feed(Weights::Full, 0, &tokens[..10], 3)?;
    same(&first[..10], &again, "fed again")?;

    // A generated row among entries that are stale, and alone with those before it.
    let row = || generated(0, 10, tokens[0], everything(10));
    let among = bench.one(Weights::Full, row())?;
    let mut fresh = Bench::new(machine, &model(machine))?;
    fresh.prefill(Weights::Full, 0, &tokens[..10])?;
    same_row(&fresh.one(Weights::Full, row())?, &among).context("before stale entries")
}

fn copies<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = Bench::new(machine, &model(machine))?;
    let page = bench.limits.page_tokens as usize;
    // A fork in the middle of the second page.
    let (fork, len) = (page + page / 4, page + page / 2);
    let tokens = prompt(6, len, machine.scale().vocabulary);
    let expected = bench.feed(Weights::Full, 0, &tokens, len)?;

    let rows = |slot, tokens: &[Token]| prompt_rows(slot, tokens, everything).split_off(fork);
    let mut pass = bench.pass(Weights::Full, rows(1, &tokens));
    let (from, to) = (bench.table(0).pages, bench.table(1).pages);
    pass.copies = (0..2).map(|i| PageCopy { from: from[i], to: to[i] }).collect();
    let ticket = bench.executor.submit(pass)?;
    let found = bench.wait(ticket)?;
    same(&expected[fork..], &found, "a fork")?;

    // Other tokens in the copy leave the original alone.
    let other: Vec<Token> = tokens.iter().map(|token| token ^ 1).collect();
    bench.run(Weights::Full, rows(1, &other))?;
    let last = row(0, len - 1, tokens[len - 1], everything(len - 1));
    let found = bench.one(Weights::Full, last)?;
    same_row(&expected[len - 1], &found).context("the original")
}
