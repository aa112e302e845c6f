//! A folder with the weights of a model quantized, one layer in memory at a time.
//!
//! [`run`] goes from layer to layer; [`layer`] takes one from weights to codes by a [`method`], with the inputs that
//! [`forward`] computes; [`parts`] keeps what is done on the disk, in the format of [`archive`]; [`folder`] writes what
//! stands beside the weights. Layers are computed here and not by an executor, since no executor gives the inputs of
//! every projection.

mod archive;
mod error;
mod fold;
mod folder;
mod forward;
mod layer;
mod manifest;
pub mod method;
mod parts;
mod run;
mod source;

pub use error::QuantizeError;
pub use manifest::{Calibrated, Formats, Manifest, MethodSettings, Origin};
pub use run::{Calibration, Job, Method, quantize};
