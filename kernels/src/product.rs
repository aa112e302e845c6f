//! How the matrix products and the embedding are launched: which kernel, over what grid.
//!
//! A product has one kernel for each format and for each number of rows that a block takes; the
//! choice changes the time, never a row's bits. Every kernel made of the loop of `product.cuh`, the LM head
//! too, has the [`grid`], the [`THREADS`] and the [`shared`] memory of this module.

use crate::arguments::{FORMAT_INT4_AFFINE, Matrix};
use crate::geometry::Geometry;
use crate::packing::{PANEL_ROWS, TILE_ROWS};

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Outputs of a block: a panel.
pub const OUTPUTS: u32 = PANEL_ROWS as u32;

/// The kernels: by format, then by the rows of a block.
const KERNELS: [[&str; 3]; 10] = [
    ["product_f32_8", "product_f32_16", "product_f32_64"],
    ["product_f16_8", "product_f16_16", "product_f16_64"],
    ["product_bf16_8", "product_bf16_16", "product_bf16_64"],
    ["product_int8_8", "product_int8_16", "product_int8_64"],
    ["product_int8_group_8", "product_int8_group_16", "product_int8_group_64"],
    ["product_int4_group_8", "product_int4_group_16", "product_int4_group_64"],
    ["product_fp8_8", "product_fp8_16", "product_fp8_64"],
    ["product_int4_affine_8", "product_int4_affine_16", "product_int4_affine_32"],
    ["product_int6_group_8", "product_int6_group_16", "product_int6_group_64"],
    ["product_nf4_8", "product_nf4_16", "product_nf4_64"],
];

/// The product of a matrix with `rows` rows of activations.
///
/// # Panics
/// If the matrix has none of the formats.
#[must_use]
pub fn product(matrix: &Matrix, rows: u32) -> Geometry {
    let kernel = KERNELS[matrix.format as usize][size(rows)];
    Geometry { kernel, grid: grid(matrix, rows), threads: THREADS, shared: shared(rows) }
}

/// The embeddings of `rows` rows.
#[must_use]
pub const fn embed(rows: u32) -> Geometry {
    Geometry { kernel: "embed", grid: [rows, 1, 1], threads: 256, shared: 0 }
}

/// Which of the three kernels suits `rows` rows of activations: 0 if a block is to take 8 of them, 1 for 16, 2 for
/// more.
#[must_use]
pub const fn size(rows: u32) -> usize {
    match rows {
        0..=8 => 0,
        9..=16 => 1,
        _ => 2,
    }
}

/// Rows of activations that a block takes, of `rows`.
#[must_use]
pub const fn block_rows(matrix: &Matrix, rows: u32) -> u32 {
    match (size(rows), matrix.format) {
        (0, _) => 8,
        (1, _) => 16,
        // Offsets take registers.
        (_, FORMAT_INT4_AFFINE) => 32,
        (_, _) => 64,
    }
}

/// Blocks for `rows` rows of activations.
#[must_use]
pub const fn grid(matrix: &Matrix, rows: u32) -> [u32; 3] {
    // Tiles that take turns: a block has the gate's and the up projection's.
    let outputs = if matrix.interleave == 0 { OUTPUTS } else { TILE_ROWS as u32 };
    let rows_of_one = if matrix.interleave == 0 { matrix.rows } else { matrix.rows / 2 };
    [rows_of_one.div_ceil(outputs), rows.div_ceil(block_rows(matrix, rows)), 1]
}

/// Dynamic shared memory of a block, bytes: a buffer for the partial sums of 8 rows, or two in turns.
#[must_use]
pub const fn shared(rows: u32) -> u32 {
    let warps = THREADS / 32;
    let buffer = warps * 8 * (OUTPUTS + 4) * size_of::<f32>() as u32;
    if size(rows) == 0 { buffer } else { 2 * buffer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Address, FORMAT_INT4_GROUP};

    #[test]
    fn grids_cover_all_outputs_and_rows() {
        let null = Address::NULL;
        let mut matrix = Matrix {
            codes: null,
            scales: null,
            rows: 70,
            cols: 64,
            units: 1,
            group: 32,
            format: FORMAT_INT4_GROUP,
            interleave: 0,
        };
        let one = product(&matrix, 1);
        assert_eq!((one.kernel, one.grid), ("product_int4_group_8", [3, 1, 1]));
        assert_eq!(product(&matrix, 8).grid, [3, 1, 1]);
        let nine = product(&matrix, 9);
        assert_eq!((nine.kernel, nine.grid), ("product_int4_group_16", [3, 1, 1]));
        let many = product(&matrix, 65);
        assert_eq!((many.kernel, many.grid), ("product_int4_group_64", [3, 2, 1]));
        let affine = product(&Matrix { format: FORMAT_INT4_AFFINE, ..matrix }, 65);
        assert_eq!((affine.kernel, affine.grid), ("product_int4_affine_32", [3, 3, 1]));
        matrix.interleave = 1; // 35 of each, three tiles
        assert_eq!(product(&matrix, 1).grid, [3, 1, 1]);
        matrix.rows = 64; // two tiles of each
        assert_eq!(product(&matrix, 1).grid, [2, 1, 1]);
        assert_eq!((shared(1), shared(9), shared(100)), (9216, 18432, 18432));
    }
}
