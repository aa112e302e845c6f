//! [`Simd`] with AVX2, FMA and F16C.

mod panel;

use std::arch::x86_64::*;

use super::{BLOCK, Kernel, LANES, Simd};

/// Proof that this CPU has AVX2, FMA and F16C: [`Avx2::new`] is the only way to get one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A proof, if this CPU has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// The same kernel, compiled with the instructions on.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Evaluates intrinsics that need no more than the instructions and, where they take pointers,
/// memory as large as the array behind the reference.
macro_rules! with {
    ($self:ident, $body:expr) => {{
        let Self(()) = $self;
        // SAFETY: a value of `Avx2` exists only where AVX2, FMA and F16C do. Every pointer below
        // comes from a reference to an array of exactly the size that is read or written, and all
        // loads and stores are the unaligned ones.
        unsafe { $body }
    }};
}

use with;

impl Simd for Avx2 {
    type F = __m256;

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        with!(self, enter(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        with!(self, _mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m256 {
        with!(self, _mm256_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32; LANES]) {
        with!(self, _mm256_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with!(self, _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        with!(self, _mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        with!(self, _mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        with!(self, _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn ldexp(self, m: __m256, n: __m256) -> __m256 {
        with!(self, {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(m), exponent))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: &u8) {
        with!(self, _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(address).cast()));
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        with!(self, {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        with!(self, {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn narrow(self, v: [__m256; BLOCK / LANES]) -> [i8; BLOCK] {
        let mut out = [0; BLOCK];
        with!(self, {
            let [a, b, c, d] = v;
            // Packing works within 128-bit halves; the permutation restores memory order.
            let low = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let high = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
            let bytes = _mm256_packs_epi16(low, high);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
        });
        out
    }
}
