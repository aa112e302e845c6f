//! What can be wrong with a request, and whose fault it is.

use rewind_engine::Refusal;
use rewind_engine::sampling::InvalidSampling;
use rewind_monitor::ProfileError;

use crate::nearest::hint;

/// Whose move it is after an error; drivers map it to their protocol's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong and will stay wrong.
    InvalidArgument,
    /// The request is fine, but not now.
    Unavailable,
    /// The request asks for something that this version does not do.
    Unsupported,
    /// A defect on this side.
    Internal,
}

/// Why a request was not taken. Every message names what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// `sampling_parameters` cannot be parsed.
    #[error(
        "sampling_parameters is not valid JSON: {0} (an object is expected; NaN and Infinity are \
         not JSON)"
    )]
    BadJson(String),
    /// `sampling_parameters` is JSON, but not an object.
    #[error("sampling_parameters is {0}: expected a JSON object such as {{\"max_tokens\": 64}}")]
    NotAnObject(&'static str),
    /// No such key inside `sampling_parameters`.
    #[error("unknown key {key:?} in sampling_parameters{}", hint(*.nearest))]
    UnknownKey {
        /// As written, shortened.
        key: String,
        /// Most similar known key.
        nearest: Option<&'static str>,
    },
    /// The value does not fit its key.
    #[error("{key} is {value}: expected {allowed}")]
    BadValue {
        /// The key.
        key: String,
        /// As given, shortened.
        value: String,
        /// What would be right.
        allowed: String,
    },
    /// A feature of other servers that this one lacks.
    #[error("{key} = {value} is not supported: leave it out, or at its default, {default}")]
    Unsupported {
        /// The key.
        key: String,
        /// As given, shortened.
        value: String,
        /// The only accepted value.
        default: &'static str,
    },
    /// Text that is not text.
    #[error("{what} is not valid UTF-8: the byte at index {index} starts no character")]
    NotUtf8 {
        /// Which input.
        what: &'static str,
        /// First bad byte.
        index: usize,
    },
    /// Neither text nor token ids.
    #[error("the prompt is empty: give at least one character or one token id")]
    EmptyPrompt,
    /// Told before tokenizing, from the number of bytes alone.
    #[error(
        "the prompt has {bytes} bytes: this model takes at most {limit} bytes, and {positions} \
         tokens together with the answer"
    )]
    TooManyBytes {
        /// Bytes of the prompt.
        bytes: usize,
        /// Most bytes that `positions` tokens can have.
        limit: usize,
        /// Longest sequence in tokens.
        positions: u32,
    },
    /// A token id below 0.
    #[error("input_ids holds {token} at index {index}: expected ids from 0 to {}", .vocabulary - 1)]
    BadToken {
        /// The id.
        token: i32,
        /// Its place.
        index: usize,
        /// Ids are below this.
        vocabulary: u32,
    },
    /// `chat` without a template, or with token ids.
    #[error("chat = true: {0}")]
    Chat(String),
    /// The tokenizer failed.
    #[error("the prompt cannot be tokenized: {0}")]
    Tokenizer(String),
    /// No such profile.
    #[error("unknown profile {name:?}{}; known are {}", hint(.nearest.as_deref()), .known.join(", "))]
    UnknownProfile {
        /// As written, shortened.
        name: String,
        /// Profiles there are.
        known: Vec<String>,
        /// Most similar one.
        nearest: Option<String>,
    },
    /// `auto`, and no profile says what its prompts look like.
    #[error(
        "profile \"auto\" chooses among profiles with a [prompt] table and this model has none: put such \
         profiles, as `rewind calibrate` writes them, into the folder that its parameter profiles names"
    )]
    NothingToChoose,
    /// The profile lacks what the request needs of it.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A sampling parameter does not fit this model.
    #[error(transparent)]
    Sampling(#[from] InvalidSampling),
    /// The engine did not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine stopped after an internal error.
    #[error("the engine of this model has stopped: {0}; reload the model")]
    EngineDead(String),
    /// The model is being unloaded.
    #[error("the model is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Refused(Refusal::QueueFull { .. }) | Self::EngineDead(_) | Self::ShuttingDown => {
                ErrorKind::Unavailable
            }
            _ => ErrorKind::InvalidArgument,
        }
    }
}
