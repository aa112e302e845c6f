//! Products with float weights, see [`crate::order::float_dot`].
//!
//! Weights are converted in registers on their way from memory, once for up to six rows of
//! activations. One or two rows take four panels at a time, three rows three, so that there are enough
//! sums to hide the latency of the multiply-add; more rows take two panels, whose twelve sums and
//! operands fill sixteen registers.

use std::ops::Range;

use half::{bf16, f16};

use super::{Product, put};
use crate::aligned::LINE;
use crate::arch::Panel;
use crate::order::RUN;

/// A float type that weights are stored in.
pub(super) trait Element: Copy {
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>) -> P::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>) -> P::F {
        p.load(from)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>) -> P::F {
        p.load_f16(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>) -> P::F {
        p.load_bf16(from)
    }
}

/// E4M3FN, without its scale.
impl Element for u8 {
    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>) -> P::F {
        p.load_e4m3(from)
    }
}

/// Weights of the whole matrix.
struct Weights<'a, P: Panel, T: Copy> {
    panels: &'a [P::Lanes<T>],
    /// One for each row of a panel; none if weights have none.
    scales: &'a [P::Lanes<f32>],
    /// Elements of a row.
    stride: usize,
}

impl<P: Panel, T: Copy> Clone for Weights<'_, P, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Panel, T: Copy> Copy for Weights<'_, P, T> {}

/// All outputs of `product.panels`.
#[inline(always)]
pub(super) fn product<P: Panel, T: Element>(
    p: P,
    data: &[T],
    scales: &[f32],
    stride: usize,
    product: &mut Product<'_>,
) {
    let weights = Weights::<P, T> { panels: P::lanes(data), scales: P::lanes(scales), stride };
    let all = product.panels(P::WIDTH);
    for rows in cached(product.out.len(), stride * size_of::<f32>()) {
        let Range { mut start, end } = all;
        let count = rows.len();
        if count < 3 {
            while start + 4 <= end {
                across::<P, T, 4>(p, weights, start, product, rows.clone());
                start += 4;
            }
        }
        if count == 3 {
            while start + 3 <= end {
                across::<P, T, 3>(p, weights, start, product, rows.clone());
                start += 3;
            }
        }
        while start + 2 <= end {
            across::<P, T, 2>(p, weights, start, product, rows.clone());
            start += 2;
        }
        if start < end {
            across::<P, T, 1>(p, weights, start, product, rows);
        }
    }
}

/// Cuts rows of activations into runs that stay in a core's cache while all panels pass over them:
/// the rows of a prompt would come from further away for each panel. `bytes` are those of a row. Not for
/// 8-bit activations, which are a third as large: it was no quicker, and reads the weights more often.
fn cached(rows: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    // Whole tiles of six.
    let run = (CACHED / bytes.max(1) / 6 * 6).max(6);
    (0..rows).step_by(run).map(move |first| first..(first + run).min(rows))
}

/// Half of the second-level cache of most cores.
const CACHED: usize = 256 << 10;

/// N panels from `first` on with some rows of activations.
#[inline(always)]
fn across<P: Panel, T: Element, const N: usize>(
    p: P,
    weights: Weights<'_, P, T>,
    first: usize,
    product: &mut Product<'_>,
    rows: Range<usize>,
) {
    let mut m = rows.start;
    while m < rows.end {
        let rest = rows.end - m;
        m += match (N, rest) {
            (_, 1) => tile::<P, T, N, 1>(p, weights, first, product, m),
            (_, 2) => tile::<P, T, N, 2>(p, weights, first, product, m),
            (3.., _) | (_, 3) => tile::<P, T, N, 3>(p, weights, first, product, m),
            // Four and three or four are quicker than six and one or two.
            (_, 4 | 7 | 8) => tile::<P, T, N, 4>(p, weights, first, product, m),
            (_, 5) => tile::<P, T, N, 5>(p, weights, first, product, m),
            _ => tile::<P, T, N, 6>(p, weights, first, product, m),
        };
    }
}

/// N panels with A rows of activations from `m` on; gives A.
#[inline(always)]
fn tile<P: Panel, T: Element, const N: usize, const A: usize>(
    p: P,
    weights: Weights<'_, P, T>,
    first: usize,
    product: &mut Product<'_>,
    m: usize,
) -> usize {
    let Weights { panels, scales, stride } = weights;
    let mut x: [&[f32]; A] = [&[]; A];
    for a in 0..A {
        x[a] = &product.input.rows.row(m + a)[..stride];
    }
    let mut totals = [[p.splat(0.0); A]; N];
    let mut start = 0;
    while start < stride {
        let len = RUN.min(stride - start);
        let mut w: [&[P::Lanes<T>]; N] = [&[]; N];
        for n in 0..N {
            w[n] = &panels[(first + n) * stride + start..][..len];
        }
        let mut run: [&[f32]; A] = [&[]; A];
        for a in 0..A {
            run[a] = &x[a][start..][..len];
        }
        let mut sums = [[p.splat(0.0); A]; N];
        for k in 0..len {
            if A < 3 && k % (LINE / size_of::<P::Lanes<T>>()) == 0 {
                // More rows compute longer than they read.
                for n in 0..N {
                    p.prefetch(&w[n][k]);
                }
            }
            // Whichever are fewer stay in registers.
            if A < N {
                let mut x = [p.splat(0.0); A];
                for a in 0..A {
                    x[a] = p.splat(run[a][k]);
                }
                for n in 0..N {
                    let weight = T::load(p, &w[n][k]);
                    for a in 0..A {
                        sums[n][a] = p.fma(weight, x[a], sums[n][a]);
                    }
                }
            } else {
                let mut weights = [p.splat(0.0); N];
                for n in 0..N {
                    weights[n] = T::load(p, &w[n][k]);
                }
                for a in 0..A {
                    let x = p.splat(run[a][k]);
                    for n in 0..N {
                        sums[n][a] = p.fma(weights[n], x, sums[n][a]);
                    }
                }
            }
        }
        for n in 0..N {
            for a in 0..A {
                totals[n][a] = p.add(totals[n][a], sums[n][a]);
            }
        }
        start += RUN;
    }
    for n in 0..N {
        if let Some(scales) = scales.get(first + n) {
            let scales = p.load(scales);
            for a in 0..A {
                totals[n][a] = p.mul(totals[n][a], scales);
            }
        }
        put(p, product, first + n, m, totals[n]);
    }
    A
}
