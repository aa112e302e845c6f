//! Why a model could not be loaded.

use std::io;
use std::path::PathBuf;

use rewind_checkpoint::CheckpointError;
use rewind_cpu::CpuError;
use rewind_monitor::{ProfileError, ThermometerError};

use crate::options::OptionsError;
use crate::policy::PolicyName;
use crate::size::format_bytes;

/// Why a model could not be loaded. Every message names the file, key or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The settings are wrong.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// There is no file at `model` or `shadow`.
    #[error("the {key} {} does not exist", path.display())]
    Missing {
        /// `model` or `shadow`.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A checkpoint cannot be read.
    #[error("cannot load the {key}: {source}")]
    Checkpoint {
        /// `model` or `shadow`.
        key: &'static str,
        /// What is wrong with it.
        source: CheckpointError,
    },
    /// Draft and shadow are not two copies of one model.
    #[error(
        "model and shadow do not belong together: {what} is {model} in one and {shadow} in the other"
    )]
    Mismatch {
        /// What differs.
        what: String,
        /// In the model.
        model: String,
        /// In the shadow.
        shadow: String,
    },
    /// The CPU executor did not take the weights.
    #[error("cannot prepare the weights: {}", with_causes(.0))]
    Cpu(#[from] CpuError),
    /// The sequence length exceeds what the model was made for.
    #[error("max_sequence_length is {asked}: this model was made for at most {made_for} tokens")]
    TooLong {
        /// As set.
        asked: u32,
        /// The model's own limit.
        made_for: u32,
    },
    /// The model's own policy needs more rows than a pass may have.
    #[error(
        "max_batch_rows is {rows}: the policy {policy} with this window and refresh needs {needed}; \
         raise max_batch_rows, or lower window or refresh"
    )]
    BatchRows {
        /// As set.
        rows: u32,
        /// Rows of its largest shadow pass.
        needed: u64,
        /// The policy of requests that name none.
        policy: PolicyName,
    },
    /// Not even one page of keys and values.
    #[error(
        "kv_memory is {bytes} bytes: this model needs at least {} for one page of {tokens} tokens",
        format_bytes(*.page)
    )]
    KvMemory {
        /// As set.
        bytes: u64,
        /// Bytes of a page.
        page: u64,
        /// Positions in a page.
        tokens: u32,
    },
    /// A profile file cannot be read.
    #[error("cannot read the profile {}: {source}", path.display())]
    ProfileFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A profile is wrong or unknown.
    #[error("profile {name}: {source}")]
    Profile {
        /// Name or file.
        name: String,
        /// What is wrong with it.
        source: ProfileError,
    },
    /// The thermometer that was asked for is not there.
    #[error("thermometer: {0}")]
    Thermometer(#[from] ThermometerError),
    /// No thread for the thermometer.
    #[error("cannot start the thread that reads the thermometer: {0}")]
    Thread(io::Error),
}

/// The message of an error and of all that caused it, since only one line reaches the server's log.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
