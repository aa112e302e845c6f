//! Workers share the buffers of a pass. `cargo xtask bench miri` watches this test for two threads at
//! the same bytes.

use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuExecutor};
use rewind_engine::{RowResult, Weights};
use rewind_executor_suite::bench::{Bench, everything, prompt, prompt_rows, same};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{Format, Group};

use crate::loading::{config, load};

/// Tokens of the model. Miri, which looks for races here, takes a thousand times as long for everything.
const VOCABULARY: usize = if cfg!(miri) { 70 } else { 1100 };

/// Tokens of the longer prompt.
const TOKENS: usize = if cfg!(miri) { 2 } else { 5 };

fn sizes(threads: usize) -> Config {
    let sizes = Config { threads, ..config() };
    if cfg!(miri) { Config { slots: 2, rows: 4, pages: 4, positions: 24, ..sizes } } else { sizes }
}

/// Passes of one row and of several, with both copies of the weights.
fn answers(threads: usize) -> Vec<RowResult> {
    let format = Format::Int4Group(Group::G32);
    let model = TinyModel::new(small_spec(Architecture::Qwen2, VOCABULARY), Precision::F16, format);
    let executor = CpuExecutor::new(load(&model).expect("good"), sizes(threads));
    let mut bench = Bench::of(executor.expect("good"));
    let mut results = Vec::new();
    for weights in [Weights::Draft, Weights::Full] {
        let mut rows = prompt_rows(0, &prompt(1, TOKENS, VOCABULARY), everything);
        rows.extend(prompt_rows(1, &prompt(2, 2, VOCABULARY), everything));
        let last = rows.pop().expect("two prompts");
        rows[1].outputs.taps = 0..3;
        results.extend(bench.run(weights, rows).expect("a good pass"));
        results.extend(bench.run(weights, vec![last]).expect("a good pass"));
    }
    results
}

#[test]
fn three_threads_answer_as_one() {
    let (one, three) = (answers(1), answers(3));
    same(&one, &three, "threads").expect("the same bits");
}
