//! A calibration as a profile file.

use rewind_monitor::profile::{Detectors, Evidence, Exits, Fitted, Profile, VERSION};
use rewind_monitor::thermal;

use crate::calibration::Calibration;

impl Calibration {
    /// The profile of this domain, under a name of one's choice. `identity` and `model` say what was calibrated: the
    /// draft's numeric identity and the model's fingerprint; `text` what was read.
    pub fn profile(
        &self,
        name: &str,
        description: &str,
        identity: &str,
        model: &str,
        text: Vec<String>,
    ) -> Profile {
        let count = |count: usize| Some(u32::try_from(count).unwrap_or(u32::MAX));
        Profile {
            version: VERSION,
            name: name.to_owned(),
            description: description.to_owned(),
            thermal_slope: thermal::DEFAULT_SLOPE,
            fitted: Some(Fitted {
                identity: identity.to_owned(),
                model: model.to_owned(),
                text,
                tokens: count(self.train.steps),
                test_tokens: count(self.test.steps),
                disagreements: count(self.train.disagreements),
                target: Some(self.target.clone()),
            }),
            detectors: Detectors {
                entropy: self.thresholds.entropy.parts(),
                top1: self.thresholds.top1.parts(),
                margin: self.thresholds.margin.parts(),
                fused: Some(self.fused),
            },
            evidence: self
                .detectors
                .iter()
                .filter_map(|judged| {
                    // Without a disagreement in the test half there is nothing to tell.
                    let evidence = Evidence {
                        auc: judged.auc?,
                        auc_interval: judged.auc_interval?,
                        rate: judged.rate?,
                        caught: judged.caught?,
                        roc: judged.roc.iter().map(|point| point.map(rounded)).collect(),
                    };
                    Some((judged.detector, evidence))
                })
                .collect(),
            margin_noise: self.margin_noise,
            prompt: self.prompt,
            exits: Exits::new(),
        }
    }
}

/// A curve is to be looked at: four digits.
fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}
