//! A row's bits do not depend on what runs with it.

use std::sync::Arc;

use proptest::prelude::*;
use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuModel, Isa};
use rewind_engine::{Executor, PageCopy, Pass, RowResult, Weights};

use crate::tiny::{self, Precision};

const BOTH: [Weights; 2] = [Weights::Draft, Weights::Full];

fn model() -> Arc<CpuModel> {
    tiny::model(&tiny::spec(Architecture::Qwen2), Precision::F16, "int4-g32")
}

#[test]
fn chunks_threads_and_instruction_sets_change_nothing() {
    let tokens = tiny::prompt(3, 290);
    for draft in ["int8", "int4-g64", "bf16"] {
        let model = tiny::model(&tiny::spec(Architecture::Llama), Precision::F16, draft);
        for weights in BOTH {
            let mut whole = tiny::executor(&model, tiny::config());
            let whole = tiny::feed(&mut whole, weights, 0, &tokens, 290);
            let cases = [
                (Config { threads: 2, ..tiny::config() }, 290),
                (Config { threads: 5, ..tiny::config() }, 97),
                (Config { threads: 3, ..tiny::config() }, 1),
                (Config { isa: Isa::portable(), ..tiny::config() }, 33),
                (Config { page_tokens: 64, ..tiny::config() }, 2),
            ];
            for (config, chunk) in cases {
                // The portable form is slow; a prefix is enough of it.
                let some = if config.isa.name() == "portable" { 140 } else { 290 };
                let mut executor = tiny::executor(&model, config);
                let found = tiny::feed(&mut executor, weights, 1, &tokens[..some], chunk);
                let what = format!("{draft} {weights:?} {config:?} chunks of {chunk}");
                tiny::assert_same(&whole[..some], &found, &what);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Sequences that advance by random numbers of rows, in random company, against each alone.
    #[test]
    fn ragged_batches_give_what_each_sequence_gives_alone(
        steps in prop::collection::vec(prop::collection::vec(0_usize..9, tiny::SLOTS), 1..12),
        threads in 1_usize..4,
        full: bool,
    ) {
        let model = model();
        let weights = if full { Weights::Full } else { Weights::Draft };
        let mut executor = tiny::executor(&model, Config { threads, ..tiny::config() });
        let mut lengths = [0; tiny::SLOTS];
        let mut found: [Vec<RowResult>; tiny::SLOTS] = Default::default();
        for step in &steps {
            let mut rows = Vec::new();
            for (slot, &count) in step.iter().enumerate() {
                let tokens = tiny::prompt(slot as u64, lengths[slot] + count);
                for (position, &token) in tokens.iter().enumerate().skip(lengths[slot]) {
                    rows.push(tiny::row(slot, position, token, tiny::everything(position)));
                }
                lengths[slot] += count;
            }
            let owners: Vec<_> = rows.iter().map(|row| row.slot.0 as usize).collect();
            let results = tiny::run(&mut executor, tiny::pass(weights, rows)).expect("a good pass");
            owners.into_iter().zip(results).for_each(|(slot, result)| found[slot].push(result));
        }
        let mut alone = tiny::executor(&model, tiny::config());
        for (slot, found) in found.iter().enumerate() {
            let tokens = tiny::prompt(slot as u64, lengths[slot]);
            let expected = tiny::feed(&mut alone, weights, slot, &tokens, 1);
            tiny::assert_same(&expected, found, &format!("slot {slot}"));
        }
    }
}

#[test]
fn verification_overwrites_what_the_draft_wrote() {
    let model = model();
    let tokens = tiny::prompt(4, 30);
    let mut clean = tiny::executor(&model, tiny::config());
    let clean = tiny::feed(&mut clean, Weights::Full, 0, &tokens, 30);

    let mut executor = tiny::executor(&model, tiny::config());
    tiny::feed(&mut executor, Weights::Full, 0, &tokens[..20], 20);
    let draft = tiny::run(&mut executor, window(Weights::Draft, &tokens)).expect("a good pass");
    let verified = tiny::run(&mut executor, window(Weights::Full, &tokens)).expect("a good pass");
    tiny::assert_same(&clean[20..], &verified, "verified");
    assert_ne!(
        tiny::bits(&draft[9]),
        tiny::bits(&clean[29]),
        "the draft must differ for this test"
    );
}

/// Positions 20 .. 30 in one pass.
fn window(weights: Weights, tokens: &[u32]) -> Pass {
    let row = |position| tiny::row(0, position, tokens[position], tiny::everything(position));
    tiny::pass(weights, (20..30).map(row).collect())
}

#[test]
fn what_lies_behind_a_position_is_never_read() {
    let model = model();
    let tokens = tiny::prompt(5, 40);
    let mut executor = tiny::executor(&model, tiny::config());
    let first = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 40);
    // Entries 10 .. 40 are stale now.
    let again = tiny::feed(&mut executor, Weights::Full, 0, &tokens[..10], 3);
    tiny::assert_same(&first[..10], &again, "again");
}

#[test]
fn copied_pages_hold_the_same_entries_and_part_ways() {
    let model = model();
    let tokens = tiny::prompt(6, 30);
    let mut executor = tiny::executor(&model, tiny::config());
    let expected = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 30);

    // Slot 1 continues slot 0's sequence from position 24 on copies of its pages.
    let copies = |pass: &mut Pass| {
        let (from, to) = (tiny::table(0).pages, tiny::table(1).pages);
        let copy = |i| PageCopy { from: from[i], to: to[i] };
        pass.copies = (0..3).map(copy).collect();
    };
    let row = |position: usize, token| tiny::row(1, position, token, tiny::everything(position));
    let mut fork = tiny::pass(Weights::Full, (24..30).map(|p| row(p, tokens[p])).collect());
    copies(&mut fork);
    let found = tiny::run(&mut executor, fork).expect("a good pass");
    tiny::assert_same(&expected[24..], &found, "a fork");

    // Other tokens in the copy leave the original alone.
    let other = tiny::pass(Weights::Full, (24..30).map(|p| row(p, tokens[p] ^ 1)).collect());
    tiny::run(&mut executor, other).expect("a good pass");
    let last = tiny::row(0, 29, tokens[29], tiny::everything(29));
    let found =
        tiny::run(&mut executor, tiny::pass(Weights::Full, vec![last])).expect("a good pass");
    tiny::assert_same(&expected[29..], &found, "the original");
}

#[test]
fn passes_run_in_order_of_submission() {
    let model = model();
    let tokens = tiny::prompt(7, 12);
    let mut executor = tiny::executor(&model, tiny::config());
    let expected = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 12);
    let tickets: Vec<_> = (0..12)
        .map(|p| tiny::row(1, p, tokens[p], tiny::everything(p)))
        .map(|row| executor.submit(tiny::pass(Weights::Full, vec![row])).expect("a good pass"))
        .collect();
    // Waiting for the last first runs them all.
    for (position, ticket) in tickets.into_iter().enumerate().rev() {
        let found = executor.wait(ticket).expect("a good pass");
        tiny::assert_same(&expected[position..=position], &found, "queued");
    }
}
