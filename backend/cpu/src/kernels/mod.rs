//! Products of weights and activations, and the small operations between them.
//!
//! A product is the same sum for one row of activations, for two and for hundreds: see
//! [`crate::order`]. What changes is only how many sums a tile carries at once.

mod elementwise;
mod float;
mod integer;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use self::elementwise::{Heads, Norm, Quantize, SwiGlu};
use crate::arch::{Isa, Kernel, Simd};
use crate::matrix::{Data, Matrix};
use crate::rows::{Quantized, Rows};

/// Activations that a product reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// As floats.
    pub(crate) rows: &'a Rows,
    /// In 8 bits, valid if the matrix is an integer one.
    pub(crate) quantized: &'a Quantized,
    /// Which of the rows: `first .. first + outputs`.
    pub(crate) first: usize,
}

/// What becomes of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It replaces the output.
    Store,
    /// It is added to the output (residual connections).
    Add,
}

/// Memory that a worker needs for a product: a few rows of weights as floats.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    weights: Vec<f32>,
}

/// `out[m][n - rows.start] = Σₖ weights[n][k] · input[m][k]` for n in `rows`, m in 0 .. out.len().
#[derive(Debug)]
pub(crate) struct Product<'a, 'o> {
    pub(crate) weights: &'a Matrix,
    /// Rows of the matrix.
    pub(crate) rows: Range<usize>,
    pub(crate) input: Input<'a>,
    pub(crate) put: Put,
    /// One slice for each row of activations, `rows.len()` long.
    pub(crate) out: &'a mut [&'o mut [f32]],
    pub(crate) scratch: &'a mut Scratch,
}

impl Product<'_, '_> {
    pub(crate) fn run(self, isa: Isa) {
        isa.run(self);
    }
}

impl Kernel for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let stride = self.weights.stride();
        match self.weights.data() {
            Data::F32(data) => float::product(s, data, stride, &mut self),
            Data::F16(data) => float::product(s, data, stride, &mut self),
            Data::Bf16(data) => float::product(s, data, stride, &mut self),
            Data::Int8(codes, scales) => {
                let weights = integer::Weights { codes: codes.as_chunks().0, scales, stride };
                integer::product::<S, integer::Eight>(s, weights, &mut self);
            }
            Data::Int4(codes, scales) => {
                let weights = integer::Weights { codes: codes.as_chunks().0, scales, stride };
                integer::product::<S, integer::Four>(s, weights, &mut self);
            }
        }
    }
}

/// Writes a tile of sums.
#[inline(always)]
fn put<const R: usize, const A: usize>(
    put: Put,
    out: &mut [&mut [f32]],
    n: usize,
    m: usize,
    sums: [[f32; A]; R],
) {
    for a in 0..A {
        let out = &mut out[m + a][n..n + R];
        for r in 0..R {
            out[r] = match put {
                Put::Store => sums[r][a],
                Put::Add => out[r] + sums[r][a],
            };
        }
    }
}
