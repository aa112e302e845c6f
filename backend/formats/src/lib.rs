//! Number formats of weights: how they are packed, and what the packed codes exactly mean.
//!
//! This crate is the oracle. Dequantization here is slow, plain and exact; every kernel elsewhere
//! (CPU, CUDA) is tested against it. Rejected: a trait per format. The set is closed and small, each
//! format is named in configuration files, and an enum lets `match` prove that none was forgotten.
//!
//! ```
//! use rewind_formats::{Format, Packed};
//!
//! let format: Format = "int4-g32".parse()?;
//! let weights: Vec<f32> = (0..64).map(|i| (i as f32 / 10.0).sin()).collect();
//! let packed = Packed::quantize(format, 2, 32, &weights)?;
//! let (code, scale) = (packed.code(1, 5), packed.scale(1, 5));
//! assert!((f32::from(code) * scale - weights[37]).abs() <= scale.abs() / 2.0 + 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod affine;
pub mod e4m3;
mod format;
pub mod mixture;
pub mod nf4;
mod packed;
mod parts;
mod scale;

pub mod ggml;

pub use format::{FORMAT_NAMES, Format, FormatError, Group};
pub use mixture::{DraftFormats, Mixture};
pub use packed::{PackError, Packed, Scales};
