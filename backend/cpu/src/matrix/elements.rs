//! Weights on their way from a checkpoint.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rewind_checkpoint::TensorData;
use rewind_formats::{Format, PackError, Packed};

/// Some rows of a tensor, in the checkpoint's precision.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Packed(PackedRows<'a>),
}

/// Some rows of a packed matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedRows<'a> {
    matrix: &'a Packed,
    first: usize,
    rows: usize,
}

impl PackedRows<'_> {
    /// The format of the whole.
    pub(crate) fn format(self) -> Format {
        self.matrix.format()
    }

    /// A matrix of these rows alone.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn cut(self) -> Result<Packed, PackError> {
        Packed::from_rows((self.first..self.first + self.rows).map(|row| (self.matrix, row)))
    }
}

impl<'a> Elements<'a> {
    /// A range of a tensor's elements; whole rows, if the tensor is packed.
    pub(crate) fn of(data: &'a TensorData, range: Range<usize>) -> Self {
        match data {
            TensorData::F32(data) => Self::F32(&data[range]),
            TensorData::F16(data) => Self::F16(&data[range]),
            TensorData::Bf16(data) => Self::Bf16(&data[range]),
            TensorData::Packed(matrix) => Self::Packed(PackedRows {
                matrix,
                first: range.start / matrix.cols(),
                rows: range.len() / matrix.cols(),
            }),
        }
    }

    /// Where the first NaN or infinity is.
    pub(crate) fn first_not_finite(self) -> Option<(usize, f32)> {
        // A search that stops early does not vectorize, so it is made only where there is one to find.
        fn find<T: Copy>(
            data: &[T],
            special: impl Fn(T) -> bool,
            value: impl Fn(T) -> f32,
        ) -> Option<(usize, f32)> {
            if !data.iter().fold(false, |any, &x| any | special(x)) {
                return None;
            }
            let at = data.iter().position(|&x| special(x))?;
            Some((at, value(data[at])))
        }
        match self {
            Self::F32(data) => find(data, |x| !x.is_finite(), |x| x),
            Self::F16(data) => find(data, |x| !x.is_finite(), f16::to_f32),
            Self::Bf16(data) => find(data, |x| !x.is_finite(), bf16::to_f32),
            // A packed matrix has only finite weights.
            Self::Packed(_) => None,
        }
    }

    /// Upcast, exactly.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        fn upcast(data: &(impl HalfFloatSliceExt + ?Sized), len: usize) -> Vec<f32> {
            // Slices convert by vectors, single numbers by calls.
            let mut values = vec![0.0; len];
            data.convert_to_f32_slice(&mut values);
            values
        }
        match self {
            Self::F32(data) => data.to_vec(),
            Self::F16(data) => upcast(data, data.len()),
            Self::Bf16(data) => upcast(data, data.len()),
            Self::Packed(PackedRows { matrix, first, rows }) => {
                let mut values = vec![0.0; rows * matrix.cols()];
                for (i, values) in values.chunks_exact_mut(matrix.cols()).enumerate() {
                    matrix.dequantize_row(first + i, values);
                }
                values
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_finite_elements_are_found() {
        let mut data = vec![f16::ONE; 10];
        data[7] = f16::NEG_INFINITY;
        assert_eq!(Elements::F16(&data).first_not_finite(), Some((7, f32::NEG_INFINITY)));
        assert_eq!(Elements::F16(&data[..7]).first_not_finite(), None);
    }
}
