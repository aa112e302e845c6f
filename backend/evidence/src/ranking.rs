//! Steps in the order of their risk score, and what that order is worth.

use std::cmp::Ordering;

/// A step with a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Risk, not NaN.
    pub score: f32,
    /// Whether it was to be found: draft and shadow choose different tokens.
    pub differs: bool,
    /// The document that it is from, from 0.
    pub document: usize,
}

/// Steps, riskiest first.
#[derive(Clone, Debug)]
pub struct Ranking {
    steps: Vec<Step>,
}

impl Ranking {
    /// Sorts them.
    pub fn new(mut steps: Vec<Step>) -> Self {
        // −0 and 0 are one score for a gate.
        steps.iter_mut().for_each(|step| step.score += 0.0);
        steps.sort_by(|a, b| b.score.total_cmp(&a.score));
        Self { steps }
    }

    /// Area under the ROC curve: how often a step where the two differ has a higher score than one where they agree,
    /// ties counted half. `None` if there are not both.
    pub fn auc(&self) -> Option<f64> {
        self.auc_by(|_| 1.0)
    }

    /// As [`Ranking::auc`], where each step counts as often as its document does: `weights` has a number, not negative,
    /// for each document.
    pub fn weighted_auc(&self, weights: &[f64]) -> Option<f64> {
        self.auc_by(|document| weights.get(document).copied().unwrap_or(0.0))
    }

    fn auc_by(&self, weight: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut caught, mut passed, mut area) = (0.0, 0.0, 0.0);
        for ties in self.ties() {
            let (mut differ, mut agree) = (0.0, 0.0);
            for step in ties {
                *if step.differs { &mut differ } else { &mut agree } += weight(step.document);
            }
            area += agree * (caught + 0.5 * differ);
            caught += differ;
            passed += agree;
        }
        (caught > 0.0 && passed > 0.0).then(|| area / (caught * passed))
    }

    /// Share of the differences that are caught if this share of the steps is flagged, riskiest first; a tie that is
    /// cut counts in proportion. `None` if there is no difference.
    pub fn caught(&self, share: f64) -> Option<f64> {
        let total = self.differences();
        let mut left = share.clamp(0.0, 1.0) * self.steps.len() as f64;
        let mut caught = 0.0;
        for ties in self.ties() {
            let count = ties.len() as f64;
            let taken = left.min(count) / count;
            caught += taken * ties.iter().filter(|step| step.differs).count() as f64;
            left -= taken * count;
        }
        (total > 0).then(|| caught / total as f64)
    }

    /// The ROC curve: rising pairs of the share of agreeing steps that are flagged and the share of differences that are
    /// caught, from (0, 0) to (1, 1), thinned to at most so many. Empty if there are not both.
    pub fn roc(&self, points: usize) -> Vec<[f64; 2]> {
        let differences = self.differences();
        let agreements = self.steps.len() - differences;
        if differences == 0 || agreements == 0 || points < 2 {
            return Vec::new();
        }
        let (mut caught, mut passed) = (0, 0);
        let mut curve = vec![[0.0, 0.0]];
        for ties in self.ties() {
            let differ = ties.iter().filter(|step| step.differs).count();
            caught += differ;
            passed += ties.len() - differ;
            curve.push([passed as f64 / agreements as f64, caught as f64 / differences as f64]);
        }
        // Evenly along the way from one end to the other, which is 2 long however the curve bends.
        let last = curve.len() - 1;
        let mut thin: Vec<[f64; 2]> = Vec::with_capacity(points);
        for (place, &point) in curve.iter().enumerate() {
            let due = 2.0 * thin.len() as f64 / (points - 1) as f64;
            if place == last || (thin.len() + 1 < points && point[0] + point[1] >= due) {
                thin.push(point);
            }
        }
        thin
    }

    /// Share of all steps with a score above a threshold, and the share of the differences among them; `None` for a
    /// share of nothing.
    pub fn above(&self, threshold: f32) -> [Option<f64>; 2] {
        let flagged = self.steps.partition_point(|step| step.score > threshold);
        let caught = self.steps[..flagged].iter().filter(|step| step.differs).count();
        let share = |part: usize, all: usize| (all > 0).then(|| part as f64 / all as f64);
        [share(flagged, self.steps.len()), share(caught, self.differences())]
    }

    fn differences(&self) -> usize {
        self.steps.iter().filter(|step| step.differs).count()
    }

    /// Steps of one score, riskiest first.
    fn ties(&self) -> impl Iterator<Item = &[Step]> {
        self.steps.chunk_by(|a, b| a.score.total_cmp(&b.score) == Ordering::Equal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranking(steps: &[(f32, bool)]) -> Ranking {
        Ranking::new(
            steps.iter().map(|&(score, differs)| Step { score, differs, document: 0 }).collect(),
        )
    }

    #[test]
    fn known_rankings() {
        let perfect = ranking(&[(0.1, false), (3.0, true), (2.0, true), (1.0, false)]);
        assert_eq!(perfect.auc(), Some(1.0));
        assert_eq!(
            [0.0, 0.25, 0.5, 1.0].map(|s| perfect.caught(s)),
            [0.0, 0.5, 1.0, 1.0].map(Some)
        );
        assert_eq!(perfect.above(1.0), [Some(0.5), Some(1.0)]);
        assert_eq!(perfect.above(2.0), [Some(0.25), Some(0.5)]);
        assert_eq!(ranking(&[(1.0, true), (1.0, false)]).auc(), Some(0.5));
        assert_eq!(ranking(&[(1.0, true), (2.0, false)]).auc(), Some(0.0));
        assert_eq!(ranking(&[(0.0, true), (-0.0, false)]).auc(), Some(0.5));
        // A tie that is cut counts in proportion.
        assert_eq!(ranking(&[(1.0, true), (1.0, false)]).caught(0.25), Some(0.25));
        let none = ranking(&[(1.0, false)]);
        assert_eq!(
            (none.auc(), none.caught(0.5), none.above(0.0)),
            (None, None, [Some(1.0), None])
        );
        assert!(none.roc(50).is_empty());
    }

    proptest! {
        /// By definition, over all pairs.
        #[test]
        fn auc_is_the_share_of_pairs_in_order(
            steps in prop::collection::vec(((-5i8..5).prop_map(f32::from), any::<bool>(), 0..4_usize), 0..80),
            weights in prop::collection::vec((0..4_u8).prop_map(f64::from), 4),
        ) {
            let steps: Vec<_> = steps
                .into_iter()
                .map(|(score, differs, document)| Step { score, differs, document })
                .collect();
            let naive = |weight: &dyn Fn(&Step) -> f64| {
                let (mut sum, mut pairs) = (0.0, 0.0);
                for a in steps.iter().filter(|step| step.differs) {
                    for b in steps.iter().filter(|step| !step.differs) {
                        let count = weight(a) * weight(b);
                        pairs += count;
                        sum += count * match a.score.total_cmp(&b.score) {
                            Ordering::Greater => 1.0,
                            Ordering::Equal => 0.5,
                            Ordering::Less => 0.0,
                        };
                    }
                }
                (pairs > 0.0).then(|| sum / pairs)
            };
            let ranking = Ranking::new(steps.clone());
            let close = |a: Option<f64>, b: Option<f64>| match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-12,
                (a, b) => a.is_none() && b.is_none(),
            };
            prop_assert!(close(ranking.auc(), naive(&|_| 1.0)));
            let weighted = naive(&|step| weights[step.document]);
            prop_assert!(close(ranking.weighted_auc(&weights), weighted));
        }

        /// The trapezoids under the whole curve are the area; thinning keeps both ends and the order.
        #[test]
        fn the_curve_has_the_area(
            steps in prop::collection::vec(((-50i8..50).prop_map(f32::from), any::<bool>()), 2..200),
            points in 2..60_usize,
        ) {
            let ranking = ranking(&steps);
            let Some(auc) = ranking.auc() else { return Ok(()) };
            let whole = ranking.roc(10_000);
            let area: f64 =
                whole.windows(2).map(|p| (p[1][0] - p[0][0]) * (p[0][1] + p[1][1]) / 2.0).sum();
            // 10,000 points along a way of 200 steps keep every one.
            prop_assert!((area - auc).abs() < 1e-9, "{} {}", area, auc);
            let thin = ranking.roc(points);
            prop_assert!((2..=points).contains(&thin.len()));
            prop_assert_eq!((thin[0], thin[thin.len() - 1]), ([0.0; 2], [1.0; 2]));
            prop_assert!(thin.windows(2).all(|p| p[0][0] <= p[1][0] && p[0][1] <= p[1][1]));
        }
    }
}
