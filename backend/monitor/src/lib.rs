//! How uncertain is the next token, and when is that too much?
//!
//! Statistics of one row of logits ([`Statistics`], fused from [`Sums`], with an f64 [`oracle`]), the
//! [`Detector`]s that turn them into a risk score, the thermal coefficient ([`thermal`]), domain
//! [`Profile`]s, and the [`Gate`] that compares a score with an execution threshold. No I/O but the
//! thermometers.
#![forbid(unsafe_code)]

mod gate;
mod statistics;
mod sums;

pub mod oracle;
pub mod profile;
pub mod thermal;
pub mod thermometer;
pub mod watch;

pub use gate::{Detector, Gate, UnknownDetector};
pub use profile::{Profile, ProfileError};
pub use statistics::Statistics;
pub use sums::Sums;
pub use thermal::Celsius;
pub use thermometer::{
    Chip, Thermometer, ThermometerError, ThermometerSetting, choose_thermometer,
};
pub use watch::ThermalWatch;
