//! Workers share the buffers of a pass. `cargo xtask bench miri` watches this test for two threads at
//! the same bytes.

use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuExecutor};
use rewind_engine::{RowResult, Weights};
use rewind_executor_suite::bench::{Bench, everything, prompt, prompt_rows, same};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{Format, Group};

use crate::loading::{config, load};

/// Passes of one row and of several, with both copies of the weights.
fn answers(threads: usize) -> Vec<RowResult> {
    let format = Format::Int4Group(Group::G32);
    let model = TinyModel::new(small_spec(Architecture::Qwen2, 1100), Precision::F16, format);
    let executor = CpuExecutor::new(load(&model).expect("good"), Config { threads, ..config() });
    let mut bench = Bench::of(executor.expect("good"));
    let mut results = Vec::new();
    for weights in [Weights::Draft, Weights::Full] {
        let mut rows = prompt_rows(0, &prompt(1, 5, 1100), everything);
        rows.extend(prompt_rows(1, &prompt(2, 2, 1100), everything));
        let last = rows.pop().expect("two prompts");
        rows[1].outputs.tap = Some(1);
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
