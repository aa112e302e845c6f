//! Products with float weights: sixteen lanes of fused multiply-add, see [`crate::order::float_dot`].
//!
//! For a few rows of activations the weights are converted in registers on their way from memory.
//! For more they are converted once, six rows at a time, to a scratch that stays in the L1 or L2
//! cache, and 3 × 2 tiles (twelve accumulators of the sixteen registers) sweep over it.

use half::{bf16, f16};

use super::{Product, put};
use crate::arch::{LANES, Simd, vectors};

/// A float type that weights are stored in.
pub(super) trait Element: Copy {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load(from)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_f16(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_bf16(from)
    }
}

/// Rows of weights converted at a time.
const SCRATCH_ROWS: usize = 6;

/// Rows of activations from which conversion to the scratch pays.
const CONVERT_FROM: usize = 4;

#[inline(always)]
pub(super) fn product<S: Simd, T: Element>(
    s: S,
    data: &[T],
    stride: usize,
    p: &mut Product<'_, '_>,
) {
    let rows = p.rows.clone();
    if p.out.len() < CONVERT_FROM {
        let data = &data[rows.start * stride..rows.end * stride];
        return match p.out.len() {
            0 => (),
            1 => sweep::<S, T, 4, 1>(s, data, stride, 0, p),
            2 => sweep::<S, T, 2, 2>(s, data, stride, 0, p),
            _ => sweep::<S, T, 2, 3>(s, data, stride, 0, p),
        };
    }
    let mut scratch = std::mem::take(&mut p.scratch.weights);
    scratch.resize(SCRATCH_ROWS * stride, 0.0);
    for first in rows.clone().step_by(SCRATCH_ROWS) {
        let last = (first + SCRATCH_ROWS).min(rows.end);
        let from = vectors(&data[first * stride..last * stride]);
        for (from, to) in from.iter().zip(scratch.as_chunks_mut().0) {
            s.store(T::load(s, from), to);
        }
        let weights = &scratch[..(last - first) * stride];
        sweep::<S, f32, 3, 2>(s, weights, stride, first - rows.start, p);
    }
    p.scratch.weights = scratch;
}

/// All rows of `data` (the outputs from `first` on) with all rows of activations, in R × A tiles.
#[inline(always)]
fn sweep<S: Simd, T: Element, const R: usize, const A: usize>(
    s: S,
    data: &[T],
    stride: usize,
    first: usize,
    p: &mut Product<'_, '_>,
) {
    let rows = data.len() / stride;
    let mut m = 0;
    while m + A <= p.out.len() {
        let mut n = 0;
        while n + R <= rows {
            let sums = tile::<S, T, R, A>(s, data, stride, n, p, m);
            put(p.put, p.out, first + n, m, sums);
            n += R;
        }
        for n in n..rows {
            let sums = tile::<S, T, 1, A>(s, data, stride, n, p, m);
            put(p.put, p.out, first + n, m, sums);
        }
        m += A;
    }
    for m in m..p.out.len() {
        let mut n = 0;
        while n + R <= rows {
            let sums = tile::<S, T, R, 1>(s, data, stride, n, p, m);
            put(p.put, p.out, first + n, m, sums);
            n += R;
        }
        for n in n..rows {
            let sums = tile::<S, T, 1, 1>(s, data, stride, n, p, m);
            put(p.put, p.out, first + n, m, sums);
        }
    }
}

/// Dot products of R rows of weights from `n` on and A rows of activations from `m` on.
#[inline(always)]
fn tile<S: Simd, T: Element, const R: usize, const A: usize>(
    s: S,
    data: &[T],
    stride: usize,
    n: usize,
    p: &Product<'_, '_>,
    m: usize,
) -> [[f32; A]; R] {
    let steps = stride / (2 * LANES);
    let mut w: [&[[T; LANES]]; R] = [&[]; R];
    for r in 0..R {
        w[r] = &vectors(&data[(n + r) * stride..])[..2 * steps];
    }
    let mut x: [&[[f32; LANES]]; A] = [&[]; A];
    for a in 0..A {
        x[a] = &vectors(p.input.rows.row(p.input.first + m + a))[..2 * steps];
    }
    let mut lanes = [[[s.splat(0.0); 2]; A]; R];
    for step in 0..steps {
        for half in 0..2 {
            let i = 2 * step + half;
            let mut xs = [s.splat(0.0); A];
            for a in 0..A {
                xs[a] = s.load(&x[a][i]);
            }
            for r in 0..R {
                let w = T::load(s, &w[r][i]);
                for a in 0..A {
                    lanes[r][a][half] = s.fma(w, xs[a], lanes[r][a][half]);
                }
            }
        }
    }
    let mut sums = [[0.0; A]; R];
    for r in 0..R {
        for a in 0..A {
            sums[r][a] = s.sum(s.add(lanes[r][a][0], lanes[r][a][1]));
        }
    }
    sums
}
