//! What a trace tells of each position.

use rewind_engine::Token;
use rewind_monitor::Statistics;
use rewind_monitor::prompt::PromptSummary;

/// Draft and shadow over one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What the entropies of its prompt look like to the shadow, in the rows that would choose a profile.
    pub prompt: PromptSummary,
    /// One for each position after the prompt, in order.
    pub records: Vec<Record>,
}

/// Draft and shadow at one position, each with a past that it read itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Place of the token that was fed, from 0.
    pub position: u32,
    /// That token.
    pub fed: Token,
    /// The draft.
    pub draft: Side,
    /// The shadow.
    pub shadow: Side,
    /// KL(shadow ‖ draft) of the raw distributions, nats.
    pub divergence: f32,
    /// What the draft's greedy choice costs: max log p_shadow − log p_shadow(choice), nats; 0 where they agree.
    pub regret: f32,
    /// With noise, in the order of [`TraceSettings::temperatures`](crate::TraceSettings::temperatures).
    pub sampled: Vec<Sampled>,
    /// The chip at that time.
    pub chip: Reading,
}

impl Record {
    /// Whether greedy draft and greedy shadow choose the same token.
    pub fn agrees(&self) -> bool {
        self.draft.token == self.shadow.token
    }
}

/// One copy of the weights at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    /// The greedy choice.
    pub token: Token,
    /// The executor's own statistics, with the greedy margin.
    pub statistics: Statistics,
}

/// Choices by the sampling contract, both with the same noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The temperature, above 0.
    pub temperature: f32,
    /// The draft's.
    pub draft: Token,
    /// The shadow's.
    pub shadow: Token,
    /// The draft's margin: how far apart the best two perturbed scores are, times the temperature; nats.
    pub margin: f32,
}

/// What sensors say; `None` without one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Temperature of the chip, °C.
    pub celsius: Option<f32>,
    /// Its clock, MHz.
    pub megahertz: Option<f32>,
}
