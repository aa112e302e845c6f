//! Everything that can go wrong before a pass runs.

use std::error::Error;

use rewind_checkpoint::TensorName;
use rewind_formats::PackError;
use rewind_kernels::packing::PackingError;
use rewind_kernels::{DeviceError, NotBuilt};

/// Why a GPU cannot be used or a model not be put on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver library cannot be opened.
    #[error(
        "the NVIDIA driver (libcuda.so.1) is not on this machine; in a container, start it with GPU access"
    )]
    NoDriver,
    /// There is a driver, but it cannot be used.
    #[error("the NVIDIA driver does not work: {0}")]
    Driver(String),
    /// There is a driver, but no GPU.
    #[error("the NVIDIA driver sees no GPU")]
    NoGpu,
    /// There are GPUs, but not that one.
    #[error("there is no GPU {ordinal}; this machine has {count}, counted from 0")]
    NoSuchGpu {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error("{name} is of architecture {architecture}; the kernels need sm_80 (Ampere) or later")]
    Architecture {
        /// Its product name.
        name: String,
        /// Its architecture.
        architecture: String,
    },
    /// This build has no kernels.
    #[error(transparent)]
    NoKernels(#[from] NotBuilt),
    /// Neither copy of the weights was asked for, or loaded.
    #[error("neither draft nor shadow weights are loaded")]
    NoWeights,
    /// The draft's formats are for a model of other depth.
    #[error("the draft has formats for {plan} layers; this model has {model}")]
    Layers {
        /// Layers with a format.
        plan: usize,
        /// Layers of the model.
        model: usize,
    },
    /// Sizes of the model that the kernels cannot do.
    #[error("this model cannot run on a GPU: {0}")]
    Spec(String),
    /// The source of tensors failed.
    #[error("{tensor} cannot be read: {source}")]
    Source {
        /// Which tensor.
        tensor: TensorName,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A tensor of another shape.
    #[error("{tensor} has shape {found:?} and {elements} elements; the model needs {expected:?}")]
    Shape {
        /// Which tensor.
        tensor: TensorName,
        /// Its shape.
        found: Vec<usize>,
        /// Its number of elements.
        elements: usize,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// A weight that is NaN or infinite.
    #[error("{tensor} holds {value} at row {row}, column {col}; weights must be finite")]
    NotFinite {
        /// Which tensor.
        tensor: TensorName,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// Its value.
        value: f32,
    },
    /// Weights that do not fit the draft format.
    #[error("{tensor}, rows from {first_row}: {source}")]
    Quantize {
        /// Which tensor; of joined ones the first.
        tensor: TensorName,
        /// First row of the piece.
        first_row: usize,
        /// Why.
        source: PackError,
    },
    /// Matrices that the kernels cannot take.
    #[error(transparent)]
    Packing(#[from] PackingError),
    /// The device has too little memory.
    #[error("{what} need {wanted} bytes; the GPU has {free} bytes free{hint}")]
    Memory {
        /// Weights, buffers or the KV cache.
        what: &'static str,
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that were free.
        free: u64,
        /// What may help; empty or starting with a semicolon.
        hint: &'static str,
    },
    /// A size of the executor that is 0 or too large.
    #[error("{setting} is {value}; allowed is {allowed}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        value: usize,
        /// What it may be.
        allowed: &'static str,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
