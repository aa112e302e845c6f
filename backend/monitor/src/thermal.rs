//! How the chip's temperature moves the execution threshold.
//!
//! ```text
//! KT = 1 + max(0, T − 30) · slope          CL = base + Nf · KT
//! ```
//!
//! A hot chip raises the noise floor and so the threshold: fewer steps are redone where redoing them
//! costs most. Without a temperature KT is 1.

use std::fmt;

/// A temperature in °C.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Celsius(pub f32);

impl fmt::Display for Celsius {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} °C", self.0)
    }
}

/// Up to this temperature KT is 1.
pub const REFERENCE: Celsius = Celsius(30.0);

/// Growth of KT per °C unless a profile says otherwise.
pub const DEFAULT_SLOPE: f64 = 0.01;

/// The thermal coefficient KT, ≥ 1. `slope` is per °C and not negative.
pub fn thermal_coefficient(chip: Option<Celsius>, slope: f64) -> f32 {
    let excess = chip.map_or(0.0, |chip| f64::from(chip.0) - f64::from(REFERENCE.0));
    (1.0 + excess.max(0.0) * slope) as f32
}

/// The execution threshold CL, in the unit of the detector's score.
pub fn execution_threshold(base: f64, noise_floor: f64, kt: f32) -> f32 {
    (base + noise_floor * f64::from(kt)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_coefficients() {
        let kt = |t: f32| thermal_coefficient(Some(Celsius(t)), DEFAULT_SLOPE);
        assert_eq!([kt(-5.0), kt(30.0), kt(80.0), kt(100.0)], [1.0, 1.0, 1.5, 1.7]);
        assert_eq!(thermal_coefficient(None, DEFAULT_SLOPE), 1.0);
        assert_eq!(thermal_coefficient(Some(Celsius(80.0)), 0.0), 1.0);
        assert_eq!(kt(f32::NAN), 1.0);
    }

    #[test]
    fn known_thresholds() {
        assert_eq!(execution_threshold(2.0, 0.15, 1.0), 2.15);
        assert_eq!(execution_threshold(2.0, 0.15, 1.5), 2.225);
        assert_eq!(execution_threshold(-0.35, 0.05, 1.0), -0.3);
    }
}
