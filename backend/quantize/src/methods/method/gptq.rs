//! GPTQ: what rounding a weight costs, the weights of later columns make up for.
//!
//! Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
//! 2210.17323), algorithm 1. Columns are taken as they come, in blocks of 128; the error of a column, divided by the
//! diagonal of U (see [`InverseFactor`]), is taken off the columns behind it in proportion to U's row, at once within
//! the block and in one product for the columns after it. The grid of a group is searched when the group begins,
//! on its weights as they are by then, with the search of the format itself.

use half::f16;
use rewind_formats::{Format, Group, PackError, Packed, Scales, nf4};

use super::codes::append_row;
use super::product::{View, add_product};
use super::workers::each;
use super::{InverseFactor, MethodError, TILE, below, rounded};

/// Columns of a block; every group lies in one.
pub(crate) const BLOCK: usize = 128;

/// Quantizes `weights`, `[rows, cols]` and row-major, for inputs with the statistics that `factor` is of.
///
/// Floats and `fp8`, whose values lie densest around zero in no fixed steps, are rounded plainly. The scale of a
/// row of `nf4`, of which those of blocks are parts, is the one that plain rounding gives: the scale of a block
/// that grows beyond it is cut. The result does not depend on the number of `threads`.
///
/// # Errors
/// See [`MethodError`].
pub fn compensated(
    format: Format,
    rows: usize,
    cols: usize,
    weights: &[f32],
    factor: &InverseFactor,
    threads: usize,
) -> Result<Packed, MethodError> {
    if factor.size() != cols {
        return Err(MethodError::Size { cols, inputs: factor.size() });
    }
    if !(format.is_integer() || format == Format::Nf4) {
        return Ok(rounded(format, rows, cols, weights, threads)?);
    }
    // What cannot be packed is said of the weights as they came.
    if rows == 0 || cols == 0 || rows.checked_mul(cols) != Some(weights.len()) {
        Packed::quantize(format, rows, cols, weights)?;
    }
    let mut tiles: Vec<Result<Packed, PackError>> =
        (0..rows.div_ceil(TILE)).map(|_| Err(PackError::Empty { rows: 0, cols })).collect();
    let work = tiles.iter_mut().zip(weights.chunks(TILE * cols)).enumerate();
    each(threads, work, |(number, (result, weights))| {
        *result = Tile::new(format, cols, weights, factor.upper())
            .and_then(Tile::quantize)
            .map_err(|error| below(error, number * TILE));
    });
    let tiles: Vec<Packed> = tiles.into_iter().collect::<Result<_, _>>()?;
    let rows = tiles.iter().flat_map(|tile| (0..tile.rows()).map(move |row| (tile, row)));
    Ok(Packed::from_rows(rows)?)
}

/// Where the values of a group lie.
#[derive(Clone, Copy, Debug)]
struct Grid {
    scale: f32,
    offset: f32,
}

/// Some rows on their way.
struct Tile<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    /// What is left to be rounded.
    weights: Vec<f32>,
    /// U.
    factor: &'a [f32],
    codes: Vec<i8>,
    /// One for each group of each row, row-major; one for each row if there are no groups.
    grids: Vec<Grid>,
    /// Of `nf4`: scales of rows, and parts of them.
    row_scales: Vec<f32>,
    factors: Vec<u8>,
}

impl<'a> Tile<'a> {
    fn new(
        format: Format,
        cols: usize,
        weights: &[f32],
        factor: &'a [f32],
    ) -> Result<Self, PackError> {
        let rows = weights.len() / cols;
        let groups = format.groups_per_row(cols).max(1);
        let mut tile = Self {
            format,
            rows,
            cols,
            weights: weights.to_vec(),
            factor,
            codes: vec![0; weights.len()],
            grids: vec![Grid { scale: 0.0, offset: 0.0 }; rows * groups],
            row_scales: Vec::new(),
            factors: vec![0; rows * groups],
        };
        if matches!(format, Format::Int8 | Format::Nf4) {
            match Packed::quantize(format, rows, cols, weights)?.scales() {
                Scales::Nested { rows, .. } => tile.row_scales = rows.to_vec(),
                Scales::PerRow(scales) => {
                    for (grid, &scale) in tile.grids.iter_mut().zip(scales) {
                        grid.scale = scale;
                    }
                }
                _ => {}
            }
        }
        Ok(tile)
    }

    fn quantize(mut self) -> Result<Packed, PackError> {
        let (rows, cols) = (self.rows, self.cols);
        let mut errors = vec![0.0_f32; rows * BLOCK];
        for first in (0..cols).step_by(BLOCK) {
            let end = (first + BLOCK).min(cols);
            for col in first..end {
                if let Some(group) = self.format.group()
                    && col % group.len() == 0
                {
                    self.search(col, (col + group.len()).min(cols), group)?;
                }
                for row in 0..rows {
                    errors[row * (end - first) + col - first] = self.round(row, col, end);
                }
            }
            if end < cols {
                let errors = View::dense(&errors[..rows * (end - first)], end - first);
                let factor = View {
                    values: &self.factor[first * cols + end..end * cols],
                    rows: end - first,
                    cols: cols - end,
                    stride: cols,
                };
                add_product(&mut self.weights[end..], cols, errors, factor, -1.0);
            }
        }
        self.packed()
    }

    /// Finds the grid of each row for a group of columns.
    fn search(&mut self, first: usize, end: usize, group: Group) -> Result<(), PackError> {
        let width = end - first;
        let rows = self.weights.chunks(self.cols);
        let current: Vec<f32> = rows.flat_map(|row| &row[first..end]).copied().collect();
        let packed = Packed::quantize(self.format, self.rows, width, &current)?;
        let groups = self.format.groups_per_row(self.cols);
        for row in 0..self.rows {
            let at = row * groups + first / group.len();
            let mut scale = packed.scale(row, 0);
            if let Some(&of_row) = self.row_scales.get(row) {
                let part = if of_row == 0.0 { 0.0 } else { scale / of_row };
                self.factors[at] = part.round_ties_even().clamp(0.0, 255.0) as u8;
                scale = f32::from(self.factors[at]) * of_row;
            }
            self.grids[at] = Grid { scale, offset: packed.offset(row, 0) };
        }
        Ok(())
    }

    /// Rounds a weight, moves what that costs to those behind it up to `end`, and gives the scaled error.
    fn round(&mut self, row: usize, col: usize, end: usize) -> f32 {
        let groups = self.grids.len() / self.rows;
        let group = self.format.group().map_or(self.cols, Group::len);
        let grid = self.grids[row * groups + col / group];
        let factor = &self.factor[col * self.cols..(col + 1) * self.cols];
        let weights = &mut self.weights[row * self.cols..(row + 1) * self.cols];
        let (code, value) = nearest(self.format, grid, weights[col]);
        self.codes[row * self.cols + col] = code;
        let error = (weights[col] - value) / factor[col];
        for (weight, factor) in weights[col + 1..end].iter_mut().zip(&factor[col + 1..end]) {
            *weight -= error * factor;
        }
        error
    }

    fn packed(self) -> Result<Packed, PackError> {
        let mut codes = Vec::new();
        for row in self.codes.chunks(self.cols) {
            append_row(self.format, row, &mut codes);
        }
        // Halves already, wherever they are made halves of here.
        let scales = self.grids.iter().map(|grid| grid.scale);
        let halves = |values: &mut dyn Iterator<Item = f32>| values.map(f16::from_f32).collect();
        let scales = match self.format {
            Format::Int8 => Scales::PerRow(scales.collect()),
            Format::Nf4 => {
                Scales::Nested { rows: self.row_scales.into(), groups: self.factors.into() }
            }
            Format::Int4Affine(_) => Scales::Affine {
                scales: halves(&mut { scales }),
                offsets: halves(&mut self.grids.iter().map(|grid| grid.offset)),
            },
            _ => Scales::PerGroup(halves(&mut { scales })),
        };
        Packed::from_parts(self.format, self.rows, self.cols, codes, scales)
    }
}

/// The code nearest to a weight, ties to even, and its value.
fn nearest(format: Format, grid: Grid, weight: f32) -> (i8, f32) {
    let Grid { scale, offset } = grid;
    // A grid of one value.
    let steps = if scale == 0.0 { 0.0 } else { (weight - offset) / scale };
    let (low, high) = match format {
        Format::Int8 | Format::Int8Group(_) => (-127.0, 127.0),
        Format::Int6Group(_) => (-32.0, 31.0),
        Format::Nf4 => {
            let middles = nf4::NUMBERS.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
            let code = middles.map(|middle| usize::from(steps > middle)).sum::<usize>();
            let code = if scale == 0.0 { usize::from(nf4::ZERO) } else { code };
            return (code as i8, nf4::NUMBERS[code] * scale);
        }
        _ => (-8.0, 7.0),
    };
    let code = steps.clamp(low, high).round_ties_even();
    (code as i8, code * scale + offset)
}

#[cfg(test)]
mod tests;
