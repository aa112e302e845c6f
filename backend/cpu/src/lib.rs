//! The executor on CPU.
//!
//! [`CpuModel`] packs a model's tensors into a draft, a shadow, or both. [`CpuExecutor`] runs passes
//! over them: any mixture of prompt chunks, decode rows and verification rows in one ragged batch,
//! over paged keys and values.
//!
//! The bits of a row depend on its inputs alone: not on the batch, the chunking, the threads or the
//! instruction set. [`order`] says how every sum is formed; [`Isa`] picks the instructions.
//!
//! `unsafe` lives in the vector instructions (`arch`), in the thread pool (`pool`), where workers take
//! parts of what they share (`shared`, `kv`, `forward`), and where arrays are cut from blocks of huge
//! pages (`aligned::block`), nowhere else.
#![deny(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "kernels index several register blocks by the same constant bounds"
)]

mod aligned;
mod answer;
#[allow(unsafe_code, reason = "vector instructions")]
mod arch;
mod attention;
mod error;
mod executor;
mod exp;
#[allow(unsafe_code, reason = "workers write to buffers by parts, phase by phase")]
mod forward;
mod kernels;
#[allow(unsafe_code, reason = "workers write to entries by heads")]
mod kv;
mod matrix;
mod model;
#[allow(unsafe_code, reason = "threads borrow jobs that they outlive")]
mod pool;
mod rows;
#[allow(unsafe_code, reason = "parts of one memory for several threads")]
mod shared;
mod statistics;

pub mod order;

pub use arch::Isa;
pub use error::CpuError;
pub use executor::{Config, CpuExecutor, Memory};
pub use model::{CpuModel, LoadOptions, Progress, WeightMemory};
