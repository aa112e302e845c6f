//! The tables of a profile file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DetectorName, Fused};

/// What a profile was fitted on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Numeric identity of the draft.
    pub identity: String,
    /// Fingerprint of the model.
    pub model: String,
    /// Names of the documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<String>,
    /// Positions that the fit saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// Positions that were held out, in documents of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_tokens: Option<u32>,
    /// Positions of the fit where draft and shadow chose different tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreements: Option<u32>,
    /// What the thresholds aim at, such as `budget 0.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Thresholds by detector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detectors {
    /// Of [`DetectorName::Entropy`].
    pub entropy: Threshold,
    /// Of [`DetectorName::Top1`].
    pub top1: Threshold,
    /// Of [`DetectorName::Margin`].
    pub margin: Threshold,
    /// Of [`DetectorName::Fused`], which only a fit can give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused: Option<FusedThreshold>,
}

/// The two parts of an execution threshold, in the unit of the detector's score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// The base, finite.
    pub base: f64,
    /// The noise floor Nf that KT scales, finite and not negative.
    pub noise_floor: f64,
}

/// The threshold of the fused detector and its weights, each from −10⁶ to 10⁶; [`Fused`] has the formula.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusedThreshold {
    /// The base, finite.
    pub base: f64,
    /// The noise floor Nf that KT scales, finite and not negative.
    pub noise_floor: f64,
    /// The logit where every feature is 0.
    pub bias: f64,
    /// Of the entropy, per nat.
    pub entropy: f64,
    /// Of the varentropy, per nat².
    pub varentropy: f64,
    /// Of ln top1, per nat.
    pub ln_top1: f64,
    /// Of the margin, per nat.
    pub margin: f64,
}

/// How well a detector does on the documents that were held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Area under the ROC curve, 0 to 1.
    pub auc: f64,
    /// Its 95 % interval, from a bootstrap over documents: low, high.
    pub auc_interval: [f64; 2],
    /// Share of steps above the threshold at KT = 1, 0 to 1.
    pub rate: f64,
    /// Share of the disagreements among those steps, 0 to 1.
    pub caught: f64,
    /// Points of the curve, rising: share of the agreeing steps that are flagged, share of the
    /// disagreements that are caught.
    #[serde(default)]
    pub roc: Vec<[f64; 2]>,
}

/// How far quantization moves the difference of the two best logits: P(disagree) ≈ Φ(−margin/σ).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarginNoise {
    /// σ in nats, positive.
    pub sigma: f64,
    /// Its 95 % interval: low, high.
    pub sigma_interval: [f64; 2],
}

/// When an early exit at one layer may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// The exit's largest probability must be at least this, 0 to 1.
    pub top1: f64,
}

impl Detectors {
    /// The threshold of a detector; `None` if the profile has no weights for it.
    pub fn of(&self, detector: DetectorName) -> Option<Threshold> {
        match detector {
            DetectorName::Entropy => Some(self.entropy),
            DetectorName::Top1 => Some(self.top1),
            DetectorName::Margin => Some(self.margin),
            DetectorName::Fused => self.fused.map(FusedThreshold::threshold),
        }
    }
}

impl FusedThreshold {
    /// Base and noise floor.
    pub fn threshold(self) -> Threshold {
        Threshold { base: self.base, noise_floor: self.noise_floor }
    }

    /// The weights, each rounded to f32.
    pub fn weights(self) -> Fused {
        Fused {
            bias: self.bias as f32,
            entropy: self.entropy as f32,
            varentropy: self.varentropy as f32,
            ln_top1: self.ln_top1 as f32,
            margin: self.margin as f32,
        }
    }
}

/// Evidence by detector.
pub type EvidenceTables = BTreeMap<DetectorName, Evidence>;

/// Exits by the number of layers before them.
pub type Exits = BTreeMap<u16, Exit>;
