//! Domain profiles: base threshold and noise floor of each detector, and what they were fitted on.
//!
//! A profile is a TOML file. `rewind calibrate` writes one; this is all that there can be:
//!
//! ```toml
//! version = 1
//! name = "code"
//! description = "Source code"
//! thermal_slope = 0.01        # growth of KT per °C; this is the default
//!
//! [fitted]                    # absent in a profile that was set by hand
//! identity = "int4-g32 a8 cpu avx2"
//! model = "fingerprint of the weights"
//! text = ["a.txt", "b.txt"]   # from here on optional
//! tokens = 12345
//! test_tokens = 5678
//! disagreements = 321
//! target = "budget 0.2"
//!
//! [detectors.entropy]         # likewise top1 and margin
//! base = 3.35
//! noise_floor = 0.15
//!
//! [detectors.fused]           # optional, as is everything below
//! base = 0.1
//! noise_floor = 0.2
//! bias = -1.0
//! entropy = 0.3
//! varentropy = 0.1
//! ln_top1 = -0.2
//! margin = -1.5
//!
//! [evidence.margin]           # likewise for the other detectors; on documents that were held out
//! auc = 0.95
//! auc_interval = [0.94, 0.96]
//! rate = 0.2
//! caught = 0.85
//! roc = [[0.01, 0.2], [0.02, 0.3]]
//!
//! [margin_noise]
//! sigma = 0.4
//! sigma_interval = [0.38, 0.42]
//!
//! [prompt]                    # for `profile: auto`
//! mean = 2.1
//! mean_deviation = 0.4
//! spread = 1.3
//! spread_deviation = 0.3
//!
//! [exits.12]                  # an early exit after 12 layers
//! top1 = 0.95
//! ```
//!
//! A key that is not known is an error: a misspelt threshold must not silently be another one.

mod check;
mod tables;

use serde::{Deserialize, Serialize};

pub use tables::{
    Detectors, Evidence, EvidenceTables, Exit, Exits, Fitted, FusedThreshold, MarginNoise,
    Threshold,
};

use crate::prompt::PromptEntropies;
use crate::{Celsius, Detector, DetectorName, Gate, thermal};

/// The one version of the format.
pub const VERSION: u32 = 1;

/// What requests and models name instead of a profile, to have one chosen by the prompt. No profile may
/// bear it.
pub const AUTO: &str = "auto";

/// Profiles that come with this crate: name and text.
const BUILTIN: [(&str, &str); 1] = [("default", include_str!("../../profiles/default.toml"))];

/// A domain profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Name, as requests give it: letters, digits, `-`, `_` and `.`; not [`AUTO`].
    pub name: String,
    /// What it is for, one line.
    #[serde(default)]
    pub description: String,
    /// Growth of KT per °C above the reference, 0 to 1.
    #[serde(default = "default_slope")]
    pub thermal_slope: f64,
    /// What it was fitted on; `None` if it was set by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted: Option<Fitted>,
    /// Thresholds by detector.
    pub detectors: Detectors,
    /// How well the detectors do.
    #[serde(default, skip_serializing_if = "EvidenceTables::is_empty")]
    pub evidence: EvidenceTables,
    /// The noise of the margin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_noise: Option<MarginNoise>,
    /// How prompts of this domain are told from others; without it [`AUTO`] never chooses the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptEntropies>,
    /// Early exits by the number of layers before them.
    #[serde(default, skip_serializing_if = "Exits::is_empty")]
    pub exits: Exits,
}

/// Why a profile cannot be used. Each says what would be right.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// The text is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("not a valid profile: {0}")]
    Syntax(#[from] toml::de::Error),
    /// The format is another one.
    #[error("the profile has version {found}: this build reads version {VERSION}")]
    Version {
        /// The file's version.
        found: i64,
    },
    /// The name could not be given in a request.
    #[error(
        "the profile's name is {0:?}: use 1 to 64 letters, digits, '-', '_' and '.', but not \"auto\""
    )]
    Name(String),
    /// A number is out of its range.
    #[error("profile {profile:?}: {key} is {value}: it must be {allowed}")]
    OutOfRange {
        /// The profile's name.
        profile: String,
        /// The key, with its tables.
        key: String,
        /// Its value.
        value: f64,
        /// What would be right.
        allowed: &'static str,
    },
    /// The profile has no weights for the detector.
    #[error(
        "profile {profile:?} has no [detectors.fused]: fit one by `rewind calibrate`, or choose entropy, \
         top1 or margin"
    )]
    NoFused {
        /// The profile's name.
        profile: String,
    },
    /// No profile of that name comes with this build.
    #[error("unknown profile {name:?}: the built-in ones are {}", .known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
}

impl Profile {
    /// Reads a profile file's text.
    ///
    /// # Errors
    /// The text is not a profile of this version, or a value is out of its range.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        // The version first: keys of another version are not mistakes.
        let VersionOnly { version } = toml::from_str(text)?;
        if let Some(found) = version.filter(|&found| found != i64::from(VERSION)) {
            return Err(ProfileError::Version { found });
        }
        let profile: Self = toml::from_str(text)?;
        check::Check(&profile).all()?;
        Ok(profile)
    }

    /// The text of a profile file; [`Profile::parse`] gives the same profile back.
    pub fn to_toml(&self) -> String {
        // Serialization fails only on types that TOML lacks, and the struct has none of them.
        toml::to_string(self).expect("a struct of strings, numbers and tables is valid TOML")
    }

    /// A profile that comes with this crate.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`] if there is none of that name.
    pub fn builtin(name: &str) -> Result<Self, ProfileError> {
        match BUILTIN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(text),
            None => Err(ProfileError::Unknown {
                name: name.into(),
                known: Self::builtin_names().collect(),
            }),
        }
    }

    /// Names of the profiles that come with this crate.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.into_iter().map(|(name, _)| name)
    }

    /// KT for a chip, ≥ 1; 1 without a temperature.
    pub fn thermal_coefficient(&self, chip: Option<Celsius>) -> f32 {
        thermal::thermal_coefficient(chip, self.thermal_slope)
    }

    /// The detector with its execution threshold, `noise_floors` noise floors above the base: the
    /// thermal coefficient KT, and the offset of a [`crate::Controller`] if there is one.
    ///
    /// # Errors
    /// [`ProfileError::NoFused`] if it is the fused one and the profile has no weights for it.
    pub fn gate(&self, detector: DetectorName, noise_floors: f32) -> Result<Gate, ProfileError> {
        let Detectors { entropy, top1, margin, fused } = self.detectors;
        let (detector, threshold) = match detector {
            DetectorName::Entropy => (Detector::Entropy, entropy),
            DetectorName::Top1 => (Detector::Top1, top1),
            DetectorName::Margin => (Detector::Margin, margin),
            DetectorName::Fused => {
                let none = || ProfileError::NoFused { profile: self.name.clone() };
                let fused = fused.ok_or_else(none)?;
                (Detector::Fused(fused.weights()), fused.threshold())
            }
        };
        let Threshold { base, noise_floor } = threshold;
        Ok(Gate {
            detector,
            threshold: thermal::execution_threshold(base, noise_floor, noise_floors),
        })
    }

    /// A warning that names both, if the profile was fitted on another numeric identity.
    pub fn warn_if_fitted_elsewhere(&self, identity: &str) -> Option<String> {
        let fitted = self.fitted.as_ref().filter(|fitted| fitted.identity != identity)?;
        Some(format!(
            "profile {:?} was fitted on {:?} and is used on {identity:?}: its thresholds may be wrong \
             here, calibrate again",
            self.name, fitted.identity
        ))
    }
}

/// A profile of any version.
#[derive(Deserialize)]
struct VersionOnly {
    version: Option<i64>,
}

fn default_slope() -> f64 {
    thermal::DEFAULT_SLOPE
}

#[cfg(test)]
mod tests;
