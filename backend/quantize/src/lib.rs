//! Quantized copies of a model: which format each layer takes, and how its weights become codes.
//!
//! [`importance`] ranks layers, [`Target::assign`] gives the least important ones fewer bits, and a [`Plan`] is the
//! file that says so, which the backend takes as `draft: "plan:FILE"`. What has to be computed for that, an
//! executor computes that the caller passes in: nothing here knows CPU or GPU.
//!
//! With the feature `methods`, [`quantize`](methods::quantize) writes a folder with the quantized model. The backend only
//! reads plans, and is built without it.
#![forbid(unsafe_code)]

pub mod importance;
#[cfg(feature = "methods")]
pub mod methods;
mod plan;
mod target;

pub use plan::{Made, Plan, PlanError};
pub use target::{Target, TargetError, average_bits};
