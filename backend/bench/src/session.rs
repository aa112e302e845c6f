//! What a measurement runs on.

use rewind_engine::{Executor, Weights};

use crate::bandwidth::ReadSweep;
use crate::weights::WeightBytes;

/// One copy of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Format of the linear layers.
    pub format: String,
    /// What a step reads.
    pub bytes: WeightBytes,
}

/// Both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// The quantized one.
    pub draft: Copy,
    /// The one of full precision.
    pub shadow: Copy,
    /// Bytes of keys and values of one position, all layers.
    pub cache_bytes: u64,
}

impl Copies {
    /// One of them.
    pub fn of(&self, weights: Weights) -> &Copy {
        match weights {
            Weights::Draft => &self.draft,
            Weights::Full => &self.shadow,
        }
    }
}

/// An executor on which nothing else runs, and what goes with it through a measurement.
pub struct Session<'a, E> {
    /// The executor; it must hold no sequence.
    pub executor: &'a mut E,
    /// What there is to know of its weights.
    pub copies: &'a Copies,
    /// Sampled in every round; `None` where passes do not run on this machine's processor.
    pub sweep: Option<&'a mut ReadSweep>,
    /// Called as often as the measurement's `ticks` says.
    pub tick: &'a mut dyn FnMut(),
}

impl<E: Executor> Session<'_, E> {
    /// Samples the bandwidth.
    pub(crate) fn sample_bandwidth(&mut self) {
        if let Some(sweep) = &mut self.sweep {
            sweep.sample();
        }
    }

    /// Gigabytes a second, as sampled so far.
    pub(crate) fn bandwidth(&self) -> Option<f64> {
        self.sweep.as_ref()?.median()
    }
}
