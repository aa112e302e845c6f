//! Why something could not be measured.

use rewind_engine::{ExecutorError, Refusal, SequenceError};

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A setting leaves nothing to measure, or makes no sense.
    #[error("{setting} is {value}: it must be {allowed}")]
    Setting {
        /// The field of the measurement.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// The executor is too small for it.
    #[error("the measurement needs {needed} {what} and the executor has {available}")]
    Room {
        /// Slots, rows, positions or pages.
        what: &'static str,
        /// How many of them.
        needed: u64,
        /// How many there are.
        available: u64,
    },
    /// The executor could not run a pass.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The engine did not take a request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A sequence failed.
    #[error("a sequence failed: {0}")]
    Sequence(#[from] SequenceError),
    /// A row gave no token, so that the steps after it would not be those of a sequence.
    #[error(
        "the {weights} weights chose no token at position {position}: their logits are not finite"
    )]
    NoToken {
        /// Draft or shadow.
        weights: &'static str,
        /// Where.
        position: u32,
    },
    /// A step that ran several times, with the monitor and without, is not the same step.
    #[error("the same step chose token {} and then token {} at position {position}", .tokens[0], .tokens[1])]
    Different {
        /// Where.
        position: u32,
        /// What was chosen first and later.
        tokens: [u32; 2],
    },
    /// The engine has requests and runs nothing.
    #[error("the engine stands still with requests in it: this is a defect")]
    Stuck,
    /// The memory for the read sweep, or its threads, could not be had.
    #[error("the bandwidth of memory cannot be measured: {0}")]
    Bandwidth(#[from] std::io::Error),
}

impl BenchError {
    pub(crate) fn setting(
        setting: &'static str,
        value: impl ToString,
        allowed: &'static str,
    ) -> Self {
        Self::Setting { setting, value: value.to_string(), allowed }
    }
}
