//! How the weights of a matrix become codes: plain rounding, with errors compensated, or after a change of scale.

mod awq;
mod codes;
mod gptq;
mod hessian;
mod product;
mod workers;

pub(crate) use awq::{STEPS, scaled};
pub use awq::{Scaling, scaling};
pub(crate) use gptq::BLOCK;
pub use gptq::compensated;
pub(crate) use hessian::DAMPING;
pub use hessian::{Hessian, InverseFactor};
pub(crate) use product::{View, add_product, product};
pub(crate) use workers::map;

use rewind_formats::{Format, PackError, Packed};

/// Rows that a thread takes at once: fixed, so that no sum depends on the number of threads.
pub(crate) const TILE: usize = 64;

/// Why a matrix could not be quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// The weights cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Sizes that do not go together.
    #[error("a matrix of {cols} inputs cannot be quantized by the statistics of {inputs} inputs")]
    Size {
        /// Columns of the matrix.
        cols: usize,
        /// Inputs that the statistics are of.
        inputs: usize,
    },
    /// The inputs overflow, or are NaN.
    #[error("the calibration text leads to inputs that are not finite, or too large to be squared")]
    Inputs,
}

/// Each weight to the nearest value of its group's grid: what an executor makes of the same format when it loads.
///
/// `weights` is `[rows, cols]`, row-major.
///
/// # Errors
/// As [`Packed::quantize`].
pub fn rounded(
    format: Format,
    rows: usize,
    cols: usize,
    weights: &[f32],
    threads: usize,
) -> Result<Packed, PackError> {
    if threads < 2 || rows.checked_mul(cols) != Some(weights.len()) || weights.is_empty() {
        return Packed::quantize(format, rows, cols, weights);
    }
    // As many tiles as keep all threads busy; rows do not know of each other.
    let height = rows.div_ceil(8 * threads).max(TILE);
    let tiles: Vec<&[f32]> = weights.chunks(height * cols).collect();
    let packed = map(threads, tiles.len(), |tile| {
        Packed::quantize(format, tiles[tile].len() / cols, cols, tiles[tile])
            .map_err(|error| below(error, tile * height))
    });
    let packed: Vec<Packed> = packed.into_iter().collect::<Result<_, _>>()?;
    Packed::from_rows(packed.iter().flat_map(|tile| (0..tile.rows()).map(move |row| (tile, row))))
}

/// An error of a tile that starts at this row, as one of the matrix.
pub(crate) fn below(mut error: PackError, first: usize) -> PackError {
    match &mut error {
        PackError::NotFinite { row, .. } | PackError::OutOfRange { row, .. } => *row += first,
        _ => {}
    }
    error
}
