//! The 8-bit float E4M3FN: a sign, four bits of exponent (bias 7), three of mantissa.
//!
//! No infinities: all ones is NaN, in both signs, and the largest number is 448. Source: Micikevicius et
//! al., "FP8 Formats for Deep Learning" (arXiv 2209.05433).

use std::array;

/// Largest number.
pub const MAX: f32 = 448.0;

/// Exact value of a code; NaN for the two that are none.
pub fn value(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2.0_f32.powi(-9),
        _ => (8.0 + mantissa) * 2.0_f32.powi(i32::from(exponent) - 10),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// Smallest normal number.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;

/// The number nearest to `x`, which is finite: ties to the even code, at most [`MAX`] in magnitude.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    // Without branches and calls, so that loops over it become vectors. `f32::clamp` checks its bounds.
    let x = if x > MAX { MAX } else { x };
    let x = if x < -MAX { -MAX } else { x };
    let power = f32::from_bits(x.to_bits() & 0x7f80_0000);
    let power = if power < SMALLEST_NORMAL { SMALLEST_NORMAL } else { power };
    // Neighbours of this number are an eighth of the power apart, which is where it rounds `x` to.
    let large = 1_572_864.0 * power;
    x + large - large
}

/// The code of a number that [`round`] gives.
#[inline(always)]
pub(crate) fn code(number: f32) -> u8 {
    let bits = number.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = number.abs();
    if magnitude < SMALLEST_NORMAL {
        return sign | (magnitude * 512.0) as u8;
    }
    // Exponent and the upper three bits of the mantissa, with the other bias.
    sign | (((bits & 0x7fff_ffff) - (120 << 23)) >> 20) as u8
}

/// The values of all codes.
pub fn table() -> [f32; 256] {
    array::from_fn(|code| value(code as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(x: f32) -> u8 {
        code(round(x))
    }

    #[test]
    fn numbers_of_the_specification() {
        assert_eq!(value(0x7e), 448.0);
        assert_eq!(value(0x08), 2.0_f32.powi(-6));
        assert_eq!(value(0x01), 2.0_f32.powi(-9));
        assert_eq!(value(0x07), 0.875 * 2.0_f32.powi(-6));
        assert_eq!(value(0xb8), -1.0);
        assert!(value(0x7f).is_nan() && value(0xff).is_nan());
        assert_eq!(value(0x80).to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    fn values_and_codes_are_those_of_the_reference() {
        // `golden/fp8.py` made them and says how.
        let hex = |text: &str| u32::from_str_radix(text, 16).unwrap();
        let mut lines = include_str!("../tests/golden/fp8.txt").lines();
        let values = lines.next().unwrap();
        for code in 0..=255_u8 {
            let expected = f32::from_bits(hex(&values[8 * usize::from(code)..][..8]));
            let same = value(code).to_bits() == expected.to_bits();
            assert!(same || (value(code).is_nan() && expected.is_nan()), "{code:x}: {expected}");
        }
        let mut count = 0;
        for (x, expected) in lines.map(|line| line.split_once(' ').unwrap()) {
            // The sign of zero is lost here, and kept there.
            let expected = if expected == "80" { 0 } else { hex(expected) as u8 };
            let x = f32::from_bits(hex(x));
            assert_eq!(nearest(x), expected, "{x}");
            count += 1;
        }
        assert!(count > 1000, "{count}");
    }

    #[test]
    fn every_number_is_its_own_nearest() {
        // Adding and subtracting loses the sign of zero.
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f && *code != 0x80) {
            assert_eq!(nearest(value(code)), code, "{}", value(code));
        }
    }

    #[test]
    fn between_neighbours_the_nearer_is_taken_and_ties_go_to_the_even_code() {
        for code in 0..0x7e_u8 {
            let middle = (value(code) + value(code + 1)) / 2.0;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(nearest(middle), even, "{middle}");
            assert_eq!(nearest(middle.next_down()), code);
            assert_eq!(nearest(middle.next_up()), code + 1);
            assert_eq!(nearest(-middle.next_up()), (code + 1) | 0x80);
        }
    }

    #[test]
    fn what_is_larger_saturates() {
        for x in [448.5, 1e9, f32::MAX] {
            assert_eq!((nearest(x), nearest(-x)), (0x7e, 0xfe));
        }
        assert_eq!(nearest(f32::from_bits(1)), 0);
    }
}
