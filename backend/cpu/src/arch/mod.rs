//! Vector instructions behind three small traits.
//!
//! Every kernel of this crate is written once: products over [`Panel`], statistics over [`Wide`], sixteen
//! `f32` lanes, everything else over [`Simd`], eight. A value of a type that implements them is the proof that this CPU has its
//! instructions, so kernels need no `unsafe`: only the short methods in [`avx2`] and [`avx512`] do.
//! Their `run` is the door: it enters a function compiled for the instruction set, into which the
//! kernel is inlined whole.
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
#[cfg(target_arch = "x86_64")]
mod avx512;
mod panel;
mod portable;
mod wide;

use std::fmt;

#[cfg(target_arch = "x86_64")]
use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use self::avx512::Avx512;
pub(crate) use self::panel::{Panel, PanelKernel, QUADS};
use self::portable::Portable;
use self::wide::Pair;
pub(crate) use self::wide::{WIDE, Wide, WideKernel, sum};

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// Elements of a quantization block; every row is padded to a multiple of it.
pub(crate) const BLOCK: usize = 32;

/// Eight lanes of arithmetic. Lane numbers run from 0 to 7 in memory order.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Eight `f32`.
    type F: Copy;

    /// Runs a kernel with these instructions switched on.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lanes from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
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
    /// m · 2ⁿ for lanes whose n is an integer and whose m and result are normal numbers, and m where both
    /// are NaN; anything for other lanes.
    fn ldexp(self, m: Self::F, n: Self::F) -> Self::F;

    /// Asks for the cache line of this address.
    fn prefetch(self, address: &u8);

    /// Sum of the lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
    fn sum(self, v: Self::F) -> f32;
    /// Largest lane, found pairwise like [`sum`](Self::sum) with [`max`](Self::max).
    fn largest(self, v: Self::F) -> f32;

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
    Avx512(Avx512, Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable),
}

impl Isa {
    /// The best that this CPU has.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// Plain Rust, on any CPU: the same bits, slowly.
    pub fn portable() -> Self {
        Self(Set::Portable(Portable))
    }

    /// Every instruction set that this CPU has, the best one first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::new() {
            let avx512 = Avx512::new().map(|avx512| Set::Avx512(avx512, avx2));
            all.extend(avx512.into_iter().chain([Set::Avx2(avx2)]).map(Self));
        }
        all.push(Self::portable());
        all
    }

    /// Short name, as in numeric identities: `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(..) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            Set::Portable(_) => "portable",
        }
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_, avx2) | Set::Avx2(avx2) => Simd::run(avx2, kernel),
            Set::Portable(portable) => Simd::run(portable, kernel),
        }
    }
}

impl Isa {
    /// Runs a kernel over panels.
    pub(crate) fn run_panels<K: PanelKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(avx512, _) => Panel::run(avx512, kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(avx2) => Panel::run(avx2, kernel),
            Set::Portable(portable) => Panel::run(portable, kernel),
        }
    }

    /// Runs a kernel over wide vectors.
    pub(crate) fn run_wide<K: WideKernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(avx512, _) => Wide::run(avx512, kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(avx2) => Wide::run(Pair(avx2), kernel),
            Set::Portable(portable) => Wide::run(Pair(portable), kernel),
        }
    }

    /// Rows of its panels.
    pub(crate) fn panel_width(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(..) => Avx512::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => Avx2::WIDTH,
            Set::Portable(_) => Portable::WIDTH,
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
    struct Everything<'a>(&'a [[f32; LANES]; 4]);

    impl Kernel for Everything<'_> {
        type Output = (Vec<u32>, Vec<i8>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let [a, b, c, small] = self.0.each_ref().map(|v| s.load(v));
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
                s.ldexp(s.fma(b, s.splat(0.0), s.splat(1.5)), s.round(small)),
                s.splat(self.0[0][3]),
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
            (bits, narrow.to_vec())
        }
    }

    proptest::proptest! {
        #[test]
        fn all_instruction_sets_agree(
            floats: [[i32; LANES]; 3],
            exponent in -20_i32..20,
            small: [i8; LANES],
            fraction in 0.0_f32..1.0,
        ) {
            let scale = 2.0_f32.powi(exponent - 31);
            let [a, b, c] = floats.map(|v| v.map(|x| x as f32 * scale));
            let small = small.map(|x| f32::from(x.max(-126)).clamp(-126.0, 126.0) + fraction);
            let floats = [a, b, c, small];
            let results = Isa::all().into_iter().map(|isa| isa.run(Everything(&floats)));
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
