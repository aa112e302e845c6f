//! How uncertain is the next token, and when is that too much?
//!
//! Statistics of one row of logits ([`Statistics`], fused from [`Sums`], with an f64 [`oracle`]), the
//! [`Detector`]s that turn them into a risk score, the thermal coefficient ([`thermal`]), domain
//! [`Profile`]s, which a [`prompt`] may choose, the [`Gate`] that compares a score with an execution threshold, and a
//! [`Controller`] that holds a budget by moving it. No I/O but the thermometers.
#![forbid(unsafe_code)]

mod detector;
mod fused;
mod gate;
mod statistics;
mod sums;

pub mod controller;
pub mod oracle;
pub mod profile;
pub mod prompt;
pub mod thermal;
pub mod thermometer;
pub mod watch;

pub use controller::Controller;
pub use detector::{Detector, DetectorName, UnknownDetector};
pub use fused::Fused;
pub use gate::Gate;
pub use profile::{Profile, ProfileError};
pub use prompt::{Candidate, PromptEntropies};
pub use statistics::Statistics;
pub use sums::Sums;
pub use thermal::Celsius;
pub use thermometer::{
    Chip, Thermometer, ThermometerError, ThermometerSetting, choose_thermometer,
};
pub use watch::ThermalWatch;
