//! Evidence: do the detectors see where a draft and its shadow part?
//!
//! [`domain`] has texts of five kinds. [`trace`](fn@trace) feeds a text to both copies of the weights and records, position
//! by position, what each would choose and how unsure it is. [`Calibration`] fits detectors, thresholds and a noise
//! model to the documents of one half and measures them on the other, and writes a
//! [`Profile`](rewind_monitor::Profile). [`RecordsFile`] keeps the raw records.
//!
//! What has to be computed by a model, an executor computes that the caller passes in: nothing here knows CPU or GPU.
#![forbid(unsafe_code)]

mod bootstrap;
mod calibration;
pub mod dead_compute;
mod document;
pub mod domain;
mod error;
mod forced;
mod heat;
mod logistic;
mod noise;
mod profile;
mod ranking;
mod record;
mod records_file;
mod target;
pub mod tasks;
mod trace;

pub use bootstrap::{Resampling, interval};
pub use calibration::{
    BUDGETS, Calibration, Counts, Held, Judged, SampledJudged, ThresholdAt, Thresholds, Variant,
};
pub use document::{Document, Half, split};
pub use error::{CalibrationError, RecordsError, TraceError};
pub use forced::{FORCED_ROWS, ForcedError, teacher_forced};
pub use heat::{Heat, HeatRound, HeatSummary};
pub use logistic::{Logistic, NoContrast};
pub use noise::MarginNoiseFit;
pub use ranking::{Ranking, Step};
pub use record::{Reading, Record, Sampled, Side, Trace};
pub use records_file::RecordsFile;
pub use target::Target;
pub use trace::{TraceSettings, trace};
