//! The suite of every executor, over the kernels on the emulator.
//!
//! `cargo test -p rewind-cuda --test emulated -- order` runs the cases whose names hold "order".

use std::sync::Arc;

use anyhow::Result;
use half::f16;
use libtest_mimic::{Arguments, Trial};
use rewind_cpu::{CpuExecutor, CpuModel, Isa};
use rewind_cuda::{Config, CudaExecutor, CudaModel, LoadOptions, Placement};
use rewind_executor_suite::{Machine, Scale, ShadowError, Sizes, TinyModel, agreement, cases};
use rewind_formats::DraftFormats;
use rewind_kernels::arguments::PAGE_TOKENS;
use rewind_kernels_emulator::{Emulator, Order, Settings};

fn main() {
    let cases = cases::<Emulated>().into_iter().map(|case| {
        // Whole engines launch nothing that the other cases do not, and much of it.
        let checks = !case.name.starts_with("policies");
        trial(case.name, move || (case.run)(&Emulated::new(checks)))
    });
    let agreement =
        trial("agreement: with the CPU", || agreement::machines(&Cpu, &Emulated::new(false)));
    libtest_mimic::run(&Arguments::from_args(), cases.chain([agreement]).collect()).exit();
}

fn trial(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(|error| format!("{error:#}").into()))
}

/// What of an executor's set-up must change no bit.
struct Emulated {
    settings: Settings,
    placement: Placement,
}

impl Emulated {
    /// With or without a watch for races and for reads of what nobody wrote; accesses out of bounds are
    /// always found.
    fn new(checks: bool) -> Self {
        let settings = Settings { seed: 1, checks, ..Settings::default() };
        Self { settings, placement: Placement::Device }
    }
}

impl Machine for Emulated {
    type Executor = CudaExecutor<Emulator>;

    fn make(&self, model: &TinyModel, sizes: Sizes) -> Result<Self::Executor> {
        let options = LoadOptions {
            draft: model.draft.clone().map(DraftFormats::from),
            shadow: model.shadow,
            threads: 1,
            placement: self.placement,
        };
        let mut loaded = CudaModel::new(Emulator::new(self.settings)?, &model.spec)?;
        loaded.load(model.source(), options, |_| ())?;
        let Sizes { slots, rows, positions } = sizes;
        let pages = sizes.pages(PAGE_TOKENS as usize);
        Ok(CudaExecutor::new(loaded, Config { slots, rows, pages, positions })?)
    }

    fn siblings(&self) -> Vec<(String, Self)> {
        let ordered = |order| Settings { order, ..self.settings };
        let Self { settings, placement } = *self;
        vec![
            (
                "threads in descending order".into(),
                Self { settings: ordered(Order::Descending), placement },
            ),
            (
                "threads in random order".into(),
                Self { settings: ordered(Order::Shuffled), placement },
            ),
            ("shadow on the host".into(), Self { settings, placement: Placement::Host }),
        ]
    }

    fn scale(&self) -> Scale {
        Scale::EMULATED
    }

    fn cached(&self, x: f64) -> f64 {
        f16::from_f64(x).to_f64()
    }

    fn shadow_error(&self) -> ShadowError {
        // About twice what is found: 5e-6 and 8e-5. Without flipped roundings the median is 7e-7.
        ShadowError { typical: 1e-5, worst: 1.6e-4 }
    }
}

/// The other executor, to agree with.
struct Cpu;

impl Machine for Cpu {
    type Executor = CpuExecutor;

    fn make(&self, model: &TinyModel, sizes: Sizes) -> Result<CpuExecutor> {
        let TinyModel { draft, shadow, .. } = model.clone();
        let draft = draft.map(DraftFormats::from);
        let options = rewind_cpu::LoadOptions { draft, shadow, threads: 1, isa: Isa::detect() };
        let loaded = CpuModel::load(&model.spec, model.source(), options, |_| ())?;
        let Sizes { slots, rows, positions } = sizes;
        let (threads, page_tokens) = (1, 16);
        let pages = sizes.pages(page_tokens);
        let config = rewind_cpu::Config { threads, slots, rows, pages, page_tokens, positions };
        Ok(CpuExecutor::new(Arc::new(loaded), config)?)
    }

    fn siblings(&self) -> Vec<(String, Self)> {
        Vec::new()
    }

    fn scale(&self) -> Scale {
        Scale::FULL
    }

    fn shadow_error(&self) -> ShadowError {
        ShadowError { typical: 3e-6, worst: 3e-6 }
    }
}
