//! What thresholds aim at, and the threshold that gets there.

use std::fmt;

/// What a threshold is chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this share of steps is flagged, 0 to 1.
    Budget(f64),
    /// At least this share of the steps where draft and shadow differ is flagged, 0 to 1.
    Recall(f64),
    /// Once flagged steps are repaired, the mean shadow regret of all steps is at most this, nats.
    Regret(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget(share) => write!(f, "budget {share}"),
            Self::Recall(share) => write!(f, "recall {share}"),
            Self::Regret(nats) => write!(f, "regret {nats}"),
        }
    }
}

/// A step as a threshold is chosen for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Risk, not NaN.
    pub(crate) score: f32,
    /// Whether draft and shadow differ.
    pub(crate) differs: bool,
    /// Regret if it is not flagged, nats.
    pub(crate) regret: f64,
}

impl Target {
    /// The threshold that meets the target on these steps with a gate that flags scores above it: of those that do,
    /// the one with the most flagged for a budget, and with the fewest for the others. It is the highest score that
    /// is not flagged, so that it is an f32 and rounds to itself.
    ///
    /// Where every step must be flagged, it is just below the lowest score.
    pub(crate) fn threshold(self, mut steps: Vec<Candidate>) -> f32 {
        steps.sort_by(|a, b| b.score.total_cmp(&a.score));
        let flagged = self.flagged(&steps);
        // Infinite scores are of steps that nothing can flag or pass; a profile holds finite numbers.
        match (steps.get(flagged), steps.last()) {
            (Some(highest), _) => highest.score,
            (None, Some(lowest)) => lowest.score.next_down(),
            (None, None) => f32::MAX,
        }
        .clamp(f32::MIN, f32::MAX)
    }

    /// How many of the sorted steps are flagged: never a part of a tie.
    fn flagged(self, steps: &[Candidate]) -> usize {
        let whole = |&count: &usize| {
            count == 0 || count == steps.len() || steps[count - 1].score > steps[count].score
        };
        let mut counts = (0..=steps.len()).filter(whole);
        match self {
            Self::Budget(share) => {
                // A share such as 0.3 of 10 must not lose a step to rounding.
                let most = share * steps.len() as f64 + 1e-9;
                counts.take_while(|&count| count as f64 <= most).last().unwrap_or(0)
            }
            Self::Recall(share) => {
                let differences = steps.iter().filter(|step| step.differs).count();
                let least = share * differences as f64 - 1e-9;
                let caught = running(steps, |step| f64::from(u8::from(step.differs)));
                counts.find(|&count| caught[count] >= least).unwrap_or(steps.len())
            }
            Self::Regret(nats) => {
                let repaired = running(steps, |step| step.regret);
                let all = repaired[steps.len()];
                let most = nats * steps.len() as f64 + 1e-9;
                counts.find(|&count| all - repaired[count] <= most).unwrap_or(steps.len())
            }
        }
    }
}

/// Sums over the first 0, 1, 2 … steps.
fn running(steps: &[Candidate], value: impl Fn(&Candidate) -> f64) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = steps.iter().map(|step| {
        sum += value(step);
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(score: f32, regret: f64) -> Candidate {
        Candidate { score, differs: regret > 0.0, regret }
    }

    #[test]
    fn known_thresholds() {
        let steps = vec![step(4.0, 0.5), step(3.0, 0.0), step(2.0, 0.3), step(1.0, 0.0)];
        let of = |target: Target| target.threshold(steps.clone());
        assert_eq!(of(Target::Budget(0.0)), 4.0);
        assert_eq!(of(Target::Budget(0.5)), 2.0);
        assert_eq!(of(Target::Budget(0.74)), 2.0);
        assert_eq!(of(Target::Recall(0.5)), 3.0);
        assert_eq!(of(Target::Recall(0.51)), 1.0);
        assert_eq!(of(Target::Regret(0.2)), 4.0);
        assert_eq!(of(Target::Regret(0.19)), 3.0);
        assert_eq!(of(Target::Regret(0.0)), 1.0);
        assert!(of(Target::Budget(1.0)) < 1.0);
        // A tie is flagged as a whole or not at all.
        let tied = vec![step(1.0, 0.1); 3];
        assert_eq!(Target::Budget(0.5).threshold(tied.clone()), 1.0);
        assert!(Target::Recall(0.1).threshold(tied) < 1.0);
        assert!(Target::Budget(0.5).threshold(Vec::new()).is_finite());
    }

    #[test]
    fn targets_are_written_as_they_are_given() {
        assert_eq!(Target::Budget(0.2).to_string(), "budget 0.2");
        assert_eq!(Target::Regret(0.001).to_string(), "regret 0.001");
    }

    proptest! {
        #[test]
        fn targets_are_met_where_they_can_be(
            steps in prop::collection::vec((-20i8..20, prop::option::of(0.0..2.0_f64)), 1..100),
            share in 0.0..1.0_f64,
        ) {
            let steps: Vec<_> = steps
                .iter()
                .map(|&(score, regret)| Candidate {
                    score: f32::from(score),
                    differs: regret.is_some(),
                    regret: regret.unwrap_or(0.0),
                })
                .collect();
            let count = steps.len() as f64;
            let split = |target: Target| {
                let threshold = target.threshold(steps.clone());
                steps.iter().partition::<Vec<_>, _>(|step| step.score > threshold)
            };
            let (flagged, _) = split(Target::Budget(share));
            prop_assert!(flagged.len() as f64 <= share * count + 1e-6);
            let (flagged, passed) = split(Target::Recall(share));
            let differ = |steps: &[Candidate]| steps.iter().filter(|s| s.differs).count() as f64;
            prop_assert!(differ(&flagged) >= share * differ(&steps) - 1e-6);
            prop_assert!(passed.len() + flagged.len() == steps.len());
            let (_, passed) = split(Target::Regret(share));
            let left: f64 = passed.iter().map(|step| step.regret).sum();
            prop_assert!(left <= share * count + 1e-6);
        }
    }
}
