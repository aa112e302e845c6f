//! What the inputs of a projection weigh: H = 2 X Xᵀ, and the factor of its inverse that compensation needs.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, MatMut, Par, Spec};

use super::MethodError;
use super::product::View;
use super::workers::each;

/// Rows of H that a thread sums at once.
const STRIP: usize = 128;

/// Share of the mean diagonal that is added to the diagonal (Frantar et al., section 3.3).
pub(crate) const DAMPING: f64 = 0.01;

/// Times that damping is raised tenfold where H has no factor for all that.
const RAISES: u32 = 4;

/// The second derivative of a projection's squared error by the weights of any one output: 2 X Xᵀ over the mean of
/// positions, where X are its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    size: usize,
    /// Row-major; only elements up to the diagonal are read.
    sums: Vec<f64>,
}

impl Hessian {
    /// Of inputs in chunks of whole rows of `size` elements each.
    ///
    /// Products of one chunk are summed in f32, chunks in f64 and in order: the number of `threads` changes no
    /// bit.
    pub fn of(inputs: &[impl AsRef<[f32]> + Sync], size: usize, threads: usize) -> Self {
        let mut sums = vec![0.0_f64; size * size];
        let positions =
            inputs.iter().map(|chunk| chunk.as_ref().len() / size).sum::<usize>().max(1);
        let factor = 2.0 / positions as f64;
        // Long strips first, so that no thread is left with one at the end.
        let strips: Vec<_> = sums.chunks_mut(STRIP * size).enumerate().collect();
        each(threads, strips.into_iter().rev(), |(number, strip)| {
            let first = number * STRIP;
            let height = strip.len() / size;
            let width = first + height;
            let mut partial = vec![0.0_f32; height * width];
            for chunk in inputs {
                let all = View::dense(chunk.as_ref(), size).view();
                let to = MatMut::from_row_major_slice_mut(&mut partial, height, width);
                let left = all.subcols(first, height).transpose();
                matmul(to, Accum::Replace, left, all.subcols(0, width), 1.0, Par::Seq);
                for (sums, partial) in strip.chunks_mut(size).zip(partial.chunks(width)) {
                    for (sum, &product) in sums.iter_mut().zip(partial) {
                        *sum += f64::from(product);
                    }
                }
            }
            strip.iter_mut().for_each(|sum| *sum *= factor);
        });
        Self { size, sums }
    }

    /// That of inputs that are independent and of equal weight: compensation then changes nothing.
    pub fn identity(size: usize) -> Self {
        let mut sums = vec![0.0; size * size];
        sums.iter_mut().step_by(size + 1).for_each(|sum| *sum = 1.0);
        Self { size, sums }
    }

    /// Number of inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The whole matrix, both triangles, row-major.
    pub(super) fn dense(&self) -> Vec<f32> {
        let at = |row: usize, col: usize| self.sums[row.max(col) * self.size + row.min(col)] as f32;
        let size = self.size;
        (0..size).flat_map(|row| (0..size).map(move |col| at(row, col))).collect()
    }

    /// What compensation needs of it; of use to every projection with these inputs.
    ///
    /// With rows and columns in reverse, H = L Lᵀ by Cholesky, and U is L⁻¹ in reverse: one factorization and one
    /// inverse of a triangle, and never H⁻¹ itself. In f64.
    ///
    /// # Errors
    /// The inputs were not finite, or so large that their squares are not.
    pub fn inverse_factor(&self) -> Result<InverseFactor, MethodError> {
        let size = self.size;
        let diagonal = self.sums.iter().step_by(size + 1);
        let mean = diagonal.sum::<f64>() / size as f64;
        if !mean.is_finite() {
            return Err(MethodError::Inputs);
        }
        let mut damping = DAMPING * mean;
        for _ in 0..=RAISES {
            let mut lower = Mat::<f64>::from_fn(size, size, |i, j| {
                let (row, col) = (size - 1 - i, size - 1 - j);
                let value = self.sums[row.max(col) * size + row.min(col)];
                match (row == col, value == 0.0) {
                    // An input that was never seen: it takes part in nothing.
                    (true, true) => 1.0,
                    (true, false) => value + damping,
                    (false, _) => value,
                }
            });
            let scratch = cholesky_in_place_scratch::<f64>(size, Par::Seq, Spec::default());
            let mut buffer = MemBuffer::new(scratch);
            let stack = MemStack::new(&mut buffer);
            let none = LltRegularization::default();
            if cholesky_in_place(lower.as_mut(), none, Par::Seq, stack, Spec::default()).is_err() {
                damping *= 10.0;
                continue;
            }
            let mut inverse = Mat::<f64>::zeros(size, size);
            invert_lower_triangular(inverse.as_mut(), lower.as_ref(), Par::Seq);
            let mut upper = vec![0.0_f32; size * size];
            for (row, upper) in upper.chunks_mut(size).enumerate() {
                for (col, upper) in upper.iter_mut().enumerate().skip(row) {
                    *upper = inverse[(size - 1 - row, size - 1 - col)] as f32;
                }
            }
            return Ok(InverseFactor { size, upper });
        }
        Err(MethodError::Inputs)
    }
}

/// The upper triangular U of H⁻¹ = Uᵀ U, with H damped.
#[derive(Clone, Debug, PartialEq)]
pub struct InverseFactor {
    size: usize,
    upper: Vec<f32>,
}

impl InverseFactor {
    /// Number of inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// U, row-major.
    pub(super) fn upper(&self) -> &[f32] {
        &self.upper
    }
}
