//! Why a model cannot be loaded or run on this CPU.

use std::error::Error;
use std::io;

use rewind_checkpoint::TensorName;
use rewind_formats::PackError;

/// A model could not be loaded, or no executor made for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// Neither draft nor shadow was asked for.
    #[error("a model needs a draft format, shadow weights, or both; neither was asked for")]
    NoWeights,
    /// The draft's formats are for a model of other depth.
    #[error("the draft has formats for {plan} layers; this model has {model}")]
    Layers {
        /// Layers with a format.
        plan: usize,
        /// Layers of the model.
        model: usize,
    },
    /// Sizes that fit no decoder.
    #[error("the model's sizes do not fit together: {0}")]
    Spec(String),
    /// The source has no such tensor or failed to read it.
    #[error("cannot read the {tensor} tensor")]
    Source {
        /// Which tensor.
        tensor: TensorName,
        /// What the source said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A tensor has another shape than the model's sizes demand.
    #[error("the {tensor} tensor has shape {found:?} ({elements} elements); expected {expected:?}")]
    Shape {
        /// Which tensor.
        tensor: TensorName,
        /// Its shape.
        found: Vec<usize>,
        /// Elements that came with it.
        elements: usize,
        /// What the model needs.
        expected: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("the {tensor} tensor holds {value} at row {row}, column {col}; weights must be finite")]
    NotFinite {
        /// Which tensor.
        tensor: TensorName,
        /// Row of the first such weight.
        row: usize,
        /// Its column.
        col: usize,
        /// NaN or ±∞.
        value: f32,
    },
    /// A tensor cannot be stored in the draft format.
    #[error("cannot quantize the {tensor} tensor (rows counted from {first_row})")]
    Quantize {
        /// Which tensor.
        tensor: TensorName,
        /// First row of the piece that was being quantized.
        first_row: usize,
        /// What was wrong with it.
        #[source]
        source: PackError,
    },
    /// A setting is out of range.
    #[error("{setting} is {value}; it must be {allowed}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What was given.
        value: usize,
        /// What would be right.
        allowed: &'static str,
    },
    /// The system refuses the memory for keys and values.
    #[error("no memory for {pages} KV pages of {page_tokens} tokens each")]
    KvMemory {
        /// Pages asked for.
        pages: usize,
        /// Positions in each.
        page_tokens: usize,
    },
    /// Threads could not be started.
    #[error("cannot start {threads} compute threads")]
    Threads {
        /// How many.
        threads: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
