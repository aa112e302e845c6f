//! Vector instructions behind one small trait.
//!
//! Every kernel of this crate is written once, over [`Simd`]: eight `f32` lanes, eight `i32` lanes
//! and the few conversions that weight formats need. A value of a type that implements [`Simd`] is
//! the proof that this CPU has its instructions, so kernels need no `unsafe`: only the two dozen
//! one-line methods in [`avx2`] do. [`Simd::run`] is the door: it enters a function compiled for the
//! instruction set, into which the kernel is inlined whole.
//!
//! All implementations give the same bits. That holds because each operation is either exact
//! (integers, conversions), or one IEEE operation rounded once (`fma` is fused everywhere), and
//! because the order of every sum is spelled out in lanes (see [`crate::order`]).
//!
//! Rejected: one kernel per instruction set (memory-bound kernels differ only in these operations),
//! and trusting the compiler to vectorize the dot products (it may not reorder float sums, so it
//! keeps the lanes only when they are written as such).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use std::fmt;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use self::avx2::Avx2;
use self::portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// Elements of a quantization block; every row is padded to a multiple of it.
pub(crate) const BLOCK: usize = 32;

/// Eight lanes of arithmetic. Lane numbers run from 0 to 7 in memory order.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Eight `f32`.
    type F: Copy;
    /// Eight `i32`.
    type I: Copy;
    /// Thirty-two integer weight codes, ready to be multiplied.
    type Codes: Copy;

    /// Runs a kernel with these instructions switched on.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lanes from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Lanes from half precision, exactly.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F;
    /// Lanes from bfloat16, exactly.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F;
    /// Lanes to memory.
    fn store(self, v: Self::F, to: &mut [f32; LANES]);

    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: the second operand when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: the second operand when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|.
    fn abs(self, a: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// 2ⁿ for lanes that hold integers in −126 ..= 127; anything for other lanes.
    fn exp2i(self, n: Self::F) -> Self::F;

    /// Sum of the lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
    fn sum(self, v: Self::F) -> f32;
    /// Largest lane, found pairwise like [`sum`](Self::sum) with [`max`](Self::max).
    fn largest(self, v: Self::F) -> f32;

    /// Takes 8-bit codes in −127 ..= 127.
    fn codes8(self, from: &[i8; BLOCK]) -> Self::Codes;
    /// Takes 4-bit codes + 8: element i is the low nibble of byte i, element i + 16 its high nibble.
    fn codes4(self, from: &[u8; BLOCK / 2]) -> Self::Codes;
    /// Lane j: Σ w·x over the elements 4j .. 4j + 4. Exact for |x| ≤ 127.
    fn dot8(self, w: Self::Codes, x: &[i8; BLOCK]) -> Self::I;
    /// As [`dot8`](Self::dot8) for 4-bit codes; `offsets` is [`offsets`](Self::offsets) of `x`.
    fn dot4(self, w: Self::Codes, x: &[i8; BLOCK], offsets: &[i32; LANES]) -> Self::I;
    /// Lane j: 8 · Σ x over the elements 4j .. 4j + 4.
    fn offsets(self, x: &[i8; BLOCK]) -> [i32; LANES];
    /// To `f32`; exact below 2²⁴.
    fn float(self, v: Self::I) -> Self::F;
    /// Nearest integers, ties to even, of lanes in −127 ..= 127, in memory order.
    fn narrow(self, v: [Self::F; BLOCK / LANES]) -> [i8; BLOCK];
}

/// Work to be compiled for an instruction set.
///
/// Implementations of [`run`](Self::run), and all functions over [`Simd`] that they call, are
/// `#[inline(always)]`, or the instructions would not reach them; for the same reason they use loops
/// rather than closures around vectors.
pub(crate) trait Kernel {
    /// What it gives.
    type Output;
    /// Does the work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction set that kernels run with.
#[derive(Clone, Copy)]
pub struct Isa(Set);

#[derive(Clone, Copy)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable),
}

impl Isa {
    /// The best that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::new() {
            return Self(Set::Avx2(avx2));
        }
        Self::portable()
    }

    /// Plain Rust, on any CPU: the same bits, slowly.
    pub fn portable() -> Self {
        Self(Set::Portable(Portable))
    }

    /// Every instruction set that this CPU has, the best one first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::detect()];
        if all[0].name() != Self::portable().name() {
            all.push(Self::portable());
        }
        all
    }

    /// Short name, as in numeric identities: `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            Set::Portable(_) => "portable",
        }
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(avx2) => avx2.run(kernel),
            Set::Portable(portable) => portable.run(kernel),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Splits a row of blocks into vectors; what does not fill one is left out.
#[inline(always)]
pub(crate) fn vectors<T>(row: &[T]) -> &[[T; LANES]] {
    row.as_chunks().0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies every operation to the same lanes and returns all bits.
    struct Everything<'a> {
        floats: &'a [[f32; LANES]; 4],
        halves: &'a [u16; LANES],
        codes: &'a [i8; BLOCK],
        nibbles: &'a [u8; BLOCK / 2],
    }

    impl Kernel for Everything<'_> {
        type Output = (Vec<u32>, Vec<i8>, Vec<i32>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let [a, b, c, small] = self.floats.each_ref().map(|v| s.load(v));
            let f16s = self.halves.map(f16::from_bits);
            let bf16s = self.halves.map(bf16::from_bits);
            let offsets = s.offsets(self.codes);
            let eight = s.dot8(s.codes8(self.codes), self.codes);
            let four = s.dot4(s.codes4(self.nibbles), self.codes, &offsets);
            let vectors = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.fma(a, b, c),
                s.max(a, b),
                s.min(a, b),
                s.abs(a),
                s.round(a),
                s.exp2i(s.round(small)),
                s.load_f16(&f16s),
                s.load_bf16(&bf16s),
                s.float(eight),
                s.float(four),
                s.splat(self.floats[0][3]),
            ];
            let mut bits = Vec::new();
            for v in vectors {
                let mut out = [0.0; LANES];
                s.store(v, &mut out);
                bits.extend(out.map(f32::to_bits));
            }
            bits.push(s.sum(a).to_bits());
            bits.push(s.largest(a).to_bits());
            let narrow = s.narrow([small, s.round(small), s.abs(small), small]);
            (bits, narrow.to_vec(), offsets.to_vec())
        }
    }

    proptest::proptest! {
        #[test]
        fn all_instruction_sets_agree(
            floats: [[i32; LANES]; 3],
            exponent in -20_i32..20,
            small: [i8; LANES],
            fraction in 0.0_f32..1.0,
            halves: [u16; LANES],
            codes: [i8; BLOCK],
            nibbles: [u8; BLOCK / 2],
        ) {
            let scale = 2.0_f32.powi(exponent - 31);
            let [a, b, c] = floats.map(|v| v.map(|x| x as f32 * scale));
            let small = small.map(|x| f32::from(x.max(-126)).clamp(-126.0, 126.0) + fraction);
            let codes = codes.map(|x| x.max(-127));
            // NaN payloads are not part of the promise.
            let halves = halves.map(|h| if h & 0x7f80 == 0x7f80 || h & 0x7c00 == 0x7c00 { 0 } else { h });
            let floats = [a, b, c, small];
            let results = Isa::all().into_iter().map(|isa| {
                isa.run(Everything { floats: &floats, halves: &halves, codes: &codes, nibbles: &nibbles })
            });
            let results: Vec<_> = results.collect();
            for other in &results[1..] {
                proptest::prop_assert_eq!(&results[0], other);
            }
        }
    }

    #[test]
    fn comparisons_with_nan_give_the_second_operand() {
        struct Compare([f32; 2]);
        impl Kernel for Compare {
            type Output = [u32; 2];
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> [u32; 2] {
                let [a, b] = self.0.map(|x| s.splat(x));
                [s.max(a, b), s.min(a, b)].map(|v| {
                    let mut out = [0.0; LANES];
                    s.store(v, &mut out);
                    out[7].to_bits()
                })
            }
        }
        for isa in Isa::all() {
            assert_eq!(isa.run(Compare([f32::NAN, 1.0])), [1.0_f32.to_bits(); 2], "{isa:?}");
            assert!(isa.run(Compare([1.0, f32::NAN])).iter().all(|&b| f32::from_bits(b).is_nan()));
            assert_eq!(isa.run(Compare([0.0, -0.0])), [(-0.0_f32).to_bits(); 2], "{isa:?}");
        }
    }
}
