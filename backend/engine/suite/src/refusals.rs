//! Passes that break a rule are refused whole, with a message that says which.

use anyhow::{Result, bail, ensure};
use rewind_checkpoint::Architecture;
use rewind_engine::{
    Adapter, Executor, ExecutorError, Input, Outputs, PageCopy, PageId, Pass, Slot, TokenMask,
    Weights,
};
use rewind_formats::Format;
use rewind_monitor::{Detector, Gate};

use crate::bench::{Bench, DETECTORS, everything, row, same};
use crate::model::{Precision, TinyModel, small_spec};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("refusals: invalid passes name their defect", invalid),
        Case::new("refusals: weights that are not loaded cannot be run", missing_weights),
    ]
}

fn model<M: Machine>(machine: &M) -> TinyModel {
    let spec = small_spec(Architecture::Llama, machine.scale().vocabulary);
    TinyModel::new(spec, Precision::F16, Format::Int8)
}

fn invalid<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = Bench::new(machine, &model(machine))?;
    let rows = || {
        let row = |slot, position| row(slot, position, 1, everything(position));
        vec![row(0, 0), row(0, 1), row(1, 0)]
    };
    let good = bench.pass(Weights::Draft, rows());
    let expected = bench.run(Weights::Draft, rows())?;
    for (message, spoil) in spoilers(&bench) {
        let mut pass = good.clone();
        spoil(&mut pass);
        match bench.executor.submit(pass) {
            Err(ExecutorError::InvalidPass(found)) => {
                ensure!(found.contains(&message), "{found:?} does not say {message:?}");
            }
            other => bail!("a pass that should be refused for {message:?} gave {other:?}"),
        }
    }
    // Nothing of them was done.
    same(&expected, &bench.run(Weights::Draft, rows())?, "the good pass")?;
    let empty = bench.run(Weights::Draft, Vec::new())?;
    ensure!(empty.is_empty(), "a pass without rows gave {empty:?}");
    Ok(())
}

/// What makes a good pass of rows (0, 0), (0, 1), (1, 0) a bad one.
type Spoil = Box<dyn Fn(&mut Pass)>;

/// Defects with what the refusal must say.
fn spoilers<E: Executor>(bench: &Bench<E>) -> Vec<(String, Spoil)> {
    let limits = bench.limits.clone();
    let (pages, slots, page_tokens) = (limits.pages, limits.slots, limits.page_tokens);
    let (rows, positions, vocabulary) = (limits.rows, limits.positions, limits.vocabulary);
    let layers = limits.layers;
    let table = bench.table(0);
    let gate = |detector| Some(Gate { detector, threshold: 1.0 });
    let copy = |from, to| PageCopy { from: PageId(from), to: PageId(to) };
    let mut all: Vec<(String, Spoil)> = Vec::new();
    let mut add = |message: String, spoil: Spoil| all.push((message, spoil));

    add("layers".into(), Box::new(|p| p.layers = 0..1));
    add(
        format!("at most {rows}"),
        Box::new(move |p| p.rows = vec![p.rows[0].clone(); rows as usize + 1]),
    );
    add(format!("copy of page {pages}"), Box::new(move |p| p.copies = vec![copy(3, pages)]));
    add("copy of page 99999".into(), Box::new(move |p| p.copies = vec![copy(99_999, 1)]));
    add(
        format!("page {pages} in the table of slot 0"),
        Box::new(move |p| p.tables[0].pages = [PageId(pages)].into()),
    );
    add("two page tables for slot 0".into(), Box::new(move |p| p.tables.push(table.clone())));
    add(format!("slot {slots}"), Box::new(move |p| p.tables[0].slot = Slot(slots)));
    add(format!("row 2: slot {slots}"), Box::new(move |p| p.rows[2].slot = Slot(slots)));
    add("slot 1 has no page table".into(), Box::new(|p| p.tables.truncate(1)));
    add(format!("row 1: position {positions}"), Box::new(move |p| p.rows[1].position = positions));
    add(
        "needs 2 pages; its table has 1".into(),
        Box::new(move |p| {
            p.tables[0].pages = [PageId(1)].into();
            p.rows[1].position = page_tokens;
        }),
    );
    add(
        format!("token {vocabulary}"),
        Box::new(move |p| p.rows[0].input = Input::Token(vocabulary)),
    );
    add(
        format!("row 0: slot {slots}"),
        Box::new(move |p| p.rows[0].input = Input::LastOf(Slot(slots))),
    );
    add("hidden states".into(), Box::new(|p| p.rows[0].input = Input::Hidden(Slot(0))));
    add("adapter 4".into(), Box::new(|p| p.rows[0].adapter = Some(Adapter(4))));
    add("21 log-probabilities".into(), Box::new(|p| p.rows[0].outputs.logprobs = Some(21)));
    add(
        format!("tap after {}", layers + 1),
        Box::new(move |p| p.rows[0].outputs.taps = 0..layers + 2),
    );
    add(
        "wants nothing".into(),
        Box::new(move |p| {
            p.rows[0].outputs = Outputs::default();
            p.rows[0].gate = gate(Detector::Entropy);
        }),
    );
    for detector in DETECTORS.into_iter().filter(|detector| detector.reads_margin()) {
        add(
            format!("a {detector} gate on a row that chooses no token"),
            Box::new(move |p| {
                p.rows[0].outputs.choose = None;
                p.rows[0].gate = gate(detector);
            }),
        );
    }
    add(
        "mask of 2 words".into(),
        Box::new(|p| {
            if let Some(choose) = &mut p.rows[0].outputs.choose {
                choose.mask = Some(TokenMask(vec![0; 2].into()));
            }
        }),
    );
    add("position 0 follows position 0".into(), Box::new(|p| p.rows[1].position = 0));
    add("no neighbours".into(), Box::new(|p| p.rows.swap(1, 2)));
    all
}

fn missing_weights<M: Machine>(machine: &M) -> Result<()> {
    let both = model(machine);
    let cases = [
        (TinyModel { draft: None, ..both.clone() }, Weights::Draft, Weights::Full, "draft"),
        (TinyModel { shadow: false, ..both }, Weights::Full, Weights::Draft, "shadow"),
    ];
    for (model, missing, there, name) in cases {
        let mut bench = Bench::new(machine, &model)?;
        let identity = bench.executor.identity(missing);
        ensure!(identity == "none", "the identity of weights that are not there is {identity:?}");
        let identity = bench.executor.identity(there);
        ensure!(identity.contains("activations"), "the identity {identity:?} names no activations");
        let pass = bench.pass(missing, vec![row(0, 0, 1, everything(0))]);
        let expected = ExecutorError::InvalidPass(format!("this model has no {name} weights"));
        match bench.executor.submit(pass) {
            Err(error) if error == expected => {}
            other => bail!("a pass without {name} weights gave {other:?}"),
        }
        bench.one(there, row(0, 0, 1, everything(0)))?;
    }
    Ok(())
}
