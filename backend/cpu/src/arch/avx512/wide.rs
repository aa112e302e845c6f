//! [`Wide`] with AVX-512: sixteen lanes are one vector.

use std::arch::x86_64::*;

use super::{Avx512, with};
use crate::arch::Panel;
use crate::arch::wide::{WIDE, Wide, WideKernel};

/// The same kernel, compiled with the instructions on.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn enter<K: WideKernel>(wide: Avx512, kernel: K) -> K::Output {
    kernel.run(wide)
}

impl Wide for Avx512 {
    type F = __m512;

    #[inline]
    fn run<K: WideKernel>(self, kernel: K) -> K::Output {
        with!(self, enter(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        Panel::splat(self, x)
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDE]) -> __m512 {
        Panel::load(self, from)
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; WIDE]) {
        Panel::store(self, v, to);
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        Panel::add(self, a, b)
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        Panel::mul(self, a, b)
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        Panel::fma(self, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        if cfg!(miri) {
            return each(self, a, f32::round_ties_even);
        }
        with!(self, _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn ldexp(self, m: __m512, n: __m512) -> __m512 {
        if cfg!(miri) {
            return with!(self, {
                let exponent = _mm512_castps_si512(each(self, n, |n| {
                    f32::from_bits((n as i32).cast_unsigned() << 23)
                }));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(m), exponent))
            });
        }
        with!(self, _mm512_scalef_ps(m, n))
    }

    #[inline(always)]
    fn prefetch(self, address: &u8) {
        with!(self, _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(address).cast()));
    }
}

/// A function of each lane, where Miri lacks the instruction.
fn each(avx512: Avx512, v: __m512, f: impl Fn(f32) -> f32) -> __m512 {
    let mut lanes = [0.0; WIDE];
    Panel::store(avx512, v, &mut lanes);
    Panel::load(avx512, &lanes.map(f))
}
