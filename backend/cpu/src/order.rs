//! The order of every sum, as plain scalar code: the definition of this executor's bits.
//!
//! A row's bits may not depend on how many rows run with it, on threads or on the instruction set, so
//! there is one order for each kind of sum, and every kernel follows it. The functions here are that
//! order, written to be read; the tests compare kernels with them bit for bit. They are slow.
//!
//! | sum | order |
//! | --- | --- |
//! | float dot product | runs of [`RUN`] elements, each a sum in ascending order by fused multiply-add; the runs are added in ascending order, times the factor of their block in NF4, by fused multiply-add; the scale of a row of E4M3FN or NF4 comes last |
//! | integer dot product | block after block of 32: the exact integer sum of the block, times (weight scale · activation scale), by fused multiply-add; where groups have offsets, then the offset times (activation scale · sum of the activations) |
//! | sum of squares | 16 lanes, lane j takes the elements j, j + 16, … by fused multiply-add; lanes j and j + 8 are added; then [`tree`] |
//! | attention | [`crate::attention`] |
//! | statistics | [`crate::statistics`] |
//!
//! Rows are padded with zeros to a multiple of 32 first. Sums start at +0. The lanes of products are
//! outputs, so their sums need no tree. Rejected: one sum over a whole row of floats, whose rounding
//! errors grow with its length; lanes along a row, which tie the order to a vector's width and end in a
//! sum over lanes for each output.

use crate::arch::BLOCK;

/// Sum of eight lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
pub fn tree(lanes: [f32; 8]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|j| lanes[j] + lanes[j + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Elements of a run of a float dot product.
pub const RUN: usize = 64;

/// Dot product of two float rows of equal length.
pub fn float_dot(w: &[f32], x: &[f32]) -> f32 {
    // A product with one is exact, so this is a plain addition.
    scaled_dot(w, |_| 1.0, x)
}

/// As [`float_dot`], with a factor for each run.
pub fn scaled_dot(w: &[f32], factor: impl Fn(usize) -> f32, x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len(), "a dot product needs equal lengths");
    let len = w.len().next_multiple_of(BLOCK);
    let at = |row: &[f32], i: usize| row.get(i).copied().unwrap_or(0.0);
    (0..len).step_by(RUN).fold(0.0, |total: f32, start| {
        let run = start..(start + RUN).min(len);
        let sum = run.fold(0.0_f32, |sum, i| at(w, i).mul_add(at(x, i), sum));
        sum.mul_add(factor(start / RUN), total)
    })
}

/// Sum of the squares of a row.
pub fn square_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] = x.mul_add(*x, lanes[i % 16]);
    }
    tree(std::array::from_fn(|j| lanes[j] + lanes[j + 8]))
}

/// A block of up to 32 activations in 8 bits: codes and their scale.
///
/// scale = largest magnitude / 127, code = round(x · (127 / largest magnitude)), ties to even. A
/// block below 1e-30 is zero; a block that holds a NaN or an infinity has the scale NaN and codes 0,
/// so that whatever is computed from it is NaN.
pub fn quantize_block(x: &[f32]) -> ([i8; BLOCK], f32) {
    assert!(x.len() <= BLOCK, "a block has at most {BLOCK} elements");
    if x.iter().any(|x| !x.is_finite()) {
        return ([0; BLOCK], f32::NAN);
    }
    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    if largest < QUANTIZE_FLOOR {
        return ([0; BLOCK], 0.0);
    }
    let inverse = 127.0 / largest;
    let code = |i| x.get(i).map_or(0, |x: &f32| (x * inverse).round_ties_even() as i8);
    (std::array::from_fn(code), largest / 127.0)
}

/// Activation blocks whose largest magnitude is below this are zero; its inverse is still finite.
pub(crate) const QUANTIZE_FLOOR: f32 = 1e-30;

/// Dot product of integer weights with a float row that is quantized by [`quantize_block`].
///
/// `scale(block)` is the weight scale of the block of 32; groups are multiples of it.
pub fn integer_dot(codes: &[i8], scale: impl Fn(usize) -> f32, x: &[f32]) -> f32 {
    blocks_dot(codes, x, |block, sum, _, activation, total| {
        sum.mul_add(scale(block) * activation, total)
    })
}

/// As [`integer_dot`], of weights that are code · scale + offset.
pub fn affine_dot(
    codes: &[i8],
    scale: impl Fn(usize) -> f32,
    offset: impl Fn(usize) -> f32,
    x: &[f32],
) -> f32 {
    blocks_dot(codes, x, |block, sum, activations, activation, total| {
        let total = sum.mul_add(scale(block) * activation, total);
        offset(block).mul_add(activation * activations, total)
    })
}

/// `join` gets the block, its sum, the sum of its activations' codes, their scale, and the total so far.
fn blocks_dot(codes: &[i8], x: &[f32], join: impl Fn(usize, f32, f32, f32, f32) -> f32) -> f32 {
    assert_eq!(codes.len(), x.len(), "a dot product needs equal lengths");
    let blocks = codes.chunks(BLOCK).zip(x.chunks(BLOCK)).enumerate();
    blocks.fold(0.0_f32, |total, (block, (w, x))| {
        let (q, activation) = quantize_block(x);
        let sum: i32 = w.iter().zip(q).map(|(w, q)| i32::from(*w) * i32::from(q)).sum();
        let activations: i32 = q.into_iter().map(i32::from).sum();
        join(block, sum as f32, activations as f32, activation, total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_dot_product_is_close_to_the_exact_one() {
        let w: Vec<f32> = (0..577).map(|i| (i as f32 * 0.37).sin()).collect();
        let x: Vec<f32> = (0..577).map(|i| (i as f32 * 0.71).cos()).collect();
        let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        assert!((f64::from(float_dot(&w, &x)) - exact).abs() < 1e-5);
    }

    #[test]
    fn quantized_activations_are_within_half_a_step() {
        let x: Vec<f32> = (0..32).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let (codes, scale) = quantize_block(&x);
        for (x, q) in x.iter().zip(codes) {
            assert!((x - f32::from(q) * scale).abs() <= scale * 0.5001);
        }
    }

    #[test]
    fn blocks_that_cannot_be_scaled() {
        assert_eq!(quantize_block(&[1e-31; 32]), ([0; 32], 0.0));
        assert_eq!(quantize_block(&[0.0; 5]), ([0; 32], 0.0));
        assert!(quantize_block(&[1.0, f32::NAN]).1.is_nan());
        assert!(quantize_block(&[f32::INFINITY]).1.is_nan());
    }
}
