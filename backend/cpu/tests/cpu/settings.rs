//! Sizes that cannot be, and what a slot remembers.

use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuError, CpuExecutor};
use rewind_engine::{ExecutorError, Input, Outputs, Row, Slot, Weights};
use rewind_executor_suite::bench::{Bench, everything, row};
use rewind_executor_suite::{Oddity, TinyModel};

use crate::loading::{config, load, model};

#[test]
fn settings_out_of_range_are_refused() {
    let model = load(&model(Architecture::Llama)).expect("good");
    let good = config();
    let cases = [
        ("threads is 0", Config { threads: 0, ..good }),
        ("threads is 1025", Config { threads: 1025, ..good }),
        ("slots is 0", Config { slots: 0, ..good }),
        ("rows is 0", Config { rows: 0, ..good }),
        ("pages is 0", Config { pages: 0, ..good }),
        ("page_tokens is 0", Config { page_tokens: 0, ..good }),
        ("positions is 0", Config { positions: 0, ..good }),
        ("no memory for", Config { pages: u32::MAX as usize, page_tokens: 1 << 30, ..good }),
    ];
    for (message, config) in cases {
        let error = CpuExecutor::new(model.clone(), config).expect_err(message);
        assert!(error.to_string().contains(message), "{error} does not say {message:?}");
        assert!(matches!(error, CpuError::Setting { .. } | CpuError::KvMemory { .. }));
    }
}

/// A pass runs when it is waited for, so this executor can tell; others feed some token.
#[test]
fn a_row_that_is_not_finite_leaves_no_last_token() {
    let oddity = Some(Oddity::Overflows);
    let model = TinyModel { draft: None, oddity, ..model(Architecture::Mistral) };
    let model = load(&model).expect("finite weights");
    let mut bench = Bench::of(CpuExecutor::new(model, config()).expect("good"));
    let bad = row(1, 0, TinyModel::OVERFLOWING, everything(0));
    let found = bench.one(Weights::Full, bad).expect("a good pass");
    assert!(found.suspect && found.token.is_none(), "{found:?}");
    let input = Input::LastOf(Slot(1));
    let next = Row { input, ..row(1, 1, 0, Outputs::default()) };
    let error = bench.one(Weights::Full, next).expect_err("no last token");
    let error = error.downcast_ref::<ExecutorError>().expect("the executor's");
    assert!(
        matches!(error, ExecutorError::InvalidPass(what) if what.contains("slot 1")),
        "{error}"
    );
}
