//! Passes run in the order of submission, however many are in flight.

use anyhow::{Context, Result, bail, ensure};
use rewind_checkpoint::Architecture;
use rewind_engine::{Executor, ExecutorError, Input, Outputs, Row, Slot, Ticket, Token, Weights};
use rewind_formats::{Format, Group};

use crate::bench::{Bench, decisions, everything, generated, prompt, prompt_rows, row, same_row};
use crate::model::{Precision, TinyModel, small_spec};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("order: passes in flight, waited for in any order", in_flight),
        Case::new("order: draft and shadow passes take turns", turns),
        Case::new("order: a row takes the token that an earlier pass chose", last_of),
        Case::new("order: a slot that chose nothing has no last token", no_last),
        Case::new("order: a ticket is good for once", tickets),
    ]
}

fn bench<M: Machine>(machine: &M) -> Result<Bench<M::Executor>> {
    let spec = small_spec(Architecture::Llama, machine.scale().vocabulary);
    let format = Format::Int4Group(Group::G32);
    Bench::new(machine, &TinyModel::new(spec, Precision::F16, format))
}

fn in_flight<M: Machine>(machine: &M) -> Result<()> {
    const LEN: usize = 12;
    let tokens = prompt(7, LEN, machine.scale().vocabulary);
    let mut bench = bench(machine)?;
    let steps = |slot: usize| {
        let step = move |(position, &token): (usize, &Token)| {
            generated(slot, position, token, everything(position))
        };
        tokens.iter().enumerate().map(step)
    };
    let mut expected = Vec::new();
    for row in steps(0) {
        expected.push(bench.one(Weights::Full, row)?);
    }
    for (slot, stride) in [(1, LEN - 1), (2, 5), (3, 1)] {
        let mut tickets = Vec::new();
        for row in steps(slot) {
            tickets.push(Some(bench.submit(Weights::Full, vec![row])?));
        }
        // No stride shares a factor with the length, so each comes up once.
        for position in (1..=LEN).map(|i| i * stride % LEN) {
            let ticket = tickets[position].take().context("each is waited for once")?;
            let found = bench.wait(ticket)?;
            same_row(&expected[position], &found[0])
                .with_context(|| format!("position {position}, every {stride}th waited for"))?;
        }
    }
    Ok(())
}

/// As an engine runs them: both are queued before either is waited for.
fn turns<M: Machine>(machine: &M) -> Result<()> {
    let tokens = prompt(8, 16, machine.scale().vocabulary);
    let step = |slot: usize, position: usize| {
        vec![generated(slot, position, tokens[position], decisions(position))]
    };
    let mut alone = bench(machine)?;
    let mut together = bench(machine)?;
    for bench in [&mut alone, &mut together] {
        bench.prefill(Weights::Draft, 0, &tokens[..8])?;
        bench.prefill(Weights::Full, 1, &tokens[..8])?;
    }
    for position in 8..16 {
        let draft = together.submit(Weights::Draft, step(0, position))?;
        let full = together.submit(Weights::Full, step(1, position))?;
        let (draft, full) = (together.wait(draft)?, together.wait(full)?);
        let what = || format!("position {position}");
        same_row(&alone.run(Weights::Draft, step(0, position))?[0], &draft[0])
            .with_context(what)?;
        same_row(&alone.run(Weights::Full, step(1, position))?[0], &full[0]).with_context(what)?;
    }
    Ok(())
}

fn last_of<M: Machine>(machine: &M) -> Result<()> {
    const STEPS: usize = 6;
    const CROSSING: usize = 2;
    let vocabulary = machine.scale().vocabulary;
    let mut bench = bench(machine)?;
    // Two sequences, in the slots 0 and 1, and again in 2 and 3.
    let mut last = Vec::new();
    for slot in 0..4 {
        let mut rows = prompt_rows(slot, &prompt(slot % 2, 4, vocabulary), |_| Outputs::default());
        rows[3].outputs = decisions(3);
        let found = bench.run(Weights::Draft, rows)?.pop().context("four rows")?;
        last.push(found.token.context("a token was wanted")?);
    }
    ensure!(last[0] != last[1], "both sequences choose {}, so nothing is tested", last[0]);
    // All steps are submitted before the host knows any token. In one of them the second sequence
    // takes the token of the first, which its own pass is about to replace.
    let from = |step: usize| if step == CROSSING { 0 } else { 1 };
    let row = |slot: usize, step: usize, input: Input| Row {
        input,
        ..generated(slot, 4 + step, 0, decisions(4 + step))
    };
    let mut tickets = Vec::new();
    for step in 0..STEPS {
        let last_of = |slot: usize| Input::LastOf(Slot(slot as u32));
        let rows = vec![row(0, step, last_of(0)), row(1, step, last_of(from(step)))];
        tickets.push(bench.submit(Weights::Draft, rows)?);
    }
    let mut found = Vec::new();
    for ticket in tickets {
        found.push(bench.wait(ticket)?);
    }
    // The same with tokens that the host knows.
    for (step, found) in found.iter().enumerate() {
        let inputs = [last[0], last[from(step)]];
        for (sequence, input) in inputs.into_iter().enumerate() {
            let row = row(2 + sequence, step, Input::Token(input));
            let expected = bench.one(Weights::Draft, row)?;
            same_row(&expected, &found[sequence])
                .with_context(|| format!("sequence {sequence}, step {step}"))?;
            last[sequence] = expected.token.context("a token was wanted")?;
        }
    }
    Ok(())
}

fn no_last<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = bench(machine)?;
    let input = Input::LastOf(Slot(6));
    let pass = bench.pass(Weights::Draft, vec![Row { input, ..row(1, 0, 0, Outputs::default()) }]);
    // A machine may notice when the pass is submitted or when it runs.
    match bench.executor.submit(pass).and_then(|ticket| bench.executor.wait(ticket)) {
        Err(ExecutorError::InvalidPass(message)) if message.contains("slot 6") => Ok(()),
        other => bail!("a row with the last token of a slot that has none gave {other:?}"),
    }
}

fn tickets<M: Machine>(machine: &M) -> Result<()> {
    let mut bench = bench(machine)?;
    let ticket = bench.submit(Weights::Draft, vec![row(0, 0, 1, decisions(0))])?;
    let Ticket(number) = ticket;
    bench.wait(ticket)?;
    for number in [number, number + 77] {
        match bench.executor.wait(Ticket(number)) {
            Err(ExecutorError::InvalidPass(_)) => {}
            other => bail!("waiting for ticket {number}, which nobody holds, gave {other:?}"),
        }
    }
    Ok(())
}
