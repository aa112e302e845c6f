//! Blocks of huge pages, from which arrays smaller than one are cut.
//!
//! A block is used up from front to back and given back to the system when its last piece is dropped. Nothing is
//! used twice, so every piece is zeros at first; models are loaded and dropped as a whole, so little is lost.
//! Rejected: a mapping for each array, for the kernel gives a huge page only where one mapping covers it when it
//! is first touched.

use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapRaw;

use super::{LINE, map};

/// Bytes of a block. What the last pieces leave over is never touched, and so takes no memory.
const BLOCK: usize = 64 << 20;

/// Where the next pieces come from.
static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks(None));

/// A block that is not used up, and how much of it is used.
struct Blocks(Option<(Arc<MmapRaw>, usize)>);

/// Some bytes of a block that no other piece has, at the start of a cache line.
pub(super) struct Piece {
    block: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Blocks {
    /// Zeros, at most a block; `None` if the system has no memory.
    fn take(&mut self, len: usize) -> Option<Piece> {
        let (block, start) = match self.0.take_if(|(_, used)| len <= BLOCK - *used) {
            Some(current) => current,
            None => (Arc::new(MmapRaw::from(map(BLOCK)?)), 0),
        };
        let used = (start + len).next_multiple_of(LINE);
        if used < BLOCK {
            self.0 = Some((Arc::clone(&block), used));
        }
        Some(Piece { block, start, len })
    }
}

impl Piece {
    /// Zeros, at most a block; `None` if the system has no memory.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        BLOCKS.lock().unwrap_or_else(PoisonError::into_inner).take(len)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the block, which lives as long as `self` and was zeros at first; no other
        // piece has any of it, so all writers go through `bytes_mut`, which borrows `self` alone.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr().add(self.start), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_mut_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_blocks_end_with_their_last_piece() {
        let mut blocks = Blocks(None);
        let mut pieces: Vec<_> =
            (0..200_u8).map(|i| (i, blocks.take(999_999 + usize::from(i)).unwrap())).collect();
        for (i, piece) in &mut pieces {
            assert_eq!(piece.bytes().as_ptr() as usize % LINE, 0);
            assert!(piece.bytes().iter().all(|&byte| byte == 0));
            piece.bytes_mut().fill(*i);
        }
        assert!(pieces.iter().all(|(i, piece)| piece.bytes().iter().all(|byte| byte == i)));
        let first = Arc::downgrade(&pieces[0].1.block);
        pieces.truncate(1);
        assert!(first.upgrade().is_some());
        drop(pieces);
        assert!(first.upgrade().is_none());
    }
}
