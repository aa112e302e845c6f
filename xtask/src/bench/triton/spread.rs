//! The middle of some values, and how far they reach.

use std::fmt;

use super::profile::median;

/// A median between the lowest and the highest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    /// Of these values; NaN of none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let end = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick);
        Self {
            median: median(&values),
            low: end(f64::min).unwrap_or(f64::NAN),
            high: end(f64::max).unwrap_or(f64::NAN),
        }
    }
}

/// `1.25 (1.20–1.31)`; the precision counts for all three, and without a spread there are no brackets.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        let digits = f.precision().unwrap_or(2);
        write!(f, "{median:.digits$}")?;
        if low < high {
            write!(f, " ({low:.digits$}–{high:.digits$})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_hold_the_extremes() {
        assert_eq!(format!("{:.1}", Spread::of([3.0, 1.0, 2.25])), "2.2 (1.0–3.0)");
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
        assert_eq!(Spread::of([1.5]).to_string(), "1.50");
        assert_eq!(Spread::of([]).to_string(), "NaN");
    }
}
