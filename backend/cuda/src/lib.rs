//! The executor on NVIDIA GPUs.
//!
//! [`CudaModel`] packs a model's tensors for the kernels of [`rewind_kernels`] and puts them on a
//! device; [`CudaExecutor`] runs passes over them. Both are written against
//! [`rewind_kernels::Device`]: [`Driver`] is that on a GPU, and the tests run the same executor on an
//! emulator, so that all but the speed and the last bits of it is proven where there is no GPU.
//!
//! Nothing here links CUDA: the driver library is opened at run time, and [`gpus`] says what is
//! missing where it cannot be.
//!
//! `unsafe` lives in `driver`, where CUDA is called, and nowhere else.
#![deny(unsafe_code)]

mod answers;
mod buffers;
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
mod driver;
mod error;
mod executor;
mod forward;
mod model;
mod pack;
mod plan;
mod staging;
mod synthetic;

pub use driver::{Driver, gpus, is_supported};
pub use error::CudaError;
pub use executor::{Config, CudaExecutor, Memory};
pub use model::{CudaModel, LoadOptions, Progress};
pub use plan::{Exact, Placement, WeightMemory, WeightPlan, plan, stored_bytes};
