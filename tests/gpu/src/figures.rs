//! What many measurements of the same thing say.

/// A median and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// It lies between this …
    pub low: f64,
    /// … and this, in 95 of 100 such experiments.
    pub high: f64,
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// The median; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    median_of(&mut sorted)
}

/// The median with its bootstrap interval: what the medians of as many draws from the same values,
/// with replacement, come to. The same values give the same interval.
pub fn interval(values: &[f64]) -> Interval {
    let mut state = 0x5DEE_CE66_D1CE_4E5B_u64;
    let mut index = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The upper bits are the random ones; the product of two 32-bit numbers fits.
        (((state >> 32) * values.len() as u64) >> 32) as usize
    };
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut drawn: Vec<f64> = values.iter().map(|_| values[index()]).collect();
            median_of(&mut drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians[(share * (RESAMPLES - 1) as f64).round() as usize];
    Interval { median: median(values), low: at(0.025), high: at(0.975) }
}

fn median_of(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
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
    fn an_interval_holds_the_median_and_narrows_with_more_values() {
        // Evenly spread over 0 .. 1: the median's error is about 0.5 / √n.
        let spread = |count: usize| -> Vec<f64> {
            (0..count).map(|i| (i * 7919 % count) as f64 / count as f64).collect()
        };
        let (few, many) = (interval(&spread(31)), interval(&spread(961)));
        for (found, count) in [(few, 31.0), (many, 961.0_f64)] {
            assert!(found.low < found.median && found.median < found.high, "{found:?}");
            let expected = 2.0 * 1.96 * 0.5 / count.sqrt();
            let width = found.high - found.low;
            assert!((0.6..1.6).contains(&(width / expected)), "{found:?} {expected}");
        }
        assert_eq!(interval(&spread(31)), few);
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let Interval { median, low, high } = interval(&[2.0; 9]);
        assert_eq!((median, low, high), (2.0, 2.0, 2.0));
        assert!(interval(&[]).low.is_nan());
    }
}
