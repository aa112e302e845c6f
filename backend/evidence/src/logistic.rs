//! Logistic regression.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

/// Penalty on a standardised weight, in units of one step: it decides only where the data leave a weight open, as with
/// features that move together or classes that a line parts.
const RIDGE: f64 = 1e-2;

/// Most Newton steps; a handful is the rule.
const STEPS: usize = 100;

/// Times that a step is halved, at most.
const HALVINGS: usize = 30;

/// Both outcomes are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all steps have the same outcome")]
pub struct NoContrast;

/// The logit of a probability as a linear function of `N` features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logistic<const N: usize> {
    /// The logit where every feature is 0.
    pub bias: f64,
    /// One for each feature.
    pub weights: [f64; N],
}

impl<const N: usize> Logistic<N> {
    /// The most likely one with a small ridge on the weights, by Newton's method (iteratively reweighted least squares)
    /// on standardised features. A feature that never changes gets no weight. Features are finite.
    ///
    /// # Errors
    /// All outcomes are the same.
    pub fn fit(features: &[[f64; N]], outcomes: &[bool]) -> Result<Self, NoContrast> {
        let count = features.len().min(outcomes.len());
        let (features, outcomes) = (&features[..count], &outcomes[..count]);
        if !outcomes.contains(&true) || !outcomes.contains(&false) {
            return Err(NoContrast);
        }
        let scales = Scales::of(features);
        let rows: Vec<[f64; N]> = features.iter().map(|row| scales.standardised(row)).collect();
        let mut model = Self { bias: 0.0, weights: [0.0; N] };
        let mut loss = model.loss(&rows, outcomes);
        for _ in 0..STEPS {
            let direction = model.newton(&rows, outcomes);
            let found = (0..HALVINGS).find_map(|halvings| {
                let next = model.moved(&direction, 0.5_f64.powi(halvings as i32));
                let its_loss = next.loss(&rows, outcomes);
                (its_loss < loss).then_some((next, its_loss))
            });
            let Some((next, its_loss)) = found else { break };
            let gained = loss - its_loss;
            (model, loss) = (next, its_loss);
            if gained <= 1e-12 * loss.abs() {
                break;
            }
        }
        Ok(scales.raw(&model))
    }

    /// The logit of a step.
    pub fn logit(&self, features: &[f64; N]) -> f64 {
        self.weights.iter().zip(features).fold(self.bias, |sum, (w, x)| sum + w * x)
    }

    /// −ln of the likelihood, and the penalty.
    fn loss(&self, rows: &[[f64; N]], outcomes: &[bool]) -> f64 {
        let penalty = 0.5 * RIDGE * self.weights.iter().map(|w| w * w).sum::<f64>();
        rows.iter().zip(outcomes).fold(penalty, |sum, (row, &outcome)| {
            let logit = self.logit(row);
            // ln(1 + e^x) that neither overflows nor loses small values.
            let x = if outcome { -logit } else { logit };
            sum + x.max(0.0) + (-x.abs()).exp().ln_1p()
        })
    }

    /// Hessian⁻¹ · gradient, the bias first; zeros if the Hessian has no factor.
    fn newton(&self, rows: &[[f64; N]], outcomes: &[bool]) -> Vec<f64> {
        let size = N + 1;
        let mut hessian = Mat::<f64>::zeros(size, size);
        let mut gradient = Mat::<f64>::zeros(size, 1);
        for place in 1..size {
            hessian[(place, place)] = RIDGE;
            gradient[(place, 0)] = RIDGE * self.weights[place - 1];
        }
        for (row, &outcome) in rows.iter().zip(outcomes) {
            let p = 1.0 / (1.0 + (-self.logit(row)).exp());
            let (slope, curvature) = (p - f64::from(u8::from(outcome)), p * (1.0 - p));
            let feature = |place: usize| if place == 0 { 1.0 } else { row[place - 1] };
            for i in 0..size {
                gradient[(i, 0)] += slope * feature(i);
                for j in 0..=i {
                    hessian[(i, j)] += curvature * feature(i) * feature(j);
                }
            }
        }
        match hessian.llt(Side::Lower) {
            Ok(factor) => {
                let step = factor.solve(&gradient);
                (0..size).map(|place| step[(place, 0)]).collect()
            }
            Err(_) => vec![0.0; size],
        }
    }

    fn moved(&self, direction: &[f64], by: f64) -> Self {
        let mut next = *self;
        next.bias -= by * direction[0];
        for (weight, step) in next.weights.iter_mut().zip(&direction[1..]) {
            *weight -= by * step;
        }
        next
    }
}

/// Means and standard deviations of features.
struct Scales<const N: usize> {
    means: [f64; N],
    /// 0 for a feature that never changes.
    deviations: [f64; N],
}

impl<const N: usize> Scales<N> {
    fn of(rows: &[[f64; N]]) -> Self {
        let count = rows.len() as f64;
        let mean = |value: &dyn Fn(&[f64; N]) -> f64| rows.iter().map(value).sum::<f64>() / count;
        let means: [f64; N] = std::array::from_fn(|at| mean(&|row| row[at]));
        let deviations = std::array::from_fn(|at| {
            let deviation = mean(&|row| (row[at] - means[at]).powi(2)).sqrt();
            // Rounding of the mean is no change.
            if deviation > 1e-12 * means[at].abs() { deviation } else { 0.0 }
        });
        Self { means, deviations }
    }

    fn standardised(&self, row: &[f64; N]) -> [f64; N] {
        std::array::from_fn(|at| match self.deviations[at] {
            0.0 => 0.0,
            deviation => (row[at] - self.means[at]) / deviation,
        })
    }

    /// The same model over features as they come.
    fn raw(&self, model: &Logistic<N>) -> Logistic<N> {
        let weights = std::array::from_fn(|at| match self.deviations[at] {
            0.0 => 0.0,
            deviation => model.weights[at] / deviation,
        });
        let shift: f64 = weights.iter().zip(&self.means).map(|(w, mean)| w * mean).sum();
        Logistic { bias: model.bias - shift, weights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes drawn from a known model.
    fn planted(truth: &Logistic<2>, count: usize) -> (Vec<[f64; 2]>, Vec<bool>) {
        let mut random = fastrand::Rng::with_seed(11);
        (0..count)
            .map(|_| {
                let row = [3.0 + 2.0 * random.f64(), 50.0 * (random.f64() - 0.5)];
                let p = 1.0 / (1.0 + (-truth.logit(&row)).exp());
                (row, random.f64() < p)
            })
            .unzip()
    }

    #[test]
    fn planted_weights_are_found() {
        let truth = Logistic { bias: -6.0, weights: [1.5, -0.1] };
        let (rows, outcomes) = planted(&truth, 40_000);
        let found = Logistic::fit(&rows, &outcomes).unwrap();
        assert!((found.bias - truth.bias).abs() < 0.3, "{found:?}");
        assert!((found.weights[0] - 1.5).abs() < 0.06, "{found:?}");
        assert!((found.weights[1] + 0.1).abs() < 0.004, "{found:?}");
        // The best fit balances: predictions sum to the outcomes.
        let predicted: f64 = rows.iter().map(|row| 1.0 / (1.0 + (-found.logit(row)).exp())).sum();
        let seen = outcomes.iter().filter(|&&outcome| outcome).count() as f64;
        assert!((predicted - seen).abs() < 1e-3 * seen, "{predicted} {seen}");
    }

    #[test]
    fn classes_that_a_line_parts_give_finite_weights() {
        let rows: Vec<[f64; 1]> = (0..100).map(|n| [f64::from(n)]).collect();
        let outcomes: Vec<bool> = (0..100).map(|n| n >= 60).collect();
        let found = Logistic::fit(&rows, &outcomes).unwrap();
        assert!(found.weights[0].is_finite() && found.weights[0] > 0.0);
        assert!(found.logit(&[59.0]) < 0.0 && found.logit(&[60.0]) > 0.0, "{found:?}");
    }

    #[test]
    fn features_that_say_nothing_are_left_out() {
        let rows: Vec<[f64; 3]> =
            (0..50).map(|n| [f64::from(n % 2), 0.1, f64::from(n % 2)]).collect();
        let outcomes: Vec<bool> = (0..50).map(|n| n % 3 == 0).collect();
        let found = Logistic::fit(&rows, &outcomes).unwrap();
        assert_eq!(found.weights[1], 0.0);
        // Two equal features share.
        assert!((found.weights[0] - found.weights[2]).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn one_outcome_is_refused() {
        assert_eq!(Logistic::fit(&[[1.0], [2.0]], &[true, true]), Err(NoContrast));
        assert_eq!(Logistic::<1>::fit(&[], &[]), Err(NoContrast));
    }
}
