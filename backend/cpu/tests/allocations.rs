//! A pass takes no memory but that of its answers.

use std::sync::Arc;

use dhat::{HeapStats, Profiler};
use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::{Outputs, Weights};
use rewind_executor_suite::bench::{Bench, greedy, prompt, prompt_rows};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format, Group};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Blocks that a pass over `rows` prompt rows takes, from when it is waited for.
fn blocks(bench: &mut Bench<CpuExecutor>, weights: Weights, rows: usize) -> u64 {
    let outputs = |position| Outputs {
        choose: Some(greedy(position)),
        statistics: true,
        ..Outputs::default()
    };
    let rows = prompt_rows(0, &prompt(1, rows, 1100), outputs);
    let ticket = bench.submit(weights, rows).expect("a good pass");
    let before = HeapStats::get().total_blocks;
    let results = bench.wait(ticket).expect("a good pass");
    let after = HeapStats::get().total_blocks;
    assert!(results.iter().all(|result| result.token.is_some()));
    after - before
}

#[test]
fn a_pass_takes_memory_for_its_answers_only() {
    let _profiler = Profiler::builder().testing().build();
    let spec = small_spec(Architecture::Llama, 1100);
    let model = TinyModel::new(spec, Precision::F16, Format::Int4Group(Group::G32));
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: true,
        threads: 1,
        isa: Isa::detect(),
    };
    let loaded = CpuModel::load(&model.spec, model.source(), options, |_| ()).expect("good");
    let config =
        Config { threads: 2, slots: 2, rows: 64, pages: 40, page_tokens: 12, positions: 200 };
    let mut bench = Bench::of(CpuExecutor::new(Arc::new(loaded), config).expect("good"));
    for weights in [Weights::Draft, Weights::Full] {
        blocks(&mut bench, weights, 64);
        for rows in [1, 2, 40, 64] {
            assert_eq!(blocks(&mut bench, weights, rows), 1, "{rows} rows, {weights:?}");
        }
    }
}
