//! What one row of logits says about the next token.

use std::hash::{Hash, Hasher};

/// Uncertainty of one next-token distribution, from the raw logits at temperature 1 in f32.
///
/// Equality and hashing are by bits, so that a state that holds statistics can be compared and
/// model-checked.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// Shannon entropy H in nats, 0 ..= ln(vocabulary).
    pub entropy: f32,
    /// Variance of the surprisal, Σ p (ln p + H)², in nats².
    pub varentropy: f32,
    /// Largest probability, 0 ..= 1.
    pub top1: f32,
    /// Gap in nats between the two best scores that the choice was made from (design: margin), ≥ 0;
    /// `f32::INFINITY` when there was nothing to choose between.
    pub margin: f32,
    /// False if any logit of the row is NaN or infinite; the other fields then mean nothing.
    pub finite: bool,
}

impl Statistics {
    /// Of a row that was not measured but for being finite.
    pub const UNMEASURED: Self =
        Self { entropy: 0.0, varentropy: 0.0, top1: 0.0, margin: 0.0, finite: true };

    /// The statistics of a row that held a NaN or an infinity.
    pub const NOT_FINITE: Self = Self {
        entropy: f32::NAN,
        varentropy: f32::NAN,
        top1: f32::NAN,
        margin: f32::NAN,
        finite: false,
    };

    fn bits(&self) -> (u32, u32, u32, u32, bool) {
        (
            self.entropy.to_bits(),
            self.varentropy.to_bits(),
            self.top1.to_bits(),
            self.margin.to_bits(),
            self.finite,
        )
    }
}

impl PartialEq for Statistics {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Statistics {}

impl Hash for Statistics {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}
