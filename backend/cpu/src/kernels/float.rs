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
use crate::matrix::NestedScales;
use crate::order::RUN;

/// A kind of float weights.
pub(super) trait Element {
    /// What they are stored in.
    type Stored: Copy;
    /// Neighbouring weights of a row that share one.
    const WEIGHTS: usize = 1;
    /// One of them.
    fn load<P: Panel>(p: P, from: &P::Lanes<Self::Stored>, which: usize) -> P::F;
}

impl Element for f32 {
    type Stored = Self;

    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>, _: usize) -> P::F {
        p.load(from)
    }
}

impl Element for f16 {
    type Stored = Self;

    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>, _: usize) -> P::F {
        p.load_f16(from)
    }
}

impl Element for bf16 {
    type Stored = Self;

    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<Self>, _: usize) -> P::F {
        p.load_bf16(from)
    }
}

/// E4M3FN, without its scale.
pub(super) enum E4m3 {}

impl Element for E4m3 {
    type Stored = u8;

    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<u8>, _: usize) -> P::F {
        p.load_e4m3(from)
    }
}

/// NF4, without its scales.
pub(super) enum Nf4 {}

impl Element for Nf4 {
    type Stored = u8;
    const WEIGHTS: usize = 2;

    #[inline(always)]
    fn load<P: Panel>(p: P, from: &P::Lanes<u8>, which: usize) -> P::F {
        p.load_nf4(from, which == 1)
    }
}

/// Scales of a matrix.
pub(super) trait Scales: Copy {
    /// Adds the sums of a run of a panel to `totals`.
    fn add<P: Panel, const A: usize>(
        self,
        p: P,
        panel: usize,
        run: usize,
        sums: [P::F; A],
        totals: [P::F; A],
    ) -> [P::F; A];
    /// The outputs of a panel.
    fn finish<P: Panel, const A: usize>(self, p: P, panel: usize, totals: [P::F; A]) -> [P::F; A];
}

/// Weights have none.
#[derive(Clone, Copy)]
pub(super) struct Unscaled;

/// One for each row.
#[derive(Clone, Copy)]
pub(super) struct RowScales<'a>(pub(super) &'a [f32]);

impl Scales for Unscaled {
    #[inline(always)]
    fn add<P: Panel, const A: usize>(
        self,
        p: P,
        _: usize,
        _: usize,
        sums: [P::F; A],
        mut totals: [P::F; A],
    ) -> [P::F; A] {
        for a in 0..A {
            totals[a] = p.add(totals[a], sums[a]);
        }
        totals
    }

    #[inline(always)]
    fn finish<P: Panel, const A: usize>(self, _: P, _: usize, totals: [P::F; A]) -> [P::F; A] {
        totals
    }
}

impl Scales for RowScales<'_> {
    #[inline(always)]
    fn add<P: Panel, const A: usize>(
        self,
        p: P,
        panel: usize,
        run: usize,
        sums: [P::F; A],
        totals: [P::F; A],
    ) -> [P::F; A] {
        Unscaled.add(p, panel, run, sums, totals)
    }

    #[inline(always)]
    fn finish<P: Panel, const A: usize>(
        self,
        p: P,
        panel: usize,
        mut totals: [P::F; A],
    ) -> [P::F; A] {
        let scales = p.load(&P::lanes(self.0)[panel]);
        for a in 0..A {
            totals[a] = p.mul(totals[a], scales);
        }
        totals
    }
}

impl Scales for &NestedScales {
    #[inline(always)]
    fn add<P: Panel, const A: usize>(
        self,
        p: P,
        panel: usize,
        run: usize,
        sums: [P::F; A],
        mut totals: [P::F; A],
    ) -> [P::F; A] {
        let factors = p.load_u8(&P::lanes(&self.factors)[panel * self.per_row + run]);
        for a in 0..A {
            totals[a] = p.fma(sums[a], factors, totals[a]);
        }
        totals
    }

    #[inline(always)]
    fn finish<P: Panel, const A: usize>(self, p: P, panel: usize, totals: [P::F; A]) -> [P::F; A] {
        RowScales(&self.rows).finish(p, panel, totals)
    }
}

/// Weights of the whole matrix.
struct Weights<'a, P: Panel, T: Element, S> {
    panels: &'a [P::Lanes<T::Stored>],
    scales: S,
    /// Weights of a row.
    stride: usize,
}

impl<P: Panel, T: Element, S: Copy> Clone for Weights<'_, P, T, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Panel, T: Element, S: Copy> Copy for Weights<'_, P, T, S> {}

/// All outputs of `product.panels`.
#[inline(always)]
pub(super) fn product<P: Panel, T: Element, S: Scales>(
    p: P,
    data: &[T::Stored],
    scales: S,
    stride: usize,
    product: &mut Product<'_>,
) {
    let weights = Weights::<P, T, S> { panels: P::lanes(data), scales, stride };
    let all = product.panels(P::WIDTH);
    for rows in cached(product.out.len(), stride * size_of::<f32>()) {
        let Range { mut start, end } = all;
        let count = rows.len();
        if count < 3 {
            while start + 4 <= end {
                across::<P, T, S, 4>(p, weights, start, product, rows.clone());
                start += 4;
            }
        }
        if count == 3 {
            while start + 3 <= end {
                across::<P, T, S, 3>(p, weights, start, product, rows.clone());
                start += 3;
            }
        }
        while start + 2 <= end {
            across::<P, T, S, 2>(p, weights, start, product, rows.clone());
            start += 2;
        }
        if start < end {
            across::<P, T, S, 1>(p, weights, start, product, rows);
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
fn across<P: Panel, T: Element, S: Scales, const N: usize>(
    p: P,
    weights: Weights<'_, P, T, S>,
    first: usize,
    product: &mut Product<'_>,
    rows: Range<usize>,
) {
    let mut m = rows.start;
    while m < rows.end {
        let rest = rows.end - m;
        m += match (N, rest) {
            (_, 1) => tile::<P, T, S, N, 1>(p, weights, first, product, m),
            (_, 2) => tile::<P, T, S, N, 2>(p, weights, first, product, m),
            (3.., _) | (_, 3) => tile::<P, T, S, N, 3>(p, weights, first, product, m),
            // Four and three or four are quicker than six and one or two.
            (_, 4 | 7 | 8) => tile::<P, T, S, N, 4>(p, weights, first, product, m),
            (_, 5) => tile::<P, T, S, N, 5>(p, weights, first, product, m),
            _ => tile::<P, T, S, N, 6>(p, weights, first, product, m),
        };
    }
}

/// N panels with A rows of activations from `m` on; gives A.
#[inline(always)]
fn tile<P: Panel, T: Element, S: Scales, const N: usize, const A: usize>(
    p: P,
    weights: Weights<'_, P, T, S>,
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
        let mut w: [&[P::Lanes<T::Stored>]; N] = [&[]; N];
        for n in 0..N {
            w[n] = &panels[((first + n) * stride + start) / T::WEIGHTS..][..len / T::WEIGHTS];
        }
        let mut run: [&[f32]; A] = [&[]; A];
        for a in 0..A {
            run[a] = &x[a][start..][..len];
        }
        let mut sums = [[p.splat(0.0); A]; N];
        for at in 0..len / T::WEIGHTS {
            if A < 3 && at % (LINE / size_of::<P::Lanes<T::Stored>>()) == 0 {
                // More rows compute longer than they read.
                for n in 0..N {
                    p.prefetch(&w[n][at]);
                }
            }
            for which in 0..T::WEIGHTS {
                let k = at * T::WEIGHTS + which;
                // Whichever are fewer stay in registers.
                if A < N {
                    let mut x = [p.splat(0.0); A];
                    for a in 0..A {
                        x[a] = p.splat(run[a][k]);
                    }
                    for n in 0..N {
                        let weight = T::load(p, &w[n][at], which);
                        for a in 0..A {
                            sums[n][a] = p.fma(weight, x[a], sums[n][a]);
                        }
                    }
                } else {
                    let mut weights = [p.splat(0.0); N];
                    for n in 0..N {
                        weights[n] = T::load(p, &w[n][at], which);
                    }
                    for a in 0..A {
                        let x = p.splat(run[a][k]);
                        for n in 0..N {
                            sums[n][a] = p.fma(weights[n], x, sums[n][a]);
                        }
                    }
                }
            }
        }
        for n in 0..N {
            totals[n] = scales.add(p, first + n, start / RUN, sums[n], totals[n]);
        }
        start += RUN;
    }
    for n in 0..N {
        put(p, product, first + n, m, scales.finish(p, first + n, totals[n]));
    }
    A
}
