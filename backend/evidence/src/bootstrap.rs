//! How sure a figure is: documents drawn again and again.
//!
//! Positions of one document are not independent, so whole documents are drawn.

/// How often, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// Draws.
    pub draws: usize,
    /// Of the random numbers: the same seed gives the same interval.
    pub seed: u64,
}

/// Below these shares of the draws lie the ends of an interval of 95 %.
const ENDS: [f64; 2] = [0.025, 0.975];

/// The 95 % percentile interval of a figure over as many documents as there are, drawn with replacement. `figure` gets
/// how often each document was drawn, and gives `None` where it has no value.
///
/// `None` with fewer than two documents, or if most draws have no value.
pub fn interval(
    documents: usize,
    resampling: Resampling,
    mut figure: impl FnMut(&[f64]) -> Option<f64>,
) -> Option<[f64; 2]> {
    if documents < 2 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(resampling.seed);
    let mut weights = vec![0.0; documents];
    let mut found: Vec<f64> = (0..resampling.draws)
        .filter_map(|_| {
            weights.fill(0.0);
            for _ in 0..documents {
                weights[random.usize(..documents)] += 1.0;
            }
            figure(&weights)
        })
        .collect();
    if found.is_empty() || 2 * found.len() < resampling.draws {
        return None;
    }
    found.sort_by(f64::total_cmp);
    Some(ENDS.map(|share| found[(share * (found.len() - 1) as f64).round() as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESAMPLING: Resampling = Resampling { draws: 2000, seed: 5 };

    fn mean(values: &[f64]) -> impl FnMut(&[f64]) -> Option<f64> {
        move |weights| {
            let sum: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum();
            Some(sum / weights.iter().sum::<f64>())
        }
    }

    #[test]
    fn the_mean_of_many_documents_has_a_known_interval() {
        let values: Vec<f64> = (0..400).map(|n| f64::from(n * 7919 % 400) / 400.0).collect();
        let [low, high] = interval(400, RESAMPLING, mean(&values)).unwrap();
        // Uniform: deviation √(1/12), so ±1.96 · 0.2887 / 20 about the mean.
        assert!((high - low - 2.0 * 1.96 * 0.2887 / 20.0).abs() < 0.005, "{low} {high}");
        assert!(low < 0.49875 && 0.49875 < high);
    }

    #[test]
    fn the_seed_decides() {
        let values = [1.0, 2.0, 5.0, 9.0, 11.0];
        let of = |seed| interval(5, Resampling { draws: 25, seed }, mean(&values)).unwrap();
        assert_eq!(of(1), of(1));
        assert!((2..40).any(|seed| of(seed) != of(1)));
    }

    #[test]
    fn without_a_value_there_is_no_interval() {
        assert_eq!(interval(1, RESAMPLING, |_| Some(1.0)), None);
        assert_eq!(interval(5, RESAMPLING, |_| None), None);
        // Of two documents one is left out in half of the draws.
        assert!(interval(5, RESAMPLING, |weights| (weights[0] > 0.0).then_some(1.0)).is_some());
    }
}
