//! What the engine tells about its sequences.

use std::fmt;
use std::sync::Arc;

use rewind_monitor::Statistics;

use crate::executor::{Token, TokenLogprob};
use crate::request::RequestId;

/// How a committed token came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    /// The draft's token, not checked.
    Draft,
    /// The shadow ran and agreed, or chose it with no draft to compare (first token, bonus token).
    Verified,
    /// The shadow replaced the draft's token.
    Rewound,
    /// Policy `shadow`.
    Shadow,
}

impl Decision {
    /// Every decision.
    pub const ALL: [Self; 4] = [Self::Draft, Self::Verified, Self::Rewound, Self::Shadow];

    /// Name in answers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Verified => "verified",
            Self::Rewound => "rewound",
            Self::Shadow => "shadow",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why draft KV was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RewindReason {
    /// A step's score exceeded the threshold (`step`, `window`).
    Suspect,
    /// A draft row was not finite.
    NotFinite,
    /// The shadow disagreed with a token that was always to be verified (`lossless`).
    Mismatch,
}

impl RewindReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Suspect, Self::NotFinite, Self::Mismatch];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::NotFinite => "not_finite",
            Self::Mismatch => "mismatch",
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FinishReason {
    /// EOS, a stop token or a stop string.
    Stop,
    /// max_tokens or the longest sequence.
    Length,
}

impl FinishReason {
    /// Name in answers, as vLLM has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// One committed token. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Committed {
    /// The token.
    pub token: Token,
    /// Text that became certain with it: whole characters, no possible start of a stop string.
    pub text: String,
    /// Statistics as judged: the draft's where a draft was judged, else the shadow's. `None` under
    /// `off`.
    pub statistics: Option<Statistics>,
    /// How it came to be.
    pub decision: Decision,
    /// Log-probabilities, if asked for, of the weights that the token came from.
    pub logprobs: Arc<[TokenLogprob]>,
}

/// Something happened to a request. Exactly one of `Finished`, `Cancelled`, `Failed` ends each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A token was committed.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        committed: Committed,
    },
    /// The prompt has chosen the request's gate; comes once, before its first token.
    GateChosen {
        /// The request.
        id: RequestId,
        /// Index in the candidates of [`crate::GateChoice::ByPrompt`].
        candidate: usize,
    },
    /// Draft KV was discarded.
    Rewound {
        /// The request.
        id: RequestId,
        /// Why.
        reason: RewindReason,
        /// Drafted tokens thrown away: those the shadow replaced or that came after such a one.
        tokens: u32,
    },
    /// The sequence ended well.
    Finished {
        /// The request.
        id: RequestId,
        /// Why it ended.
        reason: FinishReason,
        /// Text that was still held back.
        text: String,
    },
    /// The sequence was cancelled; its pages are free.
    Cancelled {
        /// The request.
        id: RequestId,
    },
    /// The sequence failed; its pages are free.
    Failed {
        /// The request.
        id: RequestId,
        /// What went wrong.
        error: SequenceError,
    },
}

impl Event {
    /// The request it belongs to.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Token { id, .. }
            | Self::GateChosen { id, .. }
            | Self::Rewound { id, .. }
            | Self::Finished { id, .. }
            | Self::Cancelled { id }
            | Self::Failed { id, .. } => *id,
        }
    }

    /// Whether nothing follows for that request.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Cancelled { .. } | Self::Failed { .. })
    }
}

/// Why a sequence failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SequenceError {
    /// NaN or infinity where no shadow pass could help.
    #[error("the {weights} weights gave logits that are not finite at position {position}")]
    NotFinite {
        /// `draft` or `shadow`.
        weights: &'static str,
        /// Absolute position of the row.
        position: u32,
    },
    /// The device could not run a pass of this sequence.
    #[error("{0}")]
    Executor(String),
}
