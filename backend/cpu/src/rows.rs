//! Activations of a pass: one row for each token position, padded to whole blocks.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::aligned::Aligned;
use crate::arch::BLOCK;

/// Rows of `f32`. The padding behind the last column is zero and stays zero.
#[derive(Debug)]
pub(crate) struct Rows {
    data: Aligned<f32>,
    cols: usize,
    stride: usize,
}

impl Rows {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(BLOCK);
        Self { data: Aligned::zeroed(rows * stride), cols, stride }
    }

    /// Columns, without padding.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// One row, with its padding.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.stride]
    }

    /// The first `rows` rows, each without padding.
    pub(crate) fn iter_mut(&mut self, rows: usize) -> impl Iterator<Item = &mut [f32]> {
        let cols = self.cols;
        self.data[..rows * self.stride].chunks_mut(self.stride).map(move |row| &mut row[..cols])
    }

    /// The first `rows` rows, each with its padding, which must stay zero.
    pub(crate) fn padded_mut(&mut self, rows: usize) -> impl Iterator<Item = &mut [f32]> {
        self.data[..rows * self.stride].chunks_mut(self.stride)
    }

    /// For each of the ascending, disjoint column ranges: that part of each of the first `rows` rows.
    pub(crate) fn columns_mut(
        &mut self,
        rows: usize,
        ranges: &[Range<usize>],
    ) -> Vec<Vec<&mut [f32]>> {
        let mut parts: Vec<_> = ranges.iter().map(|_| Vec::with_capacity(rows)).collect();
        for mut rest in self.iter_mut(rows) {
            let mut at = 0;
            for (range, part) in ranges.iter().zip(&mut parts) {
                let (_, tail) = rest.split_at_mut(range.start - at);
                let (own, tail) = tail.split_at_mut(range.len());
                part.push(own);
                rest = tail;
                at = range.end;
            }
        }
        parts
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[f32]>(&self.data)
    }
}

/// Rows of 8-bit activations.
#[derive(Debug)]
pub(crate) struct Quantized {
    data: Aligned<ActivationBlock>,
    /// Of a row.
    blocks: usize,
}

/// Activations of a block in 8 bits, and all that products need of them: a tile of a product walks
/// along several rows, and has a register for one pointer into each.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ActivationBlock {
    pub(crate) codes: [i8; BLOCK],
    /// Sum of the codes.
    pub(crate) sum: i32,
    pub(crate) scale: f32,
}

impl Quantized {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        Self { data: Aligned::zeroed(rows * blocks), blocks }
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[ActivationBlock] {
        &self.data[row * self.blocks..][..self.blocks]
    }

    /// The first `rows` rows.
    pub(crate) fn iter_mut(&mut self, rows: usize) -> impl Iterator<Item = &mut [ActivationBlock]> {
        self.data.chunks_mut(self.blocks).take(rows)
    }

    /// For each of the ascending, disjoint column ranges, which start at whole blocks and leave none
    /// out: its blocks of each of the first `rows` rows.
    pub(crate) fn columns_mut(
        &mut self,
        rows: usize,
        ranges: &[Range<usize>],
    ) -> Vec<Vec<&mut [ActivationBlock]>> {
        let mut parts: Vec<_> = ranges.iter().map(|_| Vec::with_capacity(rows)).collect();
        for mut rest in self.iter_mut(rows) {
            for (range, part) in ranges.iter().zip(&mut parts) {
                let (own, tail) = rest.split_at_mut(range.len().div_ceil(BLOCK));
                part.push(own);
                rest = tail;
            }
        }
        parts
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[ActivationBlock]>(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_parts_are_disjoint_and_skip_the_gaps() {
        let mut rows = Rows::new(3, 40);
        let ranges = [0..8, 8..9, 30..40];
        for (number, part) in rows.columns_mut(2, &ranges).into_iter().enumerate() {
            for row in part {
                row.fill(number as f32 + 1.0);
            }
        }
        for row in 0..3 {
            for (col, &value) in rows.row(row).iter().enumerate() {
                let part = ranges.iter().position(|r| r.contains(&col) && row < 2);
                assert_eq!(value, part.map_or(0.0, |p| p as f32 + 1.0), "row {row} column {col}");
            }
        }
    }
}
