//! What a pass costs, from a measured table.

use rewind_engine::Weights;
use serde::{Deserialize, Serialize};

/// Seconds of a pass by its number of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve {
    /// Rows and seconds, rows ascending.
    points: Vec<(usize, f64)>,
}

/// Why points make no curve.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "a cost curve needs at least two numbers of rows, ascending from 1, and times above 0: {points:?}"
)]
pub struct CurveError {
    /// What was given.
    pub points: Vec<(usize, f64)>,
}

impl Curve {
    /// Through these points: rows, seconds.
    ///
    /// # Errors
    /// Fewer than two points, the first is not of one row, rows do not ascend, or a time is not above 0.
    pub fn new(points: Vec<(usize, f64)>) -> Result<Self, CurveError> {
        let ascending = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let timed = points.iter().all(|&(_, seconds)| seconds.is_finite() && seconds > 0.0);
        let from_one = points.first().is_some_and(|&(rows, _)| rows == 1);
        if points.len() < 2 || !ascending || !timed || !from_one {
            return Err(CurveError { points });
        }
        Ok(Self { points })
    }

    /// Seconds of a pass over so many rows, straight between measured points and on after the last; 0 of no rows.
    pub fn at(&self, rows: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let behind = self.points.iter().position(|&(measured, _)| measured >= rows);
        let last = self.points.len() - 1;
        let right = behind.unwrap_or(last).clamp(1, last);
        let ((from, fast), (to, slow)) = (self.points[right - 1], self.points[right]);
        fast + (slow - fast) * (rows as f64 - from as f64) / (to - from) as f64
    }
}

/// Measured passes of both weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// Of the draft, each row of another sequence, judged and choosing a token.
    pub draft: Curve,
    /// Of the shadow, every row choosing a token.
    pub shadow: Curve,
    /// Of the shadow, only the last row choosing one.
    pub shadow_last: Curve,
}

impl CostTable {
    /// Seconds of a pass over so many rows, of which so many choose a token.
    pub fn pass(&self, weights: Weights, rows: usize, choosing: usize) -> f64 {
        if weights == Weights::Draft {
            return self.draft.at(rows);
        }
        let (last, all) = (self.shadow_last.at(rows), self.shadow.at(rows));
        // The head's cost grows with the rows that it runs for.
        let share = choosing.saturating_sub(1) as f64 / rows.saturating_sub(1).max(1) as f64;
        last + (all - last) * share.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, f64)]) -> Curve {
        Curve::new(points.to_vec()).unwrap()
    }

    #[test]
    fn times_lie_on_lines_between_measured_ones() {
        let curve = curve(&[(1, 1.0), (4, 2.5), (8, 3.5)]);
        let found = [0, 1, 2, 4, 6, 8, 16].map(|rows| curve.at(rows));
        assert_eq!(found, [0.0, 1.0, 1.5, 2.5, 3.0, 3.5, 5.5]);
    }

    #[test]
    fn points_that_make_no_curve_are_refused() {
        for points in [
            &[][..],
            &[(1, 1.0)],
            &[(2, 1.0), (4, 2.0)],
            &[(1, 1.0), (1, 2.0)],
            &[(1, 0.0), (2, 1.0)],
        ] {
            let error = Curve::new(points.to_vec()).unwrap_err();
            assert_eq!(error.points, points);
        }
    }

    #[test]
    fn rows_without_a_token_cost_less() {
        let table = CostTable {
            draft: curve(&[(1, 0.5), (2, 0.75)]),
            shadow: curve(&[(1, 1.0), (9, 5.0)]),
            shadow_last: curve(&[(1, 1.0), (9, 3.0)]),
        };
        assert_eq!(table.pass(Weights::Draft, 2, 2), 0.75);
        assert_eq!(table.pass(Weights::Full, 9, 1), 3.0);
        assert_eq!(table.pass(Weights::Full, 9, 5), 4.0);
        assert_eq!(table.pass(Weights::Full, 9, 9), 5.0);
        assert_eq!(table.pass(Weights::Full, 1, 1), 1.0);
    }
}
