//! Products of row-major f32 matrices, on the calling thread.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A factor of a product: rows that may lie further apart than they are long.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// First element on.
    pub(crate) values: &'a [f32],
    /// Rows.
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) cols: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl<'a> View<'a> {
    /// A matrix without gaps.
    pub(crate) fn dense(values: &'a [f32], cols: usize) -> Self {
        Self { values, rows: values.len() / cols, cols, stride: cols }
    }

    /// As the library takes it.
    pub(crate) fn view(self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice_with_stride(self.values, self.rows, self.cols, self.stride)
    }
}

/// `a · bᵀ`, `[a.rows, b.rows]`: what a projection with the weights `b` makes of the rows of `a`.
pub(crate) fn product(a: View<'_>, b: View<'_>) -> Vec<f32> {
    let mut out = vec![0.0; a.rows * b.rows];
    let to = MatMut::from_row_major_slice_mut(&mut out, a.rows, b.rows);
    matmul(to, Accum::Replace, a.view(), b.view().transpose(), 1.0, Par::Seq);
    out
}

/// Adds `factor · a · b` to `out`, whose rows lie `stride` elements apart.
pub(crate) fn add_product(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, factor: f32) {
    // By way of columns: `from_row_major_slice_with_stride_mut` of faer 0.24.4 takes its two strides the wrong way
    // round, and so leaves the slice.
    let to = MatMut::from_column_major_slice_with_stride_mut(out, b.cols, a.rows, stride);
    let to = to.transpose_mut();
    matmul(to, Accum::Add, a.view(), b.view(), factor, Par::Seq);
}
