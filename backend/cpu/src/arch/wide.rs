//! Sixteen lanes of arithmetic: for statistics, where the width of a vector is what counts.
//!
//! AVX-512 has them as one vector; elsewhere they are two of [`Simd`]'s. Lane numbers run from 0 to 15 in
//! memory order, so lanes that are added up in a written order have the same bits either way.

use std::array;

use super::{Kernel, LANES, Simd};

/// Lanes of a wide vector.
pub(crate) const WIDE: usize = 2 * LANES;

/// As [`Simd`], with twice as many lanes and the few operations that statistics need.
pub(crate) trait Wide: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F: Copy;

    /// Runs a kernel with these instructions switched on.
    fn run<K: WideKernel>(self, kernel: K) -> K::Output;

    /// As [`Simd::splat`].
    fn splat(self, x: f32) -> Self::F;
    /// As [`Simd::load`].
    fn load(self, from: &[f32; WIDE]) -> Self::F;
    /// As [`Simd::store`].
    fn store(self, v: Self::F, to: &mut [f32; WIDE]);
    /// As [`Simd::add`].
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// As [`Simd::sub`].
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// As [`Simd::mul`].
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// As [`Simd::fma`].
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// As [`Simd::max`].
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// As [`Simd::min`].
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// As [`Simd::round`].
    fn round(self, a: Self::F) -> Self::F;
    /// As [`Simd::ldexp`].
    fn ldexp(self, m: Self::F, n: Self::F) -> Self::F;
    /// As [`Simd::prefetch`].
    fn prefetch(self, address: &u8);
}

/// Work over wide vectors, to be compiled for an instruction set; see [`Kernel`].
pub(crate) trait WideKernel {
    /// What it gives.
    type Output;
    /// Does the work.
    fn run<W: Wide>(self, wide: W) -> Self::Output;
}

/// Sixteen lanes as two vectors of eight.
#[derive(Clone, Copy)]
pub(super) struct Pair<S>(pub(super) S);

/// Hands a kernel the pair of the vectors it gets.
struct Paired<K>(K);

impl<K: WideKernel> Kernel for Paired<K> {
    type Output = K::Output;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> K::Output {
        self.0.run(Pair(s))
    }
}

/// The lower and the upper half.
fn halves<T>(lanes: &[T; WIDE]) -> &[[T; LANES]; 2] {
    lanes.as_chunks().0.try_into().expect("sixteen lanes are two times eight")
}

impl<S: Simd> Wide for Pair<S> {
    type F = [S::F; 2];

    #[inline]
    fn run<K: WideKernel>(self, kernel: K) -> K::Output {
        self.0.run(Paired(kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [self.0.splat(x); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDE]) -> Self::F {
        let [low, high] = halves(from);
        [self.0.load(low), self.0.load(high)]
    }

    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; WIDE]) {
        for (v, to) in v.into_iter().zip(to.as_chunks_mut().0) {
            self.0.store(v, to);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.add(a[0], b[0]), self.0.add(a[1], b[1])]
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.sub(a[0], b[0]), self.0.sub(a[1], b[1])]
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.mul(a[0], b[0]), self.0.mul(a[1], b[1])]
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [self.0.fma(a[0], b[0], c[0]), self.0.fma(a[1], b[1], c[1])]
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.max(a[0], b[0]), self.0.max(a[1], b[1])]
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.min(a[0], b[0]), self.0.min(a[1], b[1])]
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        [self.0.round(a[0]), self.0.round(a[1])]
    }

    #[inline(always)]
    fn ldexp(self, m: Self::F, n: Self::F) -> Self::F {
        [self.0.ldexp(m[0], n[0]), self.0.ldexp(m[1], n[1])]
    }

    #[inline(always)]
    fn prefetch(self, address: &u8) {
        self.0.prefetch(address);
    }
}

/// Sum of the lanes: lanes j and j + 8 are added, then as [`Simd::sum`].
#[inline(always)]
pub(crate) fn sum<W: Wide>(w: W, v: W::F) -> f32 {
    let mut lanes = [0.0; WIDE];
    w.store(v, &mut lanes);
    crate::order::tree(array::from_fn(|j| lanes[j] + lanes[j + LANES]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, prop_oneof};

    use super::*;
    use crate::arch::Isa;

    /// Applies every operation to the same lanes and returns all bits.
    struct Everything<'a>(&'a [[f32; WIDE]; 4]);

    impl WideKernel for Everything<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<W: Wide>(self, w: W) -> Vec<u32> {
            let [a, b, c, small] = self.0.each_ref().map(|v| w.load(v));
            let vectors = [
                w.add(a, b),
                w.sub(a, b),
                w.mul(a, b),
                w.fma(a, b, c),
                w.max(a, b),
                w.min(a, b),
                w.round(a),
                w.round(small),
                w.ldexp(w.fma(b, w.splat(0.0), w.splat(1.5)), w.round(small)),
                w.splat(self.0[0][3]),
            ];
            let mut bits = vec![sum(w, a).to_bits()];
            for v in vectors {
                let mut out = [0.0; WIDE];
                w.store(v, &mut out);
                bits.extend(out.map(f32::to_bits));
            }
            bits
        }
    }

    proptest::proptest! {
        #[test]
        fn all_instruction_sets_agree(
            floats: [[i32; WIDE]; 3],
            exponent in -20_i32..20,
            small: [i8; WIDE],
            fraction in prop_oneof![Just(0.5_f32), 0.0_f32..1.0],
        ) {
            let scale = 2.0_f32.powi(exponent - 31);
            let [a, b, c] = floats.map(|v| v.map(|x| x as f32 * scale));
            let small = small.map(|x| f32::from(x.clamp(-126, 125)) + fraction);
            let floats = [a, b, c, small];
            let results = Isa::all().into_iter().map(|isa| isa.run_wide(Everything(&floats)));
            let results: Vec<_> = results.collect();
            for other in &results[1..] {
                proptest::prop_assert_eq!(&results[0], other);
            }
        }
    }

    #[test]
    fn comparisons_with_nan_give_the_second_operand() {
        struct Compare([f32; 2]);
        impl WideKernel for Compare {
            type Output = [f32; 2];
            #[inline(always)]
            fn run<W: Wide>(self, w: W) -> [f32; 2] {
                let [a, b] = self.0.map(|x| w.splat(x));
                [w.max(a, b), w.min(a, b)].map(|v| {
                    let mut out = [0.0; WIDE];
                    w.store(v, &mut out);
                    out[15]
                })
            }
        }
        for isa in Isa::all() {
            assert_eq!(isa.run_wide(Compare([f32::NAN, 1.0])), [1.0; 2], "{isa:?}");
            assert!(isa.run_wide(Compare([1.0, f32::NAN])).iter().all(|x| x.is_nan()), "{isa:?}");
        }
    }
}
