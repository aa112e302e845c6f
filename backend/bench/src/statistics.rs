//! What many measurements of the same thing say.
//!
//! Times on a shared machine have a long tail to one side, so the middle is told by the median, and how
//! sure it is by a bootstrap, which assumes no shape. Means and standard errors would tell of the tail.

use serde::{Deserialize, Serialize};

/// A median and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// It lies between this …
    pub low: f64,
    /// … and this, in 95 of 100 such experiments.
    pub high: f64,
}

/// Samples with their median and its interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Median of the samples.
    pub median: f64,
    /// Lower end of its 95 % bootstrap interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
    /// Every sample, in the order of measurement.
    pub samples: Vec<f64>,
}

impl Summary {
    /// Of at least one sample; NaN of none.
    pub fn of(samples: Vec<f64>) -> Self {
        let Interval { median, low, high } = Interval::of(&samples);
        Self { median, low, high, samples }
    }

    /// Without the samples.
    pub fn interval(&self) -> Interval {
        Interval { median: self.median, low: self.low, high: self.high }
    }
}

/// Resamples of a bootstrap: the ends of the interval then move by less than a tenth of its width
/// from one seed to another.
const RESAMPLES: usize = 2000;

impl Interval {
    /// The median with its percentile bootstrap interval: what the medians of as many draws from the
    /// same values, with replacement, come to. Equal values give equal intervals. NaN of nothing.
    pub fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let mut random = fastrand::Rng::with_seed(0x5EED);
        let mut drawn = vec![0.0; values.len()];
        let medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                drawn.fill_with(|| values[random.usize(..values.len())]);
                median_of(&mut drawn)
            })
            .collect();
        Self {
            median: median(values),
            low: quantile(&medians, 0.025),
            high: quantile(&medians, 0.975),
        }
    }

    /// All three numbers in another unit.
    pub fn scaled(self, factor: f64) -> Self {
        let Self { median, low, high } = self;
        Self { median: factor * median, low: factor * low, high: factor * high }
    }
}

/// The median; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    median_of(&mut values.to_vec())
}

/// The value below which a `share` (0 to 1) of the values lies, interpolated between neighbours; NaN of
/// nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Selects instead of sorting: a bootstrap takes thousands of medians of thousands of values.
fn median_of(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let count = values.len();
    let (lower, &mut middle, _) = values.select_nth_unstable_by(count / 2, f64::total_cmp);
    if count % 2 == 1 {
        return middle;
    }
    let below = lower.iter().copied().max_by(f64::total_cmp).unwrap_or(middle);
    (below + middle) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn quantiles_interpolate() {
        let values = [40.0, 10.0, 30.0, 20.0];
        let found = [0.0, 0.25, 0.5, 0.9, 1.0].map(|share| quantile(&values, share));
        assert_eq!(found, [10.0, 17.5, 25.0, 37.0, 40.0]);
        assert_eq!(quantile(&values, 7.0), 40.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    /// Values 1 ..= n, in another order.
    fn spread(count: usize) -> Vec<f64> {
        (0..count).map(|i| (i * 7919 % count + 1) as f64).collect()
    }

    #[test]
    fn the_interval_is_that_of_the_order_statistics() {
        // The median of a resample is at or below the k-th of n values if at least half of the n draws
        // fall among the first k. For n = 11 that is so for 0.7 % of resamples at k = 2 and for 5.1 %
        // at k = 3: the 2.5 % point is the 3rd value, and by symmetry the 97.5 % point the 9th.
        let found = Interval::of(&spread(11));
        assert_eq!(found, Interval { median: 6.0, low: 3.0, high: 9.0 });
        assert_eq!(Interval::of(&spread(11)), found);
    }

    #[test]
    fn intervals_narrow_with_the_root_of_the_count() {
        for count in [31, 961] {
            let Interval { median, low, high } = Interval::of(&spread(count));
            assert!(low < median && median < high);
            // The median of uniform values errs by 1 / (2 √n), 1.96 times that to either side.
            let expected = 1.96 / (count as f64).sqrt() * count as f64;
            assert!((0.7..1.4).contains(&((high - low) / expected)), "{count}: {low} to {high}");
        }
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let Interval { median, low, high } = Interval::of(&[2.0; 9]);
        assert_eq!((median, low, high), (2.0, 2.0, 2.0));
        assert!(Interval::of(&[]).low.is_nan());
    }
}
