//! Products with integer weights and 8-bit activations, see [`crate::order::integer_dot`].
//!
//! The integer sums of a block are exact, so only the multiplication by the scales and the float
//! sums over blocks have an order. Scale products are computed for eight blocks at once and read
//! back one by one, which is cheaper than converting each 16-bit scale alone.

use super::{Product, put};
use crate::arch::{BLOCK, LANES, Simd};
use crate::matrix::BlockScales;
use crate::rows::QuantizedRow;

/// A width of codes.
pub(super) trait Width {
    /// Codes of a block.
    type Block;
    fn load<S: Simd>(s: S, block: &Self::Block) -> S::Codes;
    fn dot<S: Simd>(s: S, w: S::Codes, x: &[i8; BLOCK], offsets: &[i32; LANES]) -> S::I;
}

/// 8-bit codes.
pub(super) struct Eight;

impl Width for Eight {
    type Block = [i8; BLOCK];

    #[inline(always)]
    fn load<S: Simd>(s: S, block: &[i8; BLOCK]) -> S::Codes {
        s.codes8(block)
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, w: S::Codes, x: &[i8; BLOCK], _: &[i32; LANES]) -> S::I {
        s.dot8(w, x)
    }
}

/// 4-bit codes.
pub(super) struct Four;

impl Width for Four {
    type Block = [u8; BLOCK / 2];

    #[inline(always)]
    fn load<S: Simd>(s: S, block: &[u8; BLOCK / 2]) -> S::Codes {
        s.codes4(block)
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, w: S::Codes, x: &[i8; BLOCK], offsets: &[i32; LANES]) -> S::I {
        s.dot4(w, x, offsets)
    }
}

/// An integer matrix.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, B> {
    pub(super) codes: &'a [B],
    pub(super) scales: &'a BlockScales,
    pub(super) stride: usize,
}

#[inline(always)]
pub(super) fn product<S: Simd, W: Width>(
    s: S,
    weights: Weights<'_, W::Block>,
    p: &mut Product<'_, '_>,
) {
    // Weights are read from memory once, in fours; activations stay in the caches.
    let mut n = p.rows.start;
    while n + 4 <= p.rows.end {
        if p.out.len() == 1 {
            run::<S, W, 4, 1>(s, &weights, n, p, 0);
        } else {
            across::<S, W, 4>(s, &weights, n, p);
        }
        n += 4;
    }
    for n in n..p.rows.end {
        across::<S, W, 1>(s, &weights, n, p);
    }
}

/// R rows of weights with all rows of activations.
#[inline(always)]
fn across<S: Simd, W: Width, const R: usize>(
    s: S,
    weights: &Weights<'_, W::Block>,
    n: usize,
    p: &mut Product<'_, '_>,
) {
    let mut m = 0;
    while m + 2 <= p.out.len() {
        run::<S, W, R, 2>(s, weights, n, p, m);
        m += 2;
    }
    if m < p.out.len() {
        run::<S, W, R, 1>(s, weights, n, p, m);
    }
}

#[inline(always)]
fn run<S: Simd, W: Width, const R: usize, const A: usize>(
    s: S,
    weights: &Weights<'_, W::Block>,
    n: usize,
    p: &mut Product<'_, '_>,
    m: usize,
) {
    let sums = tile::<S, W, R, A>(s, weights, n, p, m);
    put(p.put, p.out, n - p.rows.start, m, sums);
}

/// Dot products of R rows of weights from `n` on and A rows of activations from `m` on.
#[inline(always)]
fn tile<S: Simd, W: Width, const R: usize, const A: usize>(
    s: S,
    weights: &Weights<'_, W::Block>,
    n: usize,
    p: &Product<'_, '_>,
    m: usize,
) -> [[f32; A]; R] {
    let blocks = weights.stride / BLOCK;
    let mut w: [&[W::Block]; R] = [&[]; R];
    for r in 0..R {
        w[r] = &weights.codes[(n + r) * blocks..][..blocks];
    }
    let mut x = [QuantizedRow { codes: &[], offsets: &[], scales: &[] }; A];
    for a in 0..A {
        x[a] = p.input.quantized.row(p.input.first + m + a);
        // Said once, so that the loop below needs no checks.
        assert!(x[a].codes.len() == blocks && x[a].offsets.len() == blocks);
    }
    let mut lanes = [[s.splat(0.0); A]; R];
    for chunk in 0..blocks.div_ceil(LANES) {
        let mut scales = [[[0.0; LANES]; A]; R];
        for r in 0..R {
            let weight = match weights.scales.row_scale(n + r) {
                Some(scale) => s.splat(scale),
                None => s.load_f16(&weights.scales.eight(n + r, chunk)),
            };
            for a in 0..A {
                s.store(s.mul(weight, s.load(&x[a].scales[chunk])), &mut scales[r][a]);
            }
        }
        let first = chunk * LANES;
        for block in first..(first + LANES).min(blocks) {
            for r in 0..R {
                let codes = W::load(s, &w[r][block]);
                for a in 0..A {
                    let sum = W::dot(s, codes, &x[a].codes[block], &x[a].offsets[block]);
                    let scale = s.splat(scales[r][a][block % LANES]);
                    lanes[r][a] = s.fma(s.float(sum), scale, lanes[r][a]);
                }
            }
        }
    }
    let mut sums = [[0.0; A]; R];
    for r in 0..R {
        for a in 0..A {
            sums[r][a] = s.sum(lanes[r][a]);
        }
    }
    sums
}
