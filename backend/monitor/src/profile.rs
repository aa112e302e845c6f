//! Domain profiles: base threshold and noise floor of each detector.
//!
//! A profile is a TOML file:
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
//!
//! [detectors.entropy]         # likewise top1 and margin
//! base = 3.35
//! noise_floor = 0.15
//! ```
//!
//! A key that is not known is an error: a misspelt threshold must not silently be another one.

use serde::{Deserialize, Serialize};

use crate::{Celsius, Detector, Gate, thermal};

/// The one version of the format.
pub const VERSION: u32 = 1;

/// Profiles that come with this crate: name and text.
const BUILTIN: [(&str, &str); 1] = [("default", include_str!("../profiles/default.toml"))];

/// A domain profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Name, as requests give it: letters, digits, `-`, `_` and `.`.
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
}

/// What a profile was fitted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Numeric identity of the draft.
    pub identity: String,
    /// Fingerprint of the model.
    pub model: String,
}

/// Thresholds by detector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detectors {
    /// Of [`Detector::Entropy`].
    pub entropy: Threshold,
    /// Of [`Detector::Top1`].
    pub top1: Threshold,
    /// Of [`Detector::Margin`].
    pub margin: Threshold,
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
    #[error("the profile's name is {0:?}: use 1 to 64 letters, digits, '-', '_' and '.'")]
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
        profile.check()?;
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

    /// The detector with its execution threshold at this thermal coefficient.
    pub fn gate(&self, detector: Detector, kt: f32) -> Gate {
        let Threshold { base, noise_floor } = self.detectors.of(detector);
        Gate { detector, threshold: thermal::execution_threshold(base, noise_floor, kt) }
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

    fn check(&self) -> Result<(), ProfileError> {
        let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=64).contains(&self.name.len()) || !self.name.chars().all(sign) {
            return Err(ProfileError::Name(self.name.clone()));
        }
        let out_of_range = |key: String, value, allowed| {
            Err(ProfileError::OutOfRange { profile: self.name.clone(), key, value, allowed })
        };
        if !(0.0..=1.0).contains(&self.thermal_slope) {
            return out_of_range("thermal_slope".into(), self.thermal_slope, "from 0 to 1");
        }
        for detector in Detector::ALL {
            let Threshold { base, noise_floor } = self.detectors.of(detector);
            if !base.is_finite() {
                return out_of_range(format!("detectors.{detector}.base"), base, "finite");
            }
            if !(noise_floor.is_finite() && noise_floor >= 0.0) {
                let key = format!("detectors.{detector}.noise_floor");
                return out_of_range(key, noise_floor, "finite and not negative");
            }
        }
        Ok(())
    }
}

impl Detectors {
    /// The threshold of a detector.
    pub fn of(&self, detector: Detector) -> Threshold {
        match detector {
            Detector::Entropy => self.entropy,
            Detector::Top1 => self.top1,
            Detector::Margin => self.margin,
        }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn default() -> Profile {
        Profile::builtin("default").unwrap()
    }

    /// The error of the default profile after a change of its text.
    fn error(from: &str, to: &str) -> String {
        let text = BUILTIN[0].1;
        assert!(text.contains(from), "{from:?} is not there to change");
        Profile::parse(&text.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn every_builtin_profile_is_valid_and_bears_its_name() {
        for name in Profile::builtin_names() {
            let profile = Profile::builtin(name).unwrap();
            assert_eq!(profile.name, name);
            assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
        }
    }

    #[test]
    fn gates_follow_the_temperature() {
        let profile = default();
        let threshold = |detector, celsius: f32| {
            profile.gate(detector, profile.thermal_coefficient(Some(Celsius(celsius)))).threshold
        };
        assert_eq!(threshold(Detector::Entropy, 25.0), 3.5);
        assert_eq!(threshold(Detector::Entropy, 80.0), 3.575);
        assert_eq!(threshold(Detector::Top1, 80.0), 0.825);
        assert_eq!(threshold(Detector::Margin, 30.0), -0.3);
        assert_eq!(profile.gate(Detector::Margin, 1.0).detector, Detector::Margin);
        assert_eq!(profile.thermal_coefficient(None), 1.0);
    }

    #[test]
    fn defaults_of_what_is_left_out() {
        let text = "version = 1\nname = 'x'\n[detectors]\nentropy = { base = 1, noise_floor = 0 }\n\
                    top1 = { base = 1, noise_floor = 0 }\nmargin = { base = 1, noise_floor = 0 }";
        let profile = Profile::parse(text).unwrap();
        assert_eq!(profile.thermal_slope, 0.01);
        assert_eq!((profile.description.as_str(), profile.fitted), ("", None));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("thermal_slope", "termal_slope").contains("unknown field `termal_slope`"));
        let misspelt = error("base = 3.35", "bas = 2.0");
        assert!(misspelt.contains("unknown field `bas`") && misspelt.contains("noise_floor"));
        assert!(error("[detectors.top1]", "[detectors.top2]").contains("unknown field `top2`"));
        let missing = error("noise_floor = 0.15", "");
        assert!(missing.contains("missing field `noise_floor`"), "{missing}");
        assert!(error("version = 1\n", "").contains("missing field `version`"));
        assert!(error("base = 3.35", "base = 'high'").contains("invalid type"));
        assert!(error("name = \"default\"", "name = ").starts_with("not a valid profile: "));
    }

    #[test]
    fn another_version_is_named_before_its_keys() {
        assert_eq!(
            error("version = 1\n", "version = 2\nnew_key = 1\n"),
            "the profile has version 2: this build reads version 1"
        );
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(
            error("noise_floor = 0.15", "noise_floor = -0.15"),
            "profile \"default\": detectors.entropy.noise_floor is -0.15: it must be finite and not \
             negative"
        );
        assert_eq!(
            error("base = -0.35", "base = nan"),
            "profile \"default\": detectors.margin.base is NaN: it must be finite"
        );
        assert!(
            error("noise_floor = 0.05", "noise_floor = inf").contains("top1.noise_floor is inf")
        );
        assert_eq!(
            error("thermal_slope = 0.01", "thermal_slope = -1"),
            "profile \"default\": thermal_slope is -1: it must be from 0 to 1"
        );
        assert!(error("name = \"default\"", "name = \"a b\"").contains("\"a b\""));
        assert!(error("name = \"default\"", "name = \"\"").contains("1 to 64"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        assert_eq!(
            Profile::builtin("defualt").unwrap_err().to_string(),
            "unknown profile \"defualt\": the built-in ones are default"
        );
    }

    #[test]
    fn a_profile_fitted_elsewhere_warns_and_names_both() {
        let mut profile = default();
        assert_eq!(profile.warn_if_fitted_elsewhere("here"), None);
        profile.fitted = Some(Fitted { identity: "there".into(), model: "m".into() });
        assert_eq!(profile.warn_if_fitted_elsewhere("there"), None);
        let warning = profile.warn_if_fitted_elsewhere("here").unwrap();
        assert!(warning.contains("\"there\"") && warning.contains("\"here\""), "{warning}");
    }

    proptest! {
        #[test]
        fn round_trips(
            name in "[a-zA-Z0-9._-]{1,64}",
            description: String,
            thermal_slope in 0.0..=1.0,
            figures in prop::array::uniform3((-1e6..1e6, 0.0..1e6)),
            fitted in prop::option::of((any::<String>(), any::<String>())),
        ) {
            let [entropy, top1, margin] =
                figures.map(|(base, noise_floor)| Threshold { base, noise_floor });
            let profile = Profile {
                version: VERSION,
                name,
                description,
                thermal_slope,
                fitted: fitted.map(|(identity, model)| Fitted { identity, model }),
                detectors: Detectors { entropy, top1, margin },
            };
            prop_assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
        }
    }
}
