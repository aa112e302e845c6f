//! [`Simd`] and [`Panel`] in plain Rust. They define what the other instruction sets must give.

use std::array;

use half::{bf16, f16};
use rewind_formats::{e4m3, nf4};

use super::panel::{Panel, PanelKernel, QUADS};
use super::{BLOCK, Kernel, LANES, Simd};
use crate::rows::ActivationBlock;

/// Needs nothing, so anyone may hold one.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, op: impl Fn(f32, f32) -> f32) -> Lanes {
    array::from_fn(|lane| op(a[lane], b[lane]))
}

#[inline(always)]
fn fold(v: Lanes, op: impl Fn(f32, f32) -> f32) -> f32 {
    op(op(op(v[0], v[4]), op(v[2], v[6])), op(op(v[1], v[5]), op(v[3], v[7])))
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Simd for Portable {
    type F = Lanes;

    #[inline]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        *from
    }

    #[inline(always)]
    fn store(self, v: Lanes, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, max)
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: Lanes) -> Lanes {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn ldexp(self, m: Lanes, n: Lanes) -> Lanes {
        zip(m, n, |m, n| f32::from_bits(m.to_bits().wrapping_add((n as i32 as u32) << 23)))
    }

    #[inline(always)]
    fn prefetch(self, _: &u8) {}

    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        fold(v, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        fold(v, max)
    }

    #[inline(always)]
    fn narrow(self, v: [Lanes; BLOCK / LANES]) -> [i8; BLOCK] {
        array::from_fn(|i| v[i / LANES][i % LANES].round_ties_even() as i8)
    }
}

impl Panel for Portable {
    const WIDTH: usize = LANES;
    type F = Lanes;
    type I = [i32; LANES];
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
        kernel.run(self)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Lanes {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Lanes {
        from.map(bf16::to_f32)
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES]) -> Lanes {
        from.map(e4m3::value)
    }

    #[inline(always)]
    fn load_nf4(self, from: &[u8; LANES], high: bool) -> Lanes {
        from.map(|byte| nf4::NUMBERS[usize::from(if high { byte >> 4 } else { byte & 15 })])
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Lanes {
        from.map(f32::from)
    }

    #[inline(always)]
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        Simd::add(self, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        Simd::mul(self, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        Simd::fma(self, a, b, c)
    }

    #[inline(always)]
    fn float(self, v: [i32; LANES]) -> Lanes {
        v.map(|x| x as f32)
    }

    #[inline(always)]
    fn dot8<const A: usize>(
        self,
        codes: &[[[i8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [[i32; LANES]; A] {
        x.map(|x| {
            array::from_fn(|row| {
                let quads = codes.iter().map(|quad| quad[row]).zip(x.codes.as_chunks::<4>().0);
                quads.map(|(w, x)| dot(w, x)).sum()
            })
        })
    }

    #[inline(always)]
    fn dot6<const A: usize>(
        self,
        codes: &[[[u8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [[i32; LANES]; A] {
        let codes: [_; QUADS] = array::from_fn(|q| {
            let (parity, place) = (q % 2, q / 2);
            let (lows, highs) = (codes[3 * parity + place % 2], codes[3 * parity + 2]);
            array::from_fn(|row| {
                array::from_fn(|i| {
                    let low = lows[row][i] >> (place / 2 * 4) & 15;
                    let high = highs[row][i] >> (2 * place) & 3;
                    (low | high << 4) as i8 - 32
                })
            })
        });
        self.dot8(&codes, x)
    }

    #[inline(always)]
    fn dot4<const A: usize>(
        self,
        codes: &[[[u8; 4]; LANES]],
        x: [&ActivationBlock; A],
    ) -> [[i32; LANES]; A] {
        // The codes are made signed here; the sums serve unsigned multiplications.
        let codes: [_; QUADS] = array::from_fn(|q| {
            codes[q % (QUADS / 2)]
                .map(|bytes| bytes.map(|byte| (byte >> (4 * (q / (QUADS / 2))) & 15) as i8 - 8))
        });
        self.dot8(&codes, x)
    }
}

#[inline(always)]
fn dot(w: [i8; 4], x: &[i8; 4]) -> i32 {
    w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum()
}
