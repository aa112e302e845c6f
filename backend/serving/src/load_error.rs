//! Why a model could not be loaded.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rewind_checkpoint::CheckpointError;
use rewind_cpu::CpuError;
use rewind_cuda::CudaError;
use rewind_monitor::controller::BadBudget;
use rewind_monitor::{ProfileError, ThermometerError};
use rewind_quantize::PlanError;

use crate::device::Processor;
use crate::error::RequestError;
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
    /// A plan cannot be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A plan of another model.
    #[error(
        "the plan {} is for {plan} layers, and this model has {model}: take one that was made for it",
        path.display()
    )]
    PlanLayers {
        /// The plan.
        path: PathBuf,
        /// Layers with a format.
        plan: usize,
        /// Layers of the model.
        model: usize,
    },
    /// The CPU executor did not take the weights.
    #[error("cannot prepare the weights: {}", with_causes(.0))]
    Cpu(#[from] CpuError),
    /// The GPU that was asked for cannot be used.
    #[error(
        "device {processor} cannot be used: {}. Devices \"cpu\" and \"auto\" serve without a GPU",
        with_causes(.missing)
    )]
    Device {
        /// The GPU.
        processor: Processor,
        /// What is missing; told in full above, so no source that a caller would print again.
        missing: CudaError,
    },
    /// Weights and keys and values exceed the GPU's memory.
    #[error(transparent)]
    GpuMemory(#[from] GpuMemory),
    /// The GPU executor did not take the model.
    #[error(
        "cannot prepare the model on {processor}: {}; device \"cpu\" serves it without a GPU",
        with_causes(.why)
    )]
    Cuda {
        /// The GPU.
        processor: Processor,
        /// Why not; told in full above, so no source that a caller would print again.
        why: CudaError,
    },
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
    /// The folder of profiles has none.
    #[error("there is no .toml file in the folder of profiles {}", folder.display())]
    NoProfiles {
        /// The folder.
        folder: PathBuf,
    },
    /// Two files of the folder of profiles name theirs alike.
    #[error("the profile {name:?} of {} is in another file of its folder too", path.display())]
    SameProfile {
        /// The name.
        name: String,
        /// The second file.
        path: PathBuf,
    },
    /// The profile of requests that name none is none of those that there are.
    #[error("parameter \"profile\": {0}")]
    DefaultProfile(RequestError),
    /// The rewind budget is no share.
    #[error("parameter \"rewind_budget\": {0}")]
    Budget(#[from] BadBudget),
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

/// Weights that do not fit the memory of a GPU, and what would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// The GPU.
    pub processor: Processor,
    /// Bytes of it that are free.
    pub free: u64,
    /// Bytes of the draft weights.
    pub draft: u64,
    /// Bytes of the shadow weights, parts shared with the draft included in both.
    pub shadow: u64,
    /// Bytes that the GPU has to hold besides keys, values and buffers.
    pub needed: u64,
    /// With the shadow on the host: bytes that the GPU has to hold, and bytes that each shadow pass
    /// moves over the bus. `None` where it is there already.
    pub on_host: Option<(u64, u64)>,
}

impl std::error::Error for GpuMemory {}

impl fmt::Display for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, free, draft, shadow, needed, on_host } = *self;
        write!(
            f,
            "{processor} has {} free, and this model needs {} there before any keys and values \
             (draft {}, shadow {})",
            format_bytes(free),
            format_bytes(needed),
            format_bytes(draft),
            format_bytes(shadow),
        )?;
        match on_host {
            Some((needed, streamed)) if needed <= free => write!(
                f,
                ": set shadow_placement to \"host\", which needs {} there and moves {} over the bus \
                 in each shadow pass; or take a smaller draft or another device",
                format_bytes(needed),
                format_bytes(streamed),
            ),
            Some((needed, _)) => write!(
                f,
                ": even with shadow_placement \"host\" it would need {}; take a smaller draft or \
                 another device",
                format_bytes(needed),
            ),
            None => f.write_str(
                ", with the shadow on the host already: take a smaller draft or another device",
            ),
        }
    }
}

/// The message of an error and of all that caused it, since only one line reaches the server's log.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_gpu_is_told_with_sizes_and_a_way_out() {
        let gib = |n: u64| n << 30;
        let mut error = GpuMemory {
            processor: Processor::Cuda(1),
            free: gib(16),
            draft: gib(5),
            shadow: gib(15),
            needed: gib(20),
            on_host: Some((gib(7), gib(13))),
        };
        let fits = LoadError::from(error).to_string();
        for part in ["cuda:1 has 16.0 GiB", "20.0 GiB", "draft 5.00 GiB", "shadow 15.0 GiB"] {
            assert!(fits.contains(part), "{fits} lacks {part}");
        }
        for part in ["shadow_placement to \"host\"", "7.00 GiB", "13.0 GiB over the bus"] {
            assert!(fits.contains(part), "{fits} lacks {part}");
        }
        error.free = gib(6);
        let neither = error.to_string();
        assert!(neither.contains("even with shadow_placement"), "{neither}");
        error.on_host = None;
        assert!(error.to_string().contains("on the host already"));
    }
}
