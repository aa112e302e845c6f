//! [`Simd`] in plain Rust. It defines what the other instruction sets must give.

use std::array;

use half::{bf16, f16};

use super::{BLOCK, Kernel, LANES, Simd};

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
    type I = [i32; LANES];
    type Codes = [i8; BLOCK];

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
    fn load_f16(self, from: &[f16; LANES]) -> Lanes {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Lanes {
        from.map(bf16::to_f32)
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
    fn exp2i(self, n: Lanes) -> Lanes {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        fold(v, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        fold(v, max)
    }

    #[inline(always)]
    fn codes8(self, from: &[i8; BLOCK]) -> [i8; BLOCK] {
        *from
    }

    #[inline(always)]
    fn codes4(self, from: &[u8; BLOCK / 2]) -> [i8; BLOCK] {
        array::from_fn(|i| match from.get(i) {
            Some(byte) => (byte & 15) as i8 - 8,
            None => (from[i - BLOCK / 2] >> 4) as i8 - 8,
        })
    }

    #[inline(always)]
    fn dot8(self, w: [i8; BLOCK], x: &[i8; BLOCK]) -> [i32; LANES] {
        array::from_fn(|lane| {
            (4 * lane..4 * lane + 4).map(|i| i32::from(w[i]) * i32::from(x[i])).sum()
        })
    }

    #[inline(always)]
    fn dot4(self, w: [i8; BLOCK], x: &[i8; BLOCK], _: &[i32; LANES]) -> [i32; LANES] {
        // The codes are already signed here; the offsets serve unsigned multiplications.
        self.dot8(w, x)
    }

    #[inline(always)]
    fn offsets(self, x: &[i8; BLOCK]) -> [i32; LANES] {
        self.dot8([8; BLOCK], x)
    }

    #[inline(always)]
    fn float(self, v: [i32; LANES]) -> Lanes {
        v.map(|x| x as f32)
    }

    #[inline(always)]
    fn narrow(self, v: [Lanes; BLOCK / LANES]) -> [i8; BLOCK] {
        array::from_fn(|i| v[i / LANES][i % LANES].round_ties_even() as i8)
    }
}
