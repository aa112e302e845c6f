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

use half::{bf16, f16};

pub(crate) use self::elementwise::{Head, Norm, Quantize, SwiGlu};
use self::float::{E4m3, Nf4, RowScales, Unscaled};
use crate::arch::{BLOCK, Isa, Panel, PanelKernel};
use crate::matrix::{Data, Matrix};
use crate::rows::ActivationBlock;
use crate::shared::{Block, BlockMut};

/// Activations that a product reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// As floats.
    pub(crate) rows: Block<'a, f32>,
    /// In 8 bits, valid if the matrix is an integer one.
    pub(crate) quantized: Block<'a, ActivationBlock>,
}

/// What becomes of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It replaces the output.
    Store,
    /// It is added to the output (residual connections).
    Add,
}

/// `out[m][n - rows.start] = Σₖ weights[n][k] · input[m][k]` for n in `rows`, m in 0 .. out.len().
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) weights: &'a Matrix,
    /// Rows of the matrix: whole panels, but for the matrix's last.
    pub(crate) rows: Range<usize>,
    pub(crate) input: Input<'a>,
    pub(crate) put: Put,
    /// A row for each row of activations, `rows.len()` long.
    pub(crate) out: BlockMut<'a, f32>,
}

impl Product<'_> {
    /// Computes it. `isa` is the one that the matrix was packed for.
    pub(crate) fn run(self, isa: Isa) {
        isa.run_panels(self);
    }

    /// The panels that `rows` are.
    fn panels(&self, width: usize) -> Range<usize> {
        assert!(
            self.rows.start.is_multiple_of(width) && self.weights.panel_width() == width,
            "rows from {} on in panels of {}, with kernels for {width}",
            self.rows.start,
            self.weights.panel_width()
        );
        self.rows.start / width..self.rows.end.div_ceil(width)
    }
}

impl PanelKernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Panel>(mut self, p: P) {
        let stride = self.weights.stride();
        let blocks = stride / BLOCK;
        match self.weights.data() {
            Data::F32(data) => {
                float::product::<P, f32, _>(p, data, Unscaled, stride, &mut self);
            }
            Data::F16(data) => {
                float::product::<P, f16, _>(p, data, Unscaled, stride, &mut self);
            }
            Data::Bf16(data) => {
                float::product::<P, bf16, _>(p, data, Unscaled, stride, &mut self);
            }
            Data::Fp8(data, scales) => {
                float::product::<P, E4m3, _>(p, data, RowScales(scales), stride, &mut self);
            }
            Data::Nf4(data, scales) => {
                float::product::<P, Nf4, _>(p, data, scales, stride, &mut self);
            }
            Data::Int8(codes, scales) => {
                let codes = codes.as_chunks().0;
                integer::product::<P, integer::Eight>(p, codes, scales, blocks, &mut self);
            }
            Data::Int6(codes, scales) => {
                let codes = codes.as_chunks().0;
                integer::product::<P, integer::Six>(p, codes, scales, blocks, &mut self);
            }
            Data::Int4(codes, scales) => {
                let codes = codes.as_chunks().0;
                integer::product::<P, integer::Four>(p, codes, scales, blocks, &mut self);
            }
        }
    }
}

/// Writes the sums of a panel for A rows of activations from `m` on.
#[inline(always)]
fn put<P: Panel, const A: usize>(
    p: P,
    product: &mut Product<'_>,
    panel: usize,
    m: usize,
    sums: [P::F; A],
) {
    let first = panel * P::WIDTH - product.rows.start;
    for a in 0..A {
        let rest = &mut product.out.row_mut(m + a)[first..];
        match P::lanes_mut(rest) {
            [out, ..] => {
                let sum = match product.put {
                    Put::Store => sums[a],
                    Put::Add => p.add(p.load(out), sums[a]),
                };
                p.store(sum, out);
            }
            // The matrix's last panel, which has fewer rows.
            [] => {
                let mut lanes = [0.0; WIDEST];
                p.store(sums[a], &mut P::lanes_mut(&mut lanes)[0]);
                for (out, sum) in rest.iter_mut().zip(lanes) {
                    *out = match product.put {
                        Put::Store => sum,
                        Put::Add => *out + sum,
                    };
                }
            }
        }
    }
}

/// Rows of the widest panel.
const WIDEST: usize = 16;
