//! [`Panel`] with AVX-512: sixteen rows, and integer products by VNNI; and [`Wide`](super::Wide).
//!
//! What is over neither runs with AVX2, which these processors have too: eight lanes are part of
//! the numeric order, and next to the products it takes no time.

mod wide;

use std::arch::x86_64::*;

use half::{bf16, f16};
use rewind_formats::nf4;

use super::panel::{AHEAD, E4M3_BIAS, Panel, PanelKernel, QUADS};
use crate::rows::ActivationBlock;

/// Rows of a panel.
const WIDTH: usize = 16;

/// Proof that this CPU has AVX-512 F, BW, VL and VNNI: [`Avx512::new`] is the only way to get one.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Evaluates intrinsics that need no more than the instructions and, where they take pointers,
/// memory as large as the array behind the reference.
macro_rules! with {
    ($self:ident, $body:expr) => {{
        let Self(()) = $self;
        // SAFETY: a value of `Avx512` exists only where the instructions do. Every pointer below comes
        // from a reference to an array of exactly the size that is read or written, and all loads and
        // stores are the unaligned ones.
        unsafe { $body }
    }};
}

use with;

impl Avx512 {
    /// A proof, if this CPU has the instructions.
    pub(super) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self(()))
    }

    /// Four neighbouring activations, for every row.
    #[inline(always)]
    fn quad(self, x: &ActivationBlock, quad: usize) -> __m512i {
        // The remainder only tells the compiler that the index is good.
        let [a, b, c, d] = x.codes.as_chunks::<4>().0[quad % QUADS];
        with!(self, _mm512_set1_epi32(i32::from_ne_bytes([a, b, c, d].map(i8::cast_unsigned))))
    }
}

/// The same kernel, compiled with the instructions on.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn enter<K: PanelKernel>(panel: Avx512, kernel: K) -> K::Output {
    kernel.run(panel)
}

impl Panel for Avx512 {
    const WIDTH: usize = WIDTH;
    type F = __m512;
    type I = __m512i;
    type Lanes<T: Copy> = [T; WIDTH];

    #[inline(always)]
    fn lanes<T: Copy>(from: &[T]) -> &[[T; WIDTH]] {
        from.as_chunks().0
    }

    #[inline(always)]
    fn lanes_mut<T: Copy>(from: &mut [T]) -> &mut [[T; WIDTH]] {
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
    fn splat(self, x: f32) -> __m512 {
        with!(self, _mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> __m512 {
        with!(self, _mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; WIDTH]) -> __m512 {
        // Miri, under which the tests of this module run anywhere, has all but this instruction.
        if cfg!(miri) {
            return self.load(&from.map(f16::to_f32));
        }
        with!(self, _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDTH]) -> __m512 {
        // A bfloat16 is the upper half of the f32 with the same value.
        with!(self, {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8; WIDTH]) -> __m512 {
        // Exponent and mantissa in place, then the difference of the biases: exact, for subnormals too.
        with!(self, {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(wide, _mm512_set1_epi32(0x80)));
            let rest = _mm512_slli_epi32::<20>(_mm512_and_si512(wide, _mm512_set1_epi32(0x7f)));
            let bits = _mm512_castsi512_ps(_mm512_or_si512(sign, rest));
            _mm512_mul_ps(bits, _mm512_set1_ps(E4M3_BIAS))
        })
    }

    #[inline(always)]
    fn load_nf4(self, from: &[u8; WIDTH], high: bool) -> __m512 {
        // Of an index, the low four bits count.
        let numbers = self.load(&nf4::NUMBERS);
        with!(self, {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let codes = if high { _mm512_srli_epi32::<4>(wide) } else { wide };
            _mm512_permutexvar_ps(codes, numbers)
        })
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; WIDTH]) -> __m512 {
        with!(self, {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
        })
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; WIDTH]) {
        with!(self, _mm512_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with!(self, _mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with!(self, _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn float(self, v: __m512i) -> __m512 {
        with!(self, _mm512_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn dot8<const A: usize>(
        self,
        codes: &[[[i8; 4]; WIDTH]],
        x: [&ActivationBlock; A],
    ) -> [__m512i; A] {
        // The instruction multiplies unsigned by signed bytes: Σ w x = Σ (w + 128) x − 128 Σ x. Two sums,
        // or each addition would wait for the one before.
        let (pairs, _) = codes.as_chunks::<2>();
        let mut even = with!(self, [_mm512_setzero_si512(); A]);
        let mut odd = even;
        for a in 0..A {
            even[a] = with!(self, _mm512_set1_epi32(-128 * x[a].sum));
        }
        for (pair, codes) in pairs.iter().enumerate() {
            let (first, second) = with!(self, {
                let offset = _mm512_set1_epi8(i8::MIN);
                let first = _mm512_loadu_si512(codes[0].as_ptr().cast());
                let second = _mm512_loadu_si512(codes[1].as_ptr().cast());
                (_mm512_xor_si512(first, offset), _mm512_xor_si512(second, offset))
            });
            for a in 0..A {
                let (x0, x1) = (self.quad(x[a], 2 * pair), self.quad(x[a], 2 * pair + 1));
                even[a] = with!(self, _mm512_dpbusd_epi32(even[a], first, x0));
                odd[a] = with!(self, _mm512_dpbusd_epi32(odd[a], second, x1));
            }
        }
        for a in 0..A {
            even[a] = with!(self, _mm512_add_epi32(even[a], odd[a]));
        }
        even
    }

    #[inline(always)]
    fn dot6<const A: usize>(
        self,
        codes: &[[[u8; 4]; WIDTH]],
        x: [&ActivationBlock; A],
    ) -> [__m512i; A] {
        // Σ (w − 32) x = Σ w x − 32 Σ x with unsigned w. Shifts by 16 bits bring nothing from another byte
        // under the masks.
        let mut first = with!(self, [_mm512_setzero_si512(); A]);
        let mut second = first;
        for a in 0..A {
            first[a] = with!(self, _mm512_set1_epi32(-32 * x[a].sum));
        }
        let (parities, _) = codes.as_chunks::<3>();
        for (parity, [even, odd, high]) in parities.iter().enumerate() {
            let weights = with!(self, {
                let even = _mm512_loadu_si512(even.as_ptr().cast());
                let odd = _mm512_loadu_si512(odd.as_ptr().cast());
                let high = _mm512_loadu_si512(high.as_ptr().cast());
                let (low_mask, high_mask) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
                let lows = [even, odd, _mm512_srli_epi16::<4>(even), _mm512_srli_epi16::<4>(odd)];
                let highs = [
                    _mm512_slli_epi16::<4>(high),
                    _mm512_slli_epi16::<2>(high),
                    high,
                    _mm512_srli_epi16::<2>(high),
                ];
                let mut weights = lows;
                for i in 0..4 {
                    let low = _mm512_and_si512(lows[i], low_mask);
                    weights[i] = _mm512_or_si512(low, _mm512_and_si512(highs[i], high_mask));
                }
                weights
            });
            for a in 0..A {
                for half in 0..2 {
                    let quad = parity + 4 * half;
                    let (x0, x1) = (self.quad(x[a], quad), self.quad(x[a], quad + 2));
                    first[a] = with!(self, _mm512_dpbusd_epi32(first[a], weights[2 * half], x0));
                    second[a] =
                        with!(self, _mm512_dpbusd_epi32(second[a], weights[2 * half + 1], x1));
                }
            }
        }
        for a in 0..A {
            first[a] = with!(self, _mm512_add_epi32(first[a], second[a]));
        }
        first
    }

    #[inline(always)]
    fn dot4<const A: usize>(
        self,
        codes: &[[[u8; 4]; WIDTH]],
        x: [&ActivationBlock; A],
    ) -> [__m512i; A] {
        // Σ (w − 8) x = Σ w x − 8 Σ x with unsigned w.
        let mut first = with!(self, [_mm512_setzero_si512(); A]);
        let mut second = first;
        for a in 0..A {
            first[a] = with!(self, _mm512_set1_epi32(-8 * x[a].sum));
        }
        for (q, codes) in codes.iter().enumerate() {
            let (low, high) = with!(self, {
                let bytes = _mm512_loadu_si512(codes.as_ptr().cast());
                let mask = _mm512_set1_epi8(15);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
                (_mm512_and_si512(bytes, mask), high)
            });
            for a in 0..A {
                let (x0, x1) = (self.quad(x[a], q), self.quad(x[a], q + QUADS / 2));
                first[a] = with!(self, _mm512_dpbusd_epi32(first[a], low, x0));
                second[a] = with!(self, _mm512_dpbusd_epi32(second[a], high, x1));
            }
        }
        for a in 0..A {
            first[a] = with!(self, _mm512_add_epi32(first[a], second[a]));
        }
        first
    }
}
