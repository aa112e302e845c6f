//! The suite of every executor, on this CPU.
//!
//! `cargo test -p rewind-cpu --test suite -- order` runs the cases whose names hold "order".

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_executor_suite::{Machine, Scale, ShadowError, Sizes, TinyModel, cases};
use rewind_formats::DraftFormats;

fn main() {
    let trials = cases::<Cpu>().into_iter().map(|case| {
        Trial::test(case.name, move || {
            (case.run)(&Cpu::default()).map_err(|error| format!("{error:#}").into())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// What of an executor's configuration must change no bit.
struct Cpu {
    threads: usize,
    page_tokens: usize,
    isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        // No page ends where a vector or a tile does.
        Self { threads: 1, page_tokens: 12, isa: Isa::detect() }
    }
}

impl Machine for Cpu {
    type Executor = CpuExecutor;

    fn make(&self, model: &TinyModel, sizes: Sizes) -> Result<CpuExecutor> {
        let &Self { threads, page_tokens, isa } = self;
        let options = LoadOptions {
            draft: model.draft.clone().map(DraftFormats::from),
            shadow: model.shadow,
            threads: 2,
            isa,
        };
        let model = CpuModel::load(&model.spec, model.source(), options, |_| ())?;
        let Sizes { slots, rows, positions } = sizes;
        let pages = sizes.pages(page_tokens);
        let config = Config { threads, slots, rows, pages, page_tokens, positions };
        Ok(CpuExecutor::new(Arc::new(model), config)?)
    }

    fn siblings(&self) -> Vec<(String, Self)> {
        vec![
            ("2 threads".into(), Self { threads: 2, ..Self::default() }),
            ("5 threads".into(), Self { threads: 5, ..Self::default() }),
            ("pages of 64".into(), Self { page_tokens: 64, ..Self::default() }),
            ("portable instructions".into(), Self { isa: Isa::portable(), ..Self::default() }),
        ]
    }

    fn scale(&self) -> Scale {
        Scale::FULL
    }

    fn shadow_error(&self) -> ShadowError {
        ShadowError { typical: 3e-6, worst: 3e-6 }
    }
}
