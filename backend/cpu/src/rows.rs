//! Activations of a pass: one row for each token position, padded to whole blocks.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::arch::{BLOCK, LANES, vectors};

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

/// Rows of 8-bit activations: codes and one scale for each block of 32.
#[derive(Debug)]
pub(crate) struct Quantized {
    codes: Aligned<i8>,
    offsets: Aligned<i32>,
    scales: Aligned<f32>,
    blocks: usize,
    scale_stride: usize,
}

/// One row of [`Quantized`].
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRow<'a> {
    /// Codes by block.
    pub(crate) codes: &'a [[i8; BLOCK]],
    /// What [`crate::arch::Simd::offsets`] gives for each block.
    pub(crate) offsets: &'a [[i32; LANES]],
    /// Scales of the blocks, in vectors of eight.
    pub(crate) scales: &'a [[f32; LANES]],
}

/// One row of [`Quantized`], to be written.
#[derive(Debug)]
pub(crate) struct QuantizedRowMut<'a> {
    pub(crate) codes: &'a mut [[i8; BLOCK]],
    pub(crate) offsets: &'a mut [[i32; LANES]],
    pub(crate) scales: &'a mut [f32],
}

impl Quantized {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let scale_stride = blocks.next_multiple_of(LANES);
        Self {
            codes: Aligned::zeroed(rows * blocks * BLOCK),
            offsets: Aligned::zeroed(rows * blocks * LANES),
            scales: Aligned::zeroed(rows * scale_stride),
            blocks,
            scale_stride,
        }
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> QuantizedRow<'_> {
        let codes = &self.codes[row * self.blocks * BLOCK..][..self.blocks * BLOCK];
        let scales = &self.scales[row * self.scale_stride..][..self.scale_stride];
        QuantizedRow {
            codes: codes.as_chunks().0,
            offsets: &vectors(&self.offsets)[row * self.blocks..][..self.blocks],
            scales: vectors(scales),
        }
    }

    /// The first `rows` rows.
    pub(crate) fn iter_mut(&mut self, rows: usize) -> impl Iterator<Item = QuantizedRowMut<'_>> {
        let blocks = self.blocks;
        let codes = self.codes.chunks_mut(blocks * BLOCK);
        let offsets = self.offsets.chunks_mut(blocks * LANES);
        let scales = self.scales.chunks_mut(self.scale_stride);
        codes.zip(offsets).zip(scales).take(rows).map(move |((codes, offsets), scales)| {
            QuantizedRowMut {
                codes: codes.as_chunks_mut().0,
                offsets: offsets.as_chunks_mut().0,
                scales: &mut scales[..blocks],
            }
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[i8]>(&self.codes)
            + size_of_val::<[i32]>(&self.offsets)
            + size_of_val::<[f32]>(&self.scales)
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
