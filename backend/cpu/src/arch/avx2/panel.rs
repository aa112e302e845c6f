//! [`Panel`] with AVX2: eight rows.

use std::arch::x86_64::*;

use half::{bf16, f16};
use rewind_formats::nf4;

use super::{Avx2, with};
use crate::arch::panel::{AHEAD, E4M3_BIAS, Panel, PanelKernel, QUADS};
use crate::arch::{LANES, Simd};
use crate::rows::ActivationBlock;

/// The same kernel, compiled with the instructions on.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter<K: PanelKernel>(panel: Avx2, kernel: K) -> K::Output {
    kernel.run(panel)
}

/// The code book, as two tables.
static NF4_HALVES: [[f32; LANES]; 2] = match nf4::NUMBERS.as_chunks() {
    ([below, above], []) => [*below, *above],
    _ => panic!("sixteen numbers"),
};

impl Avx2 {
    /// Four neighbouring activations, for every row.
    #[inline(always)]
    fn quad(self, x: &ActivationBlock, quad: usize) -> __m256i {
        // The remainder only tells the compiler that the index is good.
        let [a, b, c, d] = x.codes.as_chunks::<4>().0[quad % QUADS];
        with!(self, _mm256_set1_epi32(i32::from_ne_bytes([a, b, c, d].map(i8::cast_unsigned))))
    }
}

impl Panel for Avx2 {
    const WIDTH: usize = LANES;
    type F = __m256;
    type I = __m256i;
    type Lanes<T: Copy> = [T; LANES];

    #[inline(always)]
    fn lanes<T: Copy>(from: &[T]) -> &[[T; LANES]] {
        from.as_chunks().0
    }

    #[inline(always)]
    fn lanes_mut<T: Copy>(from: &mut [T]) -> &mut [[T; LANES]] {
        from.as_chunks_mut().0
    }

    #[inline]
    fn run<K: PanelKernel>(self, kernel: K) -> K::Output {
        with!(self, enter(self, kernel))
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T) {
        let ahead = std::ptr::from_ref(from).cast::<i8>().wrapping_add(AHEAD);
        // Never fails, wherever the address leads.
        with!(self, _mm_prefetch::<_MM_HINT_T0>(ahead));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        Simd::splat(self, x)
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m256 {
        Simd::load(self, from)
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m256 {
        with!(self, _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m256 {
        // A bfloat16 is the upper half of the f32 with the same value.
        with!(self, {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> __m256 {
        // Exponent and mantissa in place, then the difference of the biases: exact, for subnormals too.
        with!(self, {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(wide, _mm256_set1_epi32(0x80)));
            let rest = _mm256_slli_epi32::<20>(_mm256_and_si256(wide, _mm256_set1_epi32(0x7f)));
            let bits = _mm256_castsi256_ps(_mm256_or_si256(sign, rest));
            _mm256_mul_ps(bits, _mm256_set1_ps(E4M3_BIAS))
        })
    }

    #[inline(always)]
    fn load_nf4(self, from: &[u8; LANES], high: bool) -> __m256 {
        // A table has eight numbers, of which the low three bits choose; the fourth chooses the table.
        let [below, above] = NF4_HALVES.each_ref().map(|half| Simd::load(self, half));
        with!(self, {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let codes = if high { _mm256_srli_epi32::<4>(wide) } else { wide };
            let below = _mm256_permutevar8x32_ps(below, codes);
            let above = _mm256_permutevar8x32_ps(above, codes);
            _mm256_blendv_ps(below, above, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
        })
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m256 {
        with!(self, {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast())))
        })
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32; LANES]) {
        Simd::store(self, v, to);
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        Simd::add(self, a, b)
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        Simd::mul(self, a, b)
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        Simd::fma(self, a, b, c)
    }

    #[inline(always)]
    fn float(self, v: __m256i) -> __m256 {
        with!(self, _mm256_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn dot8<const A: usize>(
        self,
        codes: &[[[i8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [__m256i; A] {
        // The instruction multiplies unsigned by signed bytes, so w's sign moves to x. A pair sums to
        // at most 2 · 127 · 127, which does not saturate, but two pairs would.
        let mut sums = with!(self, [_mm256_setzero_si256(); A]);
        for (q, codes) in codes.iter().enumerate() {
            let w = with!(self, _mm256_loadu_si256(codes.as_ptr().cast()));
            let magnitude = with!(self, _mm256_abs_epi8(w));
            for a in 0..A {
                let x = self.quad(x[a], q);
                sums[a] = with!(self, {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
                    _mm256_add_epi32(sums[a], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                });
            }
        }
        sums
    }

    #[inline(always)]
    fn dot6<const A: usize>(
        self,
        codes: &[[[u8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [__m256i; A] {
        // Σ (w − 32) x = Σ w x − 32 Σ x with unsigned w. A pair sums to at most 2 · 63 · 127, so two fit in
        // 16 bits, but not three. Shifts by 16 bits bring nothing from another byte under the masks.
        let mut sums = with!(self, [_mm256_setzero_si256(); A]);
        for a in 0..A {
            sums[a] = with!(self, _mm256_set1_epi32(-32 * x[a].sum));
        }
        let (parities, _) = codes.as_chunks::<3>();
        for (parity, [even, odd, high]) in parities.iter().enumerate() {
            let weights = with!(self, {
                let even = _mm256_loadu_si256(even.as_ptr().cast());
                let odd = _mm256_loadu_si256(odd.as_ptr().cast());
                let high = _mm256_loadu_si256(high.as_ptr().cast());
                let (low_mask, high_mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
                let lows = [even, odd, _mm256_srli_epi16::<4>(even), _mm256_srli_epi16::<4>(odd)];
                let highs = [
                    _mm256_slli_epi16::<4>(high),
                    _mm256_slli_epi16::<2>(high),
                    high,
                    _mm256_srli_epi16::<2>(high),
                ];
                let mut weights = lows;
                for i in 0..4 {
                    let low = _mm256_and_si256(lows[i], low_mask);
                    weights[i] = _mm256_or_si256(low, _mm256_and_si256(highs[i], high_mask));
                }
                weights
            });
            for a in 0..A {
                for half in 0..2 {
                    let quad = parity + 4 * half;
                    let (first, second) = (self.quad(x[a], quad), self.quad(x[a], quad + 2));
                    sums[a] = with!(self, {
                        let first = _mm256_maddubs_epi16(weights[2 * half], first);
                        let second = _mm256_maddubs_epi16(weights[2 * half + 1], second);
                        let pairs = _mm256_add_epi16(first, second);
                        _mm256_add_epi32(sums[a], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                    });
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn dot4<const A: usize>(
        self,
        codes: &[[[u8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [__m256i; A] {
        // Σ (w − 8) x = Σ w x − 8 Σ x with unsigned w. A pair sums to at most 2 · 15 · 127, so all
        // eight of a block fit in 16 bits.
        let mut pairs = with!(self, [_mm256_setzero_si256(); A]);
        for (q, codes) in codes.iter().enumerate() {
            let (low, high) = with!(self, {
                let bytes = _mm256_loadu_si256(codes.as_ptr().cast());
                let mask = _mm256_set1_epi8(15);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
                (_mm256_and_si256(bytes, mask), high)
            });
            for a in 0..A {
                let (first, second) = (self.quad(x[a], q), self.quad(x[a], q + QUADS / 2));
                pairs[a] = with!(self, {
                    let first = _mm256_maddubs_epi16(low, first);
                    let second = _mm256_maddubs_epi16(high, second);
                    _mm256_add_epi16(_mm256_add_epi16(pairs[a], first), second)
                });
            }
        }
        let mut out = pairs;
        for a in 0..A {
            out[a] = with!(self, {
                let sum = _mm256_madd_epi16(pairs[a], _mm256_set1_epi16(1));
                _mm256_sub_epi32(sum, _mm256_set1_epi32(8 * x[a].sum))
            });
        }
        out
    }
}
