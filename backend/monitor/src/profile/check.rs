//! Whether the numbers of a profile can be used.

use super::{Profile, ProfileError};
use crate::DetectorName;

/// Largest weight of the fused detector: far beyond any fit, and no score overflows.
const LARGEST_WEIGHT: f64 = 1e6;

/// What a number must be.
#[derive(Clone, Copy)]
enum Allowed {
    Finite,
    NotNegative,
    Positive,
    Share,
    Weight,
}

impl Allowed {
    fn fits(self, value: f64) -> bool {
        match self {
            Self::Finite => value.is_finite(),
            Self::NotNegative => value.is_finite() && value >= 0.0,
            Self::Positive => value.is_finite() && value > 0.0,
            Self::Share => (0.0..=1.0).contains(&value),
            Self::Weight => (-LARGEST_WEIGHT..=LARGEST_WEIGHT).contains(&value),
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Finite => "finite",
            Self::NotNegative => "finite and not negative",
            Self::Positive => "finite and above 0",
            Self::Share => "from 0 to 1",
            Self::Weight => "from -1e6 to 1e6",
        }
    }
}

/// Checks one profile, naming it and the key.
pub(super) struct Check<'a>(pub(super) &'a Profile);

impl Check<'_> {
    pub(super) fn all(&self) -> Result<(), ProfileError> {
        let profile = self.0;
        let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let name = &profile.name;
        if !(1..=64).contains(&name.len()) || !name.chars().all(sign) || name == super::AUTO {
            return Err(ProfileError::Name(name.clone()));
        }
        self.number("thermal_slope", profile.thermal_slope, Allowed::Share)?;
        self.fitted()?;
        self.detectors()?;
        self.evidence()?;
        if let Some(noise) = profile.margin_noise {
            self.number("margin_noise.sigma", noise.sigma, Allowed::Positive)?;
            let key = "margin_noise.sigma_interval";
            self.interval(key, noise.sigma_interval, Allowed::NotNegative)?;
        }
        if let Some(prompt) = profile.prompt {
            self.number("prompt.mean", prompt.mean, Allowed::NotNegative)?;
            self.number("prompt.mean_deviation", prompt.mean_deviation, Allowed::Positive)?;
            self.number("prompt.spread", prompt.spread, Allowed::NotNegative)?;
            self.number("prompt.spread_deviation", prompt.spread_deviation, Allowed::Positive)?;
        }
        for (&layer, exit) in &profile.exits {
            if layer == 0 {
                return Err(self.error("exits".into(), 0.0, "a number of layers of at least 1"));
            }
            self.number(&format!("exits.{layer}.top1"), exit.top1, Allowed::Share)?;
        }
        Ok(())
    }

    fn fitted(&self) -> Result<(), ProfileError> {
        let Some(fitted) = &self.0.fitted else { return Ok(()) };
        match (fitted.disagreements, fitted.tokens) {
            (Some(disagreements), Some(tokens)) if disagreements > tokens => Err(self.error(
                "fitted.disagreements".into(),
                disagreements.into(),
                "at most fitted.tokens",
            )),
            _ => Ok(()),
        }
    }

    fn detectors(&self) -> Result<(), ProfileError> {
        let detectors = &self.0.detectors;
        for detector in DetectorName::ALL {
            let Some(threshold) = detectors.of(detector) else { continue };
            let key = |part| format!("detectors.{detector}.{part}");
            self.number(&key("base"), threshold.base, Allowed::Finite)?;
            self.number(&key("noise_floor"), threshold.noise_floor, Allowed::NotNegative)?;
        }
        let Some(fused) = detectors.fused else { return Ok(()) };
        for (part, weight) in [
            ("bias", fused.bias),
            ("entropy", fused.entropy),
            ("varentropy", fused.varentropy),
            ("ln_top1", fused.ln_top1),
            ("margin", fused.margin),
        ] {
            self.number(&format!("detectors.fused.{part}"), weight, Allowed::Weight)?;
        }
        Ok(())
    }

    fn evidence(&self) -> Result<(), ProfileError> {
        for (detector, evidence) in &self.0.evidence {
            let key = |part| format!("evidence.{detector}.{part}");
            self.number(&key("auc"), evidence.auc, Allowed::Share)?;
            self.interval(&key("auc_interval"), evidence.auc_interval, Allowed::Share)?;
            self.number(&key("rate"), evidence.rate, Allowed::Share)?;
            self.number(&key("caught"), evidence.caught, Allowed::Share)?;
            let mut last = [0.0; 2];
            for point in &evidence.roc {
                for (&value, last) in point.iter().zip(last) {
                    self.number(&key("roc"), value, Allowed::Share)?;
                    if value < last {
                        return Err(self.error(
                            key("roc"),
                            value,
                            "no smaller than in the point before",
                        ));
                    }
                }
                last = *point;
            }
        }
        Ok(())
    }

    fn interval(
        &self,
        key: &str,
        [low, high]: [f64; 2],
        allowed: Allowed,
    ) -> Result<(), ProfileError> {
        self.number(key, low, allowed)?;
        self.number(key, high, allowed)?;
        if high < low {
            return Err(self.error(key.into(), high, "low, then high"));
        }
        Ok(())
    }

    fn number(&self, key: &str, value: f64, allowed: Allowed) -> Result<(), ProfileError> {
        if allowed.fits(value) {
            Ok(())
        } else {
            Err(self.error(key.into(), value, allowed.text()))
        }
    }

    fn error(&self, key: String, value: f64, allowed: &'static str) -> ProfileError {
        ProfileError::OutOfRange { profile: self.0.name.clone(), key, value, allowed }
    }
}
