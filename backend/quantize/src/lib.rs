//! Which format each layer of a draft takes, by measured importance.
//!
//! [`importance`] ranks layers, [`Target::assign`] gives the least important ones fewer bits, and a [`Plan`] is the
//! file that says so, which the backend takes as `draft: "plan:FILE"`. Nothing here knows CPU or GPU: what
//! has to be computed, an executor computes that the caller passes in.
#![forbid(unsafe_code)]

pub mod importance;
mod plan;
mod target;

pub use plan::{Made, Plan, PlanError};
pub use target::{Target, TargetError, average_bits};
