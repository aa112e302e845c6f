//! Rows of memory that the workers of a pass read and write by parts.
//!
//! Between two barriers each worker writes parts that no other touches. Which parts those are depends
//! on the phase of the pass, so the compiler cannot see it: taking a part is `unsafe`, and
//! [`crate::forward`] says for each phase why it holds. A part borrows its worker, whose
//! [`barrier`](crate::pool::Worker::barrier) needs it unborrowed: no part outlives its phase.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;

use crate::pool::Worker;

/// Rows of equal length, some elements apart.
struct Raw<T> {
    first: NonNull<T>,
    rows: usize,
    cols: usize,
    /// Elements between two rows.
    stride: usize,
}

/// Rows that a pass has for itself, to be dealt to its workers.
pub(crate) struct SharedRows<'a, T> {
    raw: Raw<T>,
    memory: PhantomData<&'a mut [T]>,
}

/// Rows, or some of their columns, to read.
pub(crate) struct Block<'a, T> {
    raw: Raw<T>,
    memory: PhantomData<&'a [T]>,
}

/// Rows, or some of their columns, to write.
pub(crate) struct BlockMut<'a, T> {
    raw: Raw<T>,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts to several threads, by `unsafe` functions whose callers see to it that
// none is written by one thread while another has it. So elements are sent, and are read by several.
unsafe impl<T: Send + Sync> Sync for SharedRows<'_, T> {}

impl<T> Raw<T> {
    /// The whole rows in a slice.
    fn new(memory: NonNull<[T]>, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride, "rows of {cols} elements, {stride} apart");
        let rows = memory.len().checked_div(stride).unwrap_or(0);
        Self { first: memory.cast(), rows, cols, stride }
    }

    #[inline(always)]
    fn part(self, rows: &Range<usize>, cols: &Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "columns {cols:?} of {}",
            self.cols
        );
        let start = if rows.is_empty() { 0 } else { rows.start * self.stride + cols.start };
        // SAFETY: within the first of these rows, or right behind it.
        let first = unsafe { self.first.add(start) };
        Self { first, rows: rows.len(), cols: cols.len(), stride: self.stride }
    }

    #[inline(always)]
    fn row(self, row: usize) -> NonNull<T> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: within the memory.
        unsafe { self.first.add(row * self.stride) }
    }
}

impl<T> Clone for Raw<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Raw<T> {}

impl<'a, T> SharedRows<'a, T> {
    /// The rows of `cols` elements that begin every `stride` elements.
    pub(crate) fn new(memory: &'a mut [T], cols: usize, stride: usize) -> Self {
        Self { raw: Raw::new(NonNull::from(memory), cols, stride), memory: PhantomData }
    }

    /// Rows to read.
    ///
    /// # Safety
    /// Nobody writes to them before the worker's next barrier.
    #[inline(always)]
    pub(crate) unsafe fn part<'w>(&'w self, _: &'w Worker<'_>, rows: Range<usize>) -> Block<'w, T> {
        Block { raw: self.raw.part(&rows, &(0..self.raw.cols)), memory: PhantomData }
    }

    /// A block to write.
    ///
    /// # Safety
    /// Nobody else reads or writes what is in it before the worker's next barrier.
    #[inline(always)]
    pub(crate) unsafe fn part_mut<'w>(
        &'w self,
        _: &'w Worker<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> BlockMut<'w, T> {
        BlockMut { raw: self.raw.part(&rows, &cols), memory: PhantomData }
    }

    /// A row to write.
    ///
    /// # Safety
    /// As for [`part_mut`](Self::part_mut).
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "parts of memory that is shared out")]
    pub(crate) unsafe fn row_mut<'w>(&'w self, _: &'w Worker<'_>, row: usize) -> &'w mut [T] {
        // SAFETY: the row's elements are there, and the caller's alone.
        unsafe { slice::from_raw_parts_mut(self.raw.row(row).as_ptr(), self.raw.cols) }
    }

    /// Some columns of a row, to write.
    ///
    /// # Safety
    /// As for [`part_mut`](Self::part_mut).
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "parts of memory that is shared out")]
    pub(crate) unsafe fn piece_mut<'w>(
        &'w self,
        _: &'w Worker<'_>,
        row: usize,
        cols: Range<usize>,
    ) -> &'w mut [T] {
        let piece = self.raw.part(&(row..row + 1), &cols);
        // SAFETY: the elements are there, and the caller's alone.
        unsafe { slice::from_raw_parts_mut(piece.first.as_ptr(), piece.cols) }
    }
}

impl<'a, T> Block<'a, T> {
    /// The rows of `cols` elements that begin every `stride` elements.
    pub(crate) fn new(memory: &'a [T], cols: usize, stride: usize) -> Self {
        Self { raw: Raw::new(NonNull::from(memory), cols, stride), memory: PhantomData }
    }

    /// Some of the rows.
    #[cfg(test)]
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        Self { raw: self.raw.part(&rows, &(0..self.raw.cols)), ..self }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(self, row: usize) -> &'a [T] {
        // SAFETY: the row's elements are there, and nobody writes to them while they are borrowed.
        unsafe { slice::from_raw_parts(self.raw.row(row).as_ptr(), self.raw.cols) }
    }
}

impl<'a, T> BlockMut<'a, T> {
    /// The columns `cols` of the rows that begin every `stride` elements.
    #[cfg(test)]
    pub(crate) fn new(memory: &'a mut [T], cols: Range<usize>, stride: usize) -> Self {
        let raw = Raw::new(NonNull::from(memory), stride, stride);
        Self { raw: raw.part(&(0..raw.rows), &cols), memory: PhantomData }
    }

    /// Number of rows.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.raw.rows
    }

    /// One row, to read.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[T] {
        // SAFETY: the row's elements are there, and nobody writes to them while they are borrowed.
        unsafe { slice::from_raw_parts(self.raw.row(row).as_ptr(), self.raw.cols) }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        // SAFETY: the row's elements are there, and whoever has this has them alone.
        unsafe { slice::from_raw_parts_mut(self.raw.row(row).as_ptr(), self.raw.cols) }
    }

    /// Some of the columns, for a while.
    #[inline(always)]
    pub(crate) fn columns(&mut self, cols: Range<usize>) -> BlockMut<'_, T> {
        BlockMut { raw: self.raw.part(&(0..self.raw.rows), &cols), memory: PhantomData }
    }
}

impl<T> Clone for Block<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Block<'_, T> {}

impl<T> fmt::Debug for Raw<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows of {}", self.rows, self.cols)
    }
}

impl<T> fmt::Debug for SharedRows<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

impl<T> fmt::Debug for Block<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

impl<T> fmt::Debug for BlockMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_where_they_are_asked_for() {
        let mut memory: Vec<usize> = (0..20).collect();
        let block = Block::new(&memory, 4, 5);
        assert_eq!(block.row(3), [15, 16, 17, 18]);
        assert_eq!(block.rows(1..3).row(1), [10, 11, 12, 13]);
        let mut block = BlockMut::new(&mut memory, 1..4, 5);
        assert_eq!((block.len(), block.row(2)), (4, &[11, 12, 13][..]));
        block.columns(1..3).row_mut(3).fill(0);
        assert_eq!(memory[15..], [15, 16, 0, 0, 19]);
        assert!(memory[..15].iter().enumerate().all(|(i, &x)| x == i));
    }

    #[test]
    fn there_may_be_nothing() {
        let none: [f32; 0] = [];
        assert_eq!(Block::new(&none, 0, 0).rows(0..0).raw.rows, 0);
        let mut memory = [1; 6];
        let mut block = BlockMut::new(&mut memory, 2..2, 2);
        assert!(block.row_mut(2).is_empty() && block.columns(0..0).len() == 3);
        assert_eq!(Block::new(&memory, 2, 2).rows(3..3).raw.rows, 0);
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn rows_end() {
        Block::new(&[0; 6], 2, 2).rows(1..3).row(2);
    }

    #[test]
    #[should_panic(expected = "columns 1..4 of 3")]
    fn columns_end() {
        BlockMut::new(&mut [0; 6], 0..3, 3).columns(1..4);
    }
}
