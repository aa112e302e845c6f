//! Policies as configurations and requests name them.

use std::fmt;
use std::str::FromStr;

use rewind_engine::{Policy, Weights};

/// Names of the policies, for error messages and help texts.
pub const POLICY_NAMES: &str = "off, observe, step, window, lossless or shadow";

/// Policy as it is named in configurations and requests; its numbers are keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyName {
    /// [`Policy::Off`].
    Off,
    /// [`Policy::Observe`].
    Observe,
    /// [`Policy::Step`].
    Step,
    /// [`Policy::Window`].
    Window,
    /// [`Policy::Lossless`].
    Lossless,
    /// [`Policy::Shadow`].
    Shadow,
}

impl PolicyName {
    /// Every policy.
    pub const ALL: [Self; 6] =
        [Self::Off, Self::Observe, Self::Step, Self::Window, Self::Lossless, Self::Shadow];

    /// Name in configurations and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Step => "step",
            Self::Window => "window",
            Self::Lossless => "lossless",
            Self::Shadow => "shadow",
        }
    }

    /// The policy with its numbers.
    pub const fn with(self, window: u32, refresh: u32) -> Policy {
        match self {
            Self::Off => Policy::Off,
            Self::Observe => Policy::Observe,
            Self::Step => Policy::Step { refresh },
            Self::Window => Policy::Window { tokens: window, refresh },
            Self::Lossless => Policy::Lossless { tokens: window },
            Self::Shadow => Policy::Shadow,
        }
    }

    /// Weights that read the prompt unless something else is asked for: the draft's where the shadow
    /// is never used, the shadow's elsewhere.
    pub const fn prefill(self) -> Weights {
        match self {
            Self::Off | Self::Observe => Weights::Draft,
            Self::Step | Self::Window | Self::Lossless | Self::Shadow => Weights::Full,
        }
    }
}

impl PolicyName {
    /// Whether these weights may read the prompt.
    ///
    /// # Errors
    /// What is allowed instead: an answer that must be the shadow's cannot rest on draft KV.
    pub(crate) fn check_prefill(self, weights: Weights) -> Result<(), &'static str> {
        match (self, weights) {
            (Self::Lossless | Self::Shadow, Weights::Draft) => Err(
                "full under the policies lossless and shadow, whose answers must be the shadow's",
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not a policy's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {0:?}: expected {POLICY_NAMES}")]
pub struct UnknownPolicy(pub String);

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| UnknownPolicy(name.into()))
    }
}
