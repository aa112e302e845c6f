//! Activations of a pass: one row for each token position, padded to whole blocks.

#[cfg(test)]
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::aligned::Aligned;
use crate::arch::BLOCK;
#[cfg(test)]
use crate::shared::BlockMut;
use crate::shared::{Block, SharedRows};

/// Rows of `f32`. The padding behind the last column is zero and stays zero.
#[derive(Debug)]
pub(crate) struct Rows {
    data: Aligned<f32>,
    stride: usize,
}

impl Rows {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(BLOCK);
        Self { data: Aligned::zeroed(rows * stride), stride }
    }

    /// One row, with its padding.
    #[cfg(test)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.stride]
    }

    /// One row, with its padding, which must stay zero.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride..][..self.stride]
    }

    /// All rows, with their padding.
    pub(crate) fn block(&self) -> Block<'_, f32> {
        Block::new(&self.data, self.stride, self.stride)
    }

    /// All rows, with their padding, which must stay zero, for the workers of a pass.
    pub(crate) fn share(&mut self) -> SharedRows<'_, f32> {
        SharedRows::new(&mut self.data, self.stride, self.stride)
    }

    /// Some columns of all rows.
    #[cfg(test)]
    pub(crate) fn columns_mut(&mut self, cols: Range<usize>) -> BlockMut<'_, f32> {
        BlockMut::new(&mut self.data, cols, self.stride)
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

    #[cfg(test)]
    pub(crate) fn row(&self, row: usize) -> &[ActivationBlock] {
        &self.data[row * self.blocks..][..self.blocks]
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [ActivationBlock] {
        &mut self.data[row * self.blocks..][..self.blocks]
    }

    /// All rows.
    pub(crate) fn block(&self) -> Block<'_, ActivationBlock> {
        Block::new(&self.data, self.blocks, self.blocks)
    }

    /// All rows, for the workers of a pass.
    pub(crate) fn share(&mut self) -> SharedRows<'_, ActivationBlock> {
        SharedRows::new(&mut self.data, self.blocks, self.blocks)
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[ActivationBlock]>(&self.data)
    }
}
