//! Quantized copies of a model: which format each layer takes, and how its weights become codes.
//!
//! [`importance`] ranks layers, [`Target::assign`] gives the least important ones fewer bits, and a [`Plan`] is the
//! file that says so, which the backend takes as `draft: "plan:FILE"`. What has to be computed for that, an
//! executor computes that the caller passes in: nothing here knows CPU or GPU.
//!
//! [`quantize`] writes a folder with the weights quantized by a [`Method`], one layer in memory at a time. It
//! computes layers itself, since it needs what no executor gives: the inputs of every projection. **Not finished**: no
//! command calls it, and only [`method`] has tests so far.
#![forbid(unsafe_code)]

mod archive;
mod error;
mod folder;
mod forward;
pub mod importance;
mod manifest;
pub mod method;
mod names;
mod plan;
mod run;
mod source;
mod target;

pub use error::QuantizeError;
pub use manifest::{Calibrated, Formats, Manifest, MethodSettings, Origin};
pub use plan::{Made, Plan, PlanError};
pub use run::{Calibration, Job, Method, quantize};
pub use target::{Target, TargetError, average_bits};
