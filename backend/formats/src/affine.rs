//! Scale and offset of asymmetric 4-bit groups: the least squared error over a small clip search.
//!
//! As in [`crate::scale`], the search tries a few grids, each clipping a little at one end or the other, improves
//! the best by least squares with the codes held fixed, and keeps what measures best.

use half::f16;

use crate::scale::{self, INT4, LANES};

/// Shares of the way from the middle to each end that the grids reach. The first clips nothing.
const SHARES: [f32; 3] = [1.0, 0.93, 0.86];

/// Steps between the lowest code and the highest.
const STEPS: f32 = 15.0;

/// Steps of "fix the codes, solve for scale and offset, recode" after the search.
const REFINEMENTS: usize = 3;

/// Sixteen numbers at equal distances: code · scale + offset, for codes from −8 to 7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    pub(crate) scale: f32,
    pub(crate) offset: f32,
}

impl Grid {
    /// The nearest with parts that are halves.
    fn new(scale: f32, offset: impl Fn(f32) -> f32) -> Self {
        let half = |x: f32| {
            let largest = f16::MAX.to_f32();
            f16::from_f32(x.clamp(-largest, largest)).to_f32()
        };
        let scale = half(scale);
        Self { scale, offset: half(offset(scale)) }
    }

    /// From `low` to `high`.
    fn between(low: f32, high: f32) -> Self {
        Self::new((high - low) / STEPS, |scale| low - INT4.low * scale)
    }

    /// The code of `weight`.
    #[inline(always)]
    fn code(self, weight: f32) -> f32 {
        let steps = (weight - self.offset) / self.scale;
        // 0 / 0 is NaN, which a clamp would let through.
        scale::rounded(if self.scale == 0.0 { 0.0 } else { steps }, INT4)
    }

    fn squared_error(self, weights: &[f32]) -> f32 {
        let [error, _] = scale::sum_lanes(weights, |w| {
            let error = w - (self.code(w) * self.scale + self.offset);
            [error * error, 0.0]
        });
        error
    }

    /// The grid that fits `weights` best while their codes on this one stay.
    fn least_squares(self, weights: &[f32], middle: f32) -> Option<Self> {
        // Around the middle, so that a common part cancels before it is squared.
        let [codes, squares] =
            scale::sum_lanes(weights, |w| [self.code(w), self.code(w) * self.code(w)]);
        let [sum, products] =
            scale::sum_lanes(weights, |w| [w - middle, (w - middle) * self.code(w)]);
        let count = weights.len() as f32;
        let solved = (count * products - sum * codes) / (count * squares - codes * codes);
        solved
            .is_finite()
            .then(|| Self::new(solved, |scale| middle + (sum - scale * codes) / count))
    }
}

/// The grid for `weights`, all at most 65504 in magnitude.
pub(crate) fn search(weights: &[f32]) -> Grid {
    let (low, high) = extremes(weights);
    let middle = low + (high - low) / 2.0;
    let mut best = (Grid::between(low, high), f32::INFINITY);
    let mut consider = |grid: Grid| {
        let error = grid.squared_error(weights);
        let better = error < best.1;
        if better {
            best = (grid, error);
        }
        (better, best.0)
    };
    for below in SHARES {
        for above in SHARES {
            let reach = |end: f32, share: f32| middle + (end - middle) * share;
            consider(Grid::between(reach(low, below), reach(high, above)));
        }
    }
    // A grid of one number: what is left where steps are too small for a half.
    let (_, mut grid) = consider(Grid::new(0.0, |_| middle));
    for _ in 0..REFINEMENTS {
        let Some(solved) = grid.least_squares(weights, middle) else { break };
        let (better, best) = consider(solved);
        if !better {
            break;
        }
        grid = best;
    }
    grid
}

/// Writes the codes of `weights`: the nearest ones, ties to even, saturating.
pub(crate) fn encode(weights: &[f32], grid: Grid, codes: &mut [i8]) {
    for (to, &w) in codes.iter_mut().zip(weights) {
        *to = grid.code(w) as i8;
    }
}

/// The lowest and the highest of weights.
fn extremes(weights: &[f32]) -> (f32, f32) {
    let first = weights.first().copied().unwrap_or(0.0);
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let (mut lows, mut highs) = ([first; LANES], [first; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            lows[lane] = if chunk[lane] < lows[lane] { chunk[lane] } else { lows[lane] };
            highs[lane] = if chunk[lane] > highs[lane] { chunk[lane] } else { highs[lane] };
        }
    }
    let low = lows.into_iter().chain(rest.iter().copied()).fold(first, f32::min);
    let high = highs.into_iter().chain(rest.iter().copied()).fold(first, f32::max);
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with a long tail on one side.
    fn skewed(count: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| -(1.0 - uniform()).ln() - 0.3).collect()
    }

    /// Error of the best of 3,600 grids: close to the true optimum.
    fn exhaustive(weights: &[f32]) -> f32 {
        let (low, high) = extremes(weights);
        let ends = (0..60).map(|i| i as f32 / 60.0 * 0.4 * (high - low));
        ends.clone()
            .flat_map(|below| ends.clone().map(move |above| (low + below, high - above)))
            .map(|(low, high)| Grid::between(low, high).squared_error(weights))
            .fold(f32::INFINITY, f32::min)
    }

    #[test]
    fn search_comes_close_to_the_optimum() {
        for (length, slack) in [(32, 1.06), (64, 1.05), (128, 1.04)] {
            let (mut found, mut optimal, mut covering) = (0.0, 0.0, 0.0);
            for group in skewed(length * 100).chunks_exact(length) {
                found += search(group).squared_error(group);
                optimal += exhaustive(group);
                let (low, high) = extremes(group);
                covering += Grid::between(low, high).squared_error(group);
            }
            assert!(found < slack * optimal, "{length}: {found} against {optimal}");
            assert!(found < 0.95 * covering, "{length}: {found} against {covering}");
        }
    }

    #[test]
    fn a_common_part_costs_nothing() {
        // Far from zero all sixteen numbers of a symmetric grid would be spent on the way there.
        let weights: Vec<f32> = (0..16).map(|i| 64.0 + i as f32 / 16.0).collect();
        let grid = search(&weights);
        assert_eq!(grid, Grid { scale: 1.0 / 16.0, offset: 64.5 });
        assert_eq!(grid.squared_error(&weights), 0.0);
        assert_eq!(search(&[0.75; 40]), Grid { scale: 0.0, offset: 0.75 });
    }
}
