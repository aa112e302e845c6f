//! Number formats of weights: how they are packed, and what the packed codes exactly mean.
//!
//! This crate is the oracle. Dequantization here is slow, plain and exact; every kernel elsewhere
//! (CPU, CUDA) is tested against it. Rejected: a trait per format. The set is closed and small, each
//! format is named in configuration files, and an enum lets `match` prove that none was forgotten.
#![forbid(unsafe_code)]

mod format;
mod packed;
mod scale;

pub mod ggml;

pub use format::{FORMAT_NAMES, Format, FormatError, Group};
pub use packed::{PackError, Packed, Scales};
