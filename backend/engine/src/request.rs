//! What a caller asks of the engine, validated before it enters the queue.

use std::fmt;
use std::sync::Arc;

use rewind_monitor::{Candidate, Gate};

use crate::executor::{Token, Weights};
use crate::sampling::Sampling;

/// Name of a request while the engine holds it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// When and how the shadow weights are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Draft only, no statistics but `finite`.
    Off,
    /// Draft only, with statistics.
    Observe,
    /// A suspect step is redone at once.
    Step {
        /// Preceding positions with draft KV that the shadow pass rewrites too.
        refresh: u32,
    },
    /// Tokens are held back; verified when one of them is suspect.
    Window {
        /// Most tokens held back, ≥ 1.
        tokens: u32,
        /// As in `Step`.
        refresh: u32,
    },
    /// Tokens are held back and always verified.
    Lossless {
        /// Most tokens held back, ≥ 1.
        tokens: u32,
    },
    /// Shadow weights only.
    Shadow,
}

impl Policy {
    /// Most rows that one shadow pass of one sequence can need: the window, what is refreshed, and the
    /// step itself.
    pub fn pass_rows(self) -> u64 {
        let (window, refresh) = match self {
            Self::Step { refresh } => (0, refresh),
            Self::Window { tokens, refresh } => (tokens, refresh),
            Self::Lossless { tokens } => (tokens, 0),
            Self::Off | Self::Observe | Self::Shadow => (0, 0),
        };
        u64::from(window) + u64::from(refresh) + 1
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Observe => f.write_str("observe"),
            Self::Step { .. } => f.write_str("step"),
            Self::Window { tokens, .. } => write!(f, "window({tokens})"),
            Self::Lossless { tokens } => write!(f, "lossless({tokens})"),
            Self::Shadow => f.write_str("shadow"),
        }
    }
}

/// What ends a sequence besides its length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stop {
    /// End-of-sequence tokens of the model; empty under `ignore_eos`. Add no text.
    pub eos: Vec<Token>,
    /// Further ids that stop; add no text either.
    pub tokens: Vec<Token>,
    /// Texts that stop; the text is cut before them. None is empty.
    pub strings: Vec<String>,
}

/// Where the gate of a request comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GateChoice {
    /// This one.
    Fixed(Gate),
    /// That of the candidate under which the prompt's entropies are likeliest, see
    /// [`rewind_monitor::prompt`]. At least one. Chosen once, when the prompt has been read, and told by
    /// [`crate::Event::GateChosen`]; not under [`Policy::Off`], which measures nothing.
    ByPrompt(Arc<[Candidate]>),
}

impl From<Gate> for GateChoice {
    fn from(gate: Gate) -> Self {
        Self::Fixed(gate)
    }
}

/// One generation request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Token ids of the prompt, not empty.
    pub prompt: Vec<Token>,
    /// Most tokens to generate, ≥ 1.
    pub max_tokens: u32,
    /// EOS and stop tokens may not be chosen before this many tokens, and stop strings are looked
    /// for only from this token on.
    pub min_tokens: u32,
    /// What ends the sequence.
    pub stop: Stop,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When the shadow steps in.
    pub policy: Policy,
    /// Detector and threshold, frozen, or those to choose from.
    pub gate: GateChoice,
    /// Weights of the prompt pass.
    pub prefill: Weights,
    /// Log-probabilities to return per token (0: the chosen one's only).
    pub logprobs: Option<u8>,
}

/// Why a request was not taken. Each says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A token id is not in the vocabulary.
    #[error("prompt token {token} at index {index} is outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        token: Token,
        /// Its place in the prompt.
        index: usize,
        /// Ids are below this.
        vocabulary: u32,
    },
    /// Nothing was asked for.
    #[error("max_tokens is 0: ask for at least one token")]
    NoTokens,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens: the model takes at most {limit} together with at least one new token"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: u64,
        /// Longest sequence.
        limit: u32,
    },
    /// It could not run even alone.
    #[error(
        "the request needs {needed} KV pages and the cache has {pages}: shorten it or raise kv_memory"
    )]
    NeverFits {
        /// Pages for prompt, answer and window.
        needed: u64,
        /// Pages there are.
        pages: u32,
    },
    /// The queue is at `max_queue`.
    #[error("{waiting} requests are waiting already, the limit is {limit}: try again later")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// `max_queue`.
        limit: usize,
    },
    /// The prompt has no gate to choose.
    #[error(
        "the gate is to be chosen by the prompt and there are no candidates: give at least one"
    )]
    NoGate,
    /// The policy and another setting exclude each other.
    #[error("{0}")]
    BadPolicy(String),
}
