//! Exponential functions, many lanes at a time.
//!
//! [`exp`]: eˣ = 2ⁿ · eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2. ln 2 is split in two so that r
//! keeps its bits (Cody and Waite), and eʳ is its Taylor polynomial of degree 7, whose remainder is at
//! most r⁸ / 8! · 1.4 < 8e-9, an eighth of an f32's half step. Tested: relative error below 1.5e-7
//! over the whole range. Rejected: the C library's `expf`, which is neither vectorized nor the same
//! on every machine.
//!
//! [`exp2`], for statistics, which pay for every operation once per logit: 2ᵗ = 2ⁿ · 2ᶠ with
//! n = round(t), so that f = t − n is exact. 2ᶠ is the minimax polynomial of degree 5, by relative
//! error on |f| ≤ ½, that is 1 at 0: 9.2e-8, with rounding below 2e-7 (tested).

use crate::arch::{Simd, Wide};

/// Below this the result stays at e^LOW, about the smallest normal number, 1.18e-38.
pub(crate) const LOW: f32 = -87.336_54;

/// Above this the result stays at e^HIGH, about 2.4e38.
pub(crate) const HIGH: f32 = 88.376;

/// High bits of ln 2; times an integer of 8 bits it is exact.
const LN2_HIGH: f32 = 0.693_359_4;

/// ln 2 − LN2_HIGH.
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Coefficients of 2ᶠ, in ascending order.
#[expect(clippy::approx_constant, reason = "fitted, so not quite the derivative at 0")]
const EXP2: [f32; 6] =
    [1.0, 0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// eˣ for each lane, saturating at both ends ([`LOW`], [`HIGH`]); NaN gives NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The constant goes first: of two operands, one NaN, min and max give the second.
    let x = s.max(s.splat(LOW), s.min(s.splat(HIGH), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(coefficient));
    }
    s.ldexp(p, n)
}

/// 2ᵗ for lanes in −126 ..= 126; anything for other lanew.
#[inline(always)]
pub(crate) fn exp2<W: Wide>(w: W, t: W::F) -> W::F {
    let n = w.round(t);
    let f = w.sub(t, n);
    let [c0, c1, c2, c3, c4, c5] = EXP2;
    // In pairs of coefficients: half as long a chain as one coefficient after the other.
    let square = w.mul(f, f);
    let p = w.fma(f, w.splat(c5), w.splat(c4));
    let p = w.fma(p, square, w.fma(f, w.splat(c3), w.splat(c2)));
    let p = w.fma(p, square, w.fma(f, w.splat(c1), w.splat(c0)));
    w.ldexp(p, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Isa, Kernel, LANES, WIDE, WideKernel};

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            s.store(exp(s, s.load(&self.0)), &mut out);
            out
        }
    }

    /// Largest relative error against `exact` at 400,000 places; bits are the same on all instruction sets.
    /// `place` maps 0 ..= 1 to them.
    ///
    /// Functions come as pointers: inlined into one loop, they crashed the compiler's vectorizer.
    fn worst<const N: usize>(
        place: fn(f32) -> f32,
        run: fn(Isa, [f32; N]) -> [f32; N],
        exact: fn(f64) -> f64,
    ) -> f64 {
        let mut worst = 0.0_f64;
        let steps = 400_000;
        for i in 0..steps / N {
            let x = std::array::from_fn(|lane| place((i * N + lane) as f32 / steps as f32));
            let all = Isa::all().into_iter().map(|isa| run(isa, x)).collect::<Vec<_>>();
            for (x, y) in x.iter().zip(all[0]) {
                let exact = exact(f64::from(*x));
                worst = worst.max(((f64::from(y) - exact) / exact).abs());
            }
            for other in &all[1..] {
                assert_eq!(all[0].map(f32::to_bits), other.map(f32::to_bits), "{x:?}");
            }
        }
        worst
    }

    #[test]
    fn the_error_is_below_its_bound_and_bits_agree() {
        let run = |isa: Isa, x: [f32; LANES]| isa.run(Exp(x));
        let worst = worst(|share| LOW + (HIGH - LOW) * share, run, f64::exp);
        assert!(worst < 1.5e-7, "{worst:e}");
    }

    struct Exp2([f32; WIDE]);

    impl WideKernel for Exp2 {
        type Output = [f32; WIDE];

        #[inline(always)]
        fn run<W: Wide>(self, w: W) -> [f32; WIDE] {
            let mut out = [0.0; WIDE];
            w.store(exp2(w, w.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn powers_of_two_are_as_exact_as_said() {
        let run = |isa: Isa, t: [f32; WIDE]| isa.run_wide(Exp2(t));
        let worst = worst(|share| -126.0 * share * share, run, f64::exp2);
        assert!(worst < 2e-7, "{worst:e}");
        let whole: [f32; WIDE] = std::array::from_fn(|lane| -8.0 * lane as f32);
        for isa in Isa::all() {
            assert_eq!(isa.run_wide(Exp2(whole)), whole.map(|t| 2.0_f32.powi(t as i32)));
        }
    }

    #[test]
    fn the_ends_saturate_and_nan_stays() {
        for isa in Isa::all() {
            let infinity = f32::INFINITY;
            let y = isa.run(Exp([0.0, -200.0, -infinity, 200.0, infinity, f32::NAN, LOW, HIGH]));
            assert_eq!(y[0], 1.0);
            assert_eq!((y[1], y[2]), (y[6], y[6]));
            assert_eq!((y[3], y[4]), (y[7], y[7]));
            assert!(y[5].is_nan() && y[6] > 0.0 && y[7].is_finite());
        }
    }
}
