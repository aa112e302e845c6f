//! What products need of an instruction set: panels of weights.
//!
//! A panel is [`Panel::WIDTH`] neighbouring rows of a matrix, interleaved so that one vector holds the
//! same element of each ([`crate::matrix`] has the layout). A lane is then one output, its sum runs
//! over the inputs in ascending order, and no lanes are added up at the end: how wide a panel is
//! changes no bits, so every instruction set takes its own width.

use half::{bf16, f16};

use super::BLOCK;
use crate::rows::ActivationBlock;

/// Quads, the four neighbouring inputs that integer products take at once, in a block.
pub(crate) const QUADS: usize = BLOCK / 4;

/// How far ahead weights are asked for, in bytes. A plain read of memory was quickest with 512 to 1024, and
/// slower again with 2048.
pub(crate) const AHEAD: usize = 768;

/// 2^(127 − 7): what the bits of an E4M3FN number in the place of an `f32`'s are to be multiplied with.
pub(super) const E4M3_BIAS: f32 = 1.329_228e36;

/// Arithmetic on the lanes of a panel.
pub(crate) trait Panel: Copy + Send + Sync + 'static {
    /// Rows of a panel.
    const WIDTH: usize;
    /// One `f32` for each row.
    type F: Copy;
    /// One `i32` for each row.
    type I: Copy;
    /// Something for each row, in memory.
    type Lanes<T: Copy>: Copy;

    /// Splits memory into lanes; what does not fill them is left out.
    fn lanes<T: Copy>(from: &[T]) -> &[Self::Lanes<T>];
    /// As [`lanes`](Self::lanes).
    fn lanes_mut<T: Copy>(from: &mut [T]) -> &mut [Self::Lanes<T>];

    /// Runs a kernel with these instructions switched on.
    fn run<K: PanelKernel>(self, kernel: K) -> K::Output;

    /// Asks for the memory [`AHEAD`] bytes behind this address: sooner than the processor's own
    /// prefetchers would.
    fn prefetch<T>(self, from: &T);

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lanes from memory.
    fn load(self, from: &Self::Lanes<f32>) -> Self::F;
    /// Lanes from half precision, exactly.
    fn load_f16(self, from: &Self::Lanes<f16>) -> Self::F;
    /// Lanes from bfloat16, exactly.
    fn load_bf16(self, from: &Self::Lanes<bf16>) -> Self::F;
    /// Lanes from E4M3FN codes that are no NaN, exactly.
    fn load_e4m3(self, from: &Self::Lanes<u8>) -> Self::F;
    /// Lanes from the NF4 codes in the low or the high nibbles, exactly.
    fn load_nf4(self, from: &Self::Lanes<u8>, high: bool) -> Self::F;
    /// Lanes from bytes, exactly.
    fn load_u8(self, from: &Self::Lanes<u8>) -> Self::F;
    /// Lanes to memory.
    fn store(self, v: Self::F, to: &mut Self::Lanes<f32>);

    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To `f32`; exact below 2²⁴.
    fn float(self, v: Self::I) -> Self::F;

    /// Σ w·x over a block for each row of the panel and each of A activation blocks, exactly, for
    /// 8-bit codes in −127 ..= 127 and |x| ≤ 127. `codes[q]` holds the quad q of each row.
    ///
    /// The number of quads is not in the type, and callers hide it from the compiler: where it unrolls
    /// the loop over them, it loads the activations of the whole block first, has no registers for
    /// them, and stores them again.
    fn dot8<const A: usize>(
        self,
        codes: &[Self::Lanes<[i8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [Self::I; A];

    /// As [`dot8`](Self::dot8) for 6-bit codes, stored + 32: for each of the parities r of quads, three
    /// vectors. The first holds the low four bits of the quads r and r + 4, in low and high nibbles, the
    /// second those of r + 2 and r + 6, and the third the high two bits of r, r + 2, r + 4 and r + 6, from
    /// the lowest on.
    fn dot6<const A: usize>(
        self,
        codes: &[Self::Lanes<[u8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [Self::I; A];

    /// As [`dot8`](Self::dot8) for 4-bit codes, stored + 8: `codes[q]` holds the quad q in the low
    /// nibbles and the quad q + 4 in the high ones.
    fn dot4<const A: usize>(
        self,
        codes: &[Self::Lanes<[u8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [Self::I; A];
}

/// Work over panels, to be compiled for an instruction set; see [`super::Kernel`].
pub(crate) trait PanelKernel {
    /// What it gives.
    type Output;
    /// Does the work.
    fn run<P: Panel>(self, panel: P) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use std::array;

    use proptest::prelude::*;
    use rewind_formats::{e4m3, nf4};

    use super::*;
    use crate::arch::Isa;

    /// Enough for every width.
    const WIDEST: usize = 16;

    /// Dot products of a block of a panel with two blocks of activations, and conversions.
    struct Everything<'a> {
        bytes: &'a [u8],
        halves: &'a [u16],
        x: &'a [[i8; BLOCK]; 2],
    }

    /// What [`Everything`] gives for each row.
    #[derive(Debug, PartialEq)]
    struct Row {
        eight: [f32; 2],
        six: [f32; 2],
        four: [f32; 2],
        f16: u32,
        bf16: u32,
        e4m3: u32,
        nf4: [u32; 2],
        byte: u32,
        sum: u32,
    }

    impl PanelKernel for Everything<'_> {
        type Output = Vec<Row>;

        #[inline(always)]
        fn run<P: Panel>(self, p: P) -> Vec<Row> {
            let lanes = |v: P::F| {
                let mut out = vec![0.0; P::WIDTH];
                p.store(v, &mut P::lanes_mut(&mut out)[0]);
                out
            };
            let blocks = self.x.map(|codes| ActivationBlock {
                codes,
                sum: codes.iter().map(|&x| i32::from(x)).sum(),
                scale: 1.0,
            });
            let x = blocks.each_ref();
            let codes: Vec<[i8; 4]> =
                self.bytes.as_chunks::<4>().0.iter().map(|b| b.map(code)).collect();
            let eight = p.dot8(&P::lanes(&codes)[..QUADS], x);
            let nibbles = P::lanes(self.bytes.as_chunks::<4>().0);
            let four = p.dot4(&nibbles[..QUADS / 2], x);
            let six = p.dot6(&nibbles[..QUADS / 4 * 3], x);
            let [eight, six, four] = [eight, six, four].map(|v| v.map(|v| lanes(p.float(v))));
            let f16s: Vec<_> = self.halves.iter().map(|&bits| f16::from_bits(bits)).collect();
            let bf16s: Vec<_> = self.halves.iter().map(|&bits| bf16::from_bits(bits)).collect();
            let (a, b) = (p.load_f16(&P::lanes(&f16s)[0]), p.load_bf16(&P::lanes(&bf16s)[0]));
            let sum = lanes(p.fma(a, p.splat(3.7), p.add(p.mul(a, b), a)));
            let (a, b) = (lanes(a), lanes(b));
            let small: Vec<_> = self.bytes.iter().map(|&byte| e4m3_of(byte)).collect();
            let small = lanes(p.load_e4m3(&P::lanes(&small)[0]));
            let bytes = &P::lanes(self.bytes)[0];
            let numbers = [false, true].map(|high| lanes(p.load_nf4(bytes, high)));
            let bytes = lanes(p.load_u8(bytes));
            let row = |r: usize| Row {
                eight: array::from_fn(|a| eight[a][r]),
                six: array::from_fn(|a| six[a][r]),
                four: array::from_fn(|a| four[a][r]),
                f16: a[r].to_bits(),
                bf16: b[r].to_bits(),
                e4m3: small[r].to_bits(),
                nf4: array::from_fn(|i| numbers[i][r].to_bits()),
                byte: bytes[r].to_bits(),
                sum: sum[r].to_bits(),
            };
            (0..P::WIDTH).map(row).collect()
        }
    }

    fn e4m3_of(byte: u8) -> u8 {
        if byte & 0x7f == 0x7f { 0 } else { byte }
    }

    fn code(byte: u8) -> i8 {
        byte.cast_signed().max(-127)
    }

    fn expected(case: &Everything<'_>, width: usize, r: usize) -> Row {
        let quads = case.bytes.as_chunks::<4>().0;
        let eight = |i: usize| i32::from(code(quads[i / 4 * width + r][i % 4]));
        let four = |i: usize| {
            let byte = quads[i % 16 / 4 * width + r][i % 4];
            i32::from(byte >> (4 * (i / 16)) & 15) - 8
        };
        let six = |i: usize| {
            let (quad, byte) = (i / 4, i % 4);
            let vector = |v: usize| quads[(quad % 2 * 3 + v) * width + r][byte];
            let low = vector(quad / 2 % 2) >> (quad / 4 * 4) & 15;
            let high = vector(2) >> (quad / 2 * 2) & 3;
            i32::from(low | high << 4) - 32
        };
        let dot = |w: &dyn Fn(usize) -> i32| {
            case.x.map(|x| (0..BLOCK).map(|i| w(i) * i32::from(x[i])).sum::<i32>() as f32)
        };
        let bits = case.halves[r];
        let (a, b) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
        Row {
            eight: dot(&eight),
            six: dot(&six),
            four: dot(&four),
            f16: a.to_bits(),
            bf16: b.to_bits(),
            e4m3: e4m3::value(e4m3_of(case.bytes[r])).to_bits(),
            nf4: [0, 4]
                .map(|shift| nf4::NUMBERS[usize::from(case.bytes[r] >> shift & 15)].to_bits()),
            byte: f32::from(case.bytes[r]).to_bits(),
            sum: a.mul_add(3.7, a * b + a).to_bits(),
        }
    }

    fn check(bytes: &[u8], halves: &[u16], x: &[[i8; BLOCK]; 2]) {
        let x = x.map(|x| x.map(|x| x.max(-127)));
        for isa in Isa::all() {
            let found = isa.run_panels(Everything { bytes, halves, x: &x });
            assert_eq!(found.len(), isa.panel_width());
            for (r, found) in found.iter().enumerate() {
                let case = Everything { bytes, halves, x: &x };
                assert_eq!(*found, expected(&case, isa.panel_width(), r), "{isa:?} row {r}");
            }
        }
    }

    proptest! {
        #[test]
        fn all_instruction_sets_are_exact(
            bytes in prop::collection::vec(any::<u8>(), WIDEST * BLOCK),
            halves in prop::collection::vec(any::<u16>(), WIDEST),
            x: [[i8; BLOCK]; 2],
        ) {
            // NaN payloads are not part of the promise.
            let finite = |h: u16| h & 0x7f80 != 0x7f80 && h & 0x7c00 != 0x7c00;
            let halves: Vec<_> = halves.into_iter().map(|h| if finite(h) { h } else { 0 }).collect();
            check(&bytes, &halves, &x);
        }
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        for byte in [0x00, 0xff, 0x7f, 0x80, 0x81, 0x0f, 0xf0] {
            for x in [127, -127] {
                check(&[byte; WIDEST * BLOCK], &[0; WIDEST], &[[x; BLOCK], [-x; BLOCK]]);
            }
        }
    }
}
