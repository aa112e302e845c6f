//! NF4, "4-bit NormalFloat": sixteen numbers that a normal distribution makes about equally likely.
//!
//! A block's weights are divided by its largest magnitude, and the nearest numbers stand for them. Source:
//! Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314), appendix E; the digits are
//! those of its reference implementation, and so are the codes.

use crate::scale;

/// The number of each code, in ascending order. Code 7 is zero.
pub const NUMBERS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of zero.
pub const ZERO: u8 = 7;

/// Halfway between neighbours.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (NUMBERS[i] + NUMBERS[i + 1]) / 2.0;
        i += 1;
    }
    middles
};

/// The code of the number nearest to `x`, the lower of two.
#[inline(always)]
fn code(x: f32) -> u8 {
    // No search: comparisons without branches become vectors.
    MIDDLES.iter().map(|&middle| u8::from(x > middle)).sum()
}

/// Writes the codes of a block of finite weights, and gives the scale that fits them best.
///
/// Codes are chosen for the largest magnitude, as the reference does. With them fixed, the squared error is
/// least at the scale Σ w·v / Σ v².
pub(crate) fn encode(weights: &[f32], codes: &mut [u8]) -> f32 {
    let largest = scale::largest(weights);
    if largest == 0.0 {
        codes.fill(ZERO);
        return 0.0;
    }
    for (to, w) in codes.iter_mut().zip(weights) {
        *to = code(w / largest);
    }
    let (mut products, mut squares) = (0.0_f32, 0.0_f32);
    for (&code, w) in codes.iter().zip(weights) {
        let number = NUMBERS[usize::from(code)];
        products += w * number;
        squares += number * number;
    }
    products / squares
}

/// 8-bit codes for the scales of a row's blocks, none negative, and the scale of these codes.
pub(crate) fn nest(scales: &[f32], codes: &mut Vec<u8>) -> f32 {
    let row = scale::largest(scales) / 255.0;
    codes.extend(scales.iter().map(|scale| {
        // A row whose scale is too small for a number is zero.
        if row == 0.0 { 0 } else { (scale / row).round_ties_even() as u8 }
    }));
    row
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_their_own_codes_and_middles_go_down() {
        for (i, number) in (0..).zip(NUMBERS) {
            assert_eq!(code(number), i);
        }
        for (i, middle) in (0..).zip(MIDDLES) {
            assert_eq!(code(middle), i);
            assert_eq!(code(f32::from_bits(middle.to_bits() + 1)), i + u8::from(middle > 0.0));
        }
        assert_eq!(NUMBERS[usize::from(ZERO)], 0.0);
    }

    #[test]
    fn codes_are_those_of_the_reference() {
        // `golden/nf4.py` made them and says how.
        let lines = include_str!("../tests/golden/nf4.txt").lines();
        assert!(lines.clone().count() > 40);
        for line in lines {
            let (weights, expected) = line.split_once(' ').unwrap();
            let bits =
                (0..64).map(|i| u32::from_str_radix(&weights[8 * i..8 * i + 8], 16).unwrap());
            let weights: Vec<f32> = bits.map(f32::from_bits).collect();
            let mut codes = [0; 64];
            encode(&weights, &mut codes);
            let found: String = codes.iter().map(|code| format!("{code:x}")).collect();
            assert_eq!(found, expected, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest(x in -1.0_f32..=1.0) {
            let off = |code: usize| (f64::from(NUMBERS[code]) - f64::from(x)).abs();
            let least = (0..16).map(off).fold(f64::INFINITY, f64::min);
            prop_assert!(off(usize::from(code(x))) <= least + 1e-7);
        }

        #[test]
        fn no_other_scale_fits_better(
            weights in proptest::collection::vec(-3.0_f32..3.0, 1..64), other in 0.0_f32..6.0,
        ) {
            let mut codes = vec![0; weights.len()];
            let scale = encode(&weights, &mut codes);
            let error = |scale: f32| {
                let off = |(w, &code): (&f32, &u8)| w - NUMBERS[usize::from(code)] * scale;
                weights.iter().zip(&codes).map(|pair| f64::from(off(pair)).powi(2)).sum::<f64>()
            };
            prop_assert!(error(scale) <= error(other) * (1.0 + 1e-5) + 1e-9);
        }
    }
}
