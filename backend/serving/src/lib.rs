//! A model ready to serve: what the Triton backend and the command line share.
//!
//! [`Options`] (what a model's owner sets) → [`Model::load`] → a [`Model`] and its engine.
//! [`Parameters`] (what a request sets) → [`Model::prepare`] → a [`Prepared`] request. [`Inflight`]
//! runs the engine on a thread of its own and hands events to [`Sink`]s; the iterative driver steps it
//! itself. Nothing here knows Triton.
#![forbid(unsafe_code)]

mod budget;
mod device;
mod draft;
mod error;
mod executor;
mod gpu_plan;
mod inflight;
mod load;
mod load_error;
mod model;
mod nearest;
mod options;
mod pairing;
mod parameters;
mod policy;
mod prepare;
mod profiles;
mod prompt;
mod size;
mod sizing;
mod value;

pub use budget::Tally;
pub use device::{Choice, Device, Processor, ShadowPlacement};
pub use draft::{Draft, UnknownDraft};
pub use error::{ErrorKind, RequestError};
pub use executor::{AnyEngine, AnyExecutor};
pub use gpu_plan::gpu_plan;
pub use inflight::{Inflight, NoObserver, Observer, Rejected, Sink};
pub use load_error::{GpuMemory, LoadError};
pub use model::{Memory, Model, ThermalReading};
pub use options::{
    DEFAULT_REFRESH, DEFAULT_WINDOW, MAX_WINDOW, OPTION_KEYS, Options, OptionsError,
};
pub use pairing::check_pair;
pub use parameters::{
    DEFAULT_MAX_TOKENS, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOP_STRINGS, Parameters, SAMPLING_KEYS,
};
pub use policy::{POLICY_NAMES, PolicyName, UnknownPolicy};
pub use prepare::{Frozen, Prepared};
pub use prompt::Prompt;
pub use size::{format_bytes, parse_bytes};
pub use value::Value;
