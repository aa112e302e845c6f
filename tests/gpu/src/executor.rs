//! The suite of every executor, and agreement with the CPU, on a device.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use half::f16;
use rewind_cpu::{CpuExecutor, CpuModel, Isa};
use rewind_cuda::{Config, CudaExecutor, CudaModel, LoadOptions, Placement};
use rewind_executor_suite::{
    Case, Machine, Scale, ShadowError, Sizes, TinyModel, agreement, cases,
};
use rewind_formats::DraftFormats;
use rewind_kernels::Device;
use rewind_kernels::arguments::PAGE_TOKENS;

use crate::budget::Budget;
use crate::cases::each;
use crate::report::{Findings, Outcome};

/// Runs every case.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub fn right<D: Device>(
    machine: &Cuda<D>,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    run(machine, &all(), budget, findings)
}

fn all<D: Device>() -> Vec<Case<Cuda<D>>> {
    let name = "agreement: with the CPU";
    let with_the_cpu = Case { name, run: |machine| agreement::machines(&Cpu, machine) };
    cases().into_iter().chain([with_the_cpu]).collect()
}

fn run<D: Device>(
    machine: &Cuda<D>,
    cases: &[Case<Cuda<D>>],
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    each(cases, |case| case.name, budget, findings, |case| (case.run)(machine))
}

/// Makes executors over devices of one kind.
pub struct Cuda<D> {
    open: Rc<dyn Fn() -> Result<D>>,
    scale: Scale,
    placement: Placement,
}

impl<D> Cuda<D> {
    /// For devices that `open` opens, one for each executor.
    pub fn new(scale: Scale, open: impl Fn() -> Result<D> + 'static) -> Self {
        Self { open: Rc::new(open), scale, placement: Placement::Device }
    }
}

impl<D: Device> Machine for Cuda<D> {
    type Executor = CudaExecutor<D>;

    fn make(&self, model: &TinyModel, sizes: Sizes) -> Result<Self::Executor> {
        let TinyModel { draft, shadow, .. } = model.clone();
        let draft = draft.map(DraftFormats::from);
        let options = LoadOptions { draft, shadow, threads: 1, placement: self.placement };
        let mut loaded = CudaModel::new((self.open)()?, &model.spec)?;
        loaded.load(model.source(), options, |_| ())?;
        let Sizes { slots, rows, positions } = sizes;
        let pages = sizes.pages(PAGE_TOKENS as usize);
        Ok(CudaExecutor::new(loaded, Config { slots, rows, pages, positions })?)
    }

    fn siblings(&self) -> Vec<(String, Self)> {
        let (open, placement) = (Rc::clone(&self.open), Placement::Host);
        vec![("shadow on the host".into(), Self { open, placement, ..*self })]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn cached(&self, x: f64) -> f64 {
        f16::from_f64(x).to_f64()
    }

    fn shadow_error(&self) -> ShadowError {
        // Twice what the emulator may be off: how tensor cores round their sums is not documented.
        ShadowError { typical: 2e-5, worst: 3.2e-4 }
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
        // As its own tests have it.
        ShadowError { typical: 3e-6, worst: 3e-6 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rig::tests::emulator;

    #[test]
    fn cases_run_on_a_device() {
        let machine = Cuda::new(Scale::EMULATED, emulator);
        // The others run in the tests of the executor.
        let wanted = ["order: ", "agreement: "];
        let mut some = all();
        some.retain(|case| wanted.iter().any(|prefix| case.name.starts_with(prefix)));
        assert!(some.len() > 1 && all::<rewind_cuda::Driver>().len() > some.len());
        let budget = Budget::new(Duration::from_secs(600));
        let mut findings = Findings::default();
        let outcome = run(&machine, &some, &budget, &mut findings).unwrap();
        assert_eq!(outcome, Outcome::Passed(format!("{} cases", some.len())), "{findings:?}");
    }
}
