//! What every executor must do, whatever it runs on.
//!
//! A [`Machine`] makes executors of small random models. The cases run passes on them, and whole engines
//! over them, and compare with what no machine can argue with: the textbook in `f64`, the sampling
//! contract, the definitions of the statistics, or the same machine doing the same work in other
//! company. The CPU's tests run all cases, the CUDA executor's run them on the emulator, and `gpu-check`
//! on a GPU.
//!
//! A case never panics over a difference: it returns an error that says what differs.
#![forbid(unsafe_code)]

mod exactness;
mod invariance;
mod model;
mod order;
mod outputs;
mod policies;
mod reference;
mod refusals;

pub mod agreement;
pub mod bench;

use anyhow::Result;
use rewind_engine::Executor;
use rewind_formats::Format;

pub use bench::Sizes;
pub use model::{Oddity, Precision, TinyModel, small_spec};

/// What makes executors to test.
pub trait Machine: Sized {
    /// What it makes.
    type Executor: Executor;

    /// An executor of a model, with room for at least these sizes and nothing in its cache.
    ///
    /// # Errors
    /// The machine cannot run this model.
    fn make(&self, model: &TinyModel, sizes: Sizes) -> Result<Self::Executor>;

    /// Machines that differ from this one in what must change no bit: threads, instruction sets, where
    /// weights are. Each with what is different about it.
    fn siblings(&self) -> Vec<(String, Self)>;

    /// How much work a case may be.
    fn scale(&self) -> Scale;

    /// What the cache makes of a key or value; the identity where it keeps all of an `f32`.
    fn cached(&self, x: f64) -> f64 {
        x
    }

    /// How far the shadow is from the textbook that caches as this machine does.
    fn shadow_error(&self) -> ShadowError;

    /// Largest mean error of the rows of a draft, against weights that are not quantized. What a format
    /// loses is far above what a machine does.
    fn draft_error(&self, format: Format) -> f64 {
        match format {
            Format::F16 => 0.002,
            Format::Bf16 => 0.02,
            Format::Int8 | Format::Int8Group(_) => 0.04,
            Format::Int6Group(_) => 0.12,
            Format::Fp8 => 0.25,
            Format::Int4Group(_) | Format::Int4Affine(_) | Format::Nf4 => 0.5,
        }
    }
}

/// Bounds for the shadow's error: of a row of logits, the root mean square of the differences from the
/// textbook's over that of the textbook's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShadowError {
    /// Half of a prompt's rows are no worse.
    pub typical: f64,
    /// No row is worse. Well above the former where the cache keeps less than an `f32`: a number next to
    /// the middle between two that it can keep may go the other way than the textbook's.
    pub worst: f64,
}

/// How much work a case may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Tokens of the small models.
    pub vocabulary: usize,
    /// Rows of the longest prompt.
    pub prompt: usize,
    /// Cases of a test over random passes.
    pub passes: u32,
    /// Requests that an engine serves beside each other.
    pub requests: usize,
    /// Tokens that a request generates.
    pub answer: u32,
    /// Whether a case tries all combinations, or each thing once.
    pub exhaustive: bool,
}

impl Scale {
    /// For machines that compute as fast as they are meant to.
    pub const FULL: Self = Self {
        vocabulary: 1100,
        prompt: 290,
        passes: 16,
        requests: 8,
        answer: 48,
        exhaustive: true,
    };

    /// For a machine that is emulated, many times slower.
    pub const EMULATED: Self =
        Self { vocabulary: 300, prompt: 70, passes: 2, requests: 4, answer: 8, exhaustive: false };
}

/// One case.
#[derive(Debug)]
pub struct Case<M> {
    /// What it is about, then what must hold, such as `order: several passes may be in flight`.
    pub name: &'static str,
    /// Runs it; an error says what differs.
    pub run: fn(&M) -> Result<()>,
}

impl<M> Clone for Case<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Case<M> {}

impl<M> Case<M> {
    const fn new(name: &'static str, run: fn(&M) -> Result<()>) -> Self {
        Self { name, run }
    }
}

/// All cases.
pub fn cases<M: Machine>() -> Vec<Case<M>> {
    [
        exactness::cases(),
        invariance::cases(),
        order::cases(),
        outputs::cases(),
        refusals::cases(),
        policies::cases(),
    ]
    .concat()
}
