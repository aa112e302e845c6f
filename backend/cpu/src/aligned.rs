//! Memory that starts at a cache line.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A fixed number of elements, the first at a cache line, so that no vector load of a row that is a
/// whole number of lines straddles two. Safe: it only skips the first few elements of a vector.
#[derive(Default)]
pub(crate) struct Aligned<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        // Elements whose size is no part of a line start at one after a whole line of elements at most.
        let spare = LINE / align_of::<T>();
        let storage = vec![T::default(); len + spare];
        let start = storage.as_ptr().align_offset(LINE).min(spare);
        Self { storage, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl<T> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_line_and_has_its_length() {
        for len in [0, 1, 31, 32, 1000] {
            let bytes = Aligned::<i8>::zeroed(len);
            let floats = Aligned::<f32>::zeroed(len);
            assert_eq!((bytes.len(), floats.len()), (len, len));
            assert_eq!(bytes.as_ptr() as usize % LINE, 0);
            assert_eq!(floats.as_ptr() as usize % LINE, 0);
        }
    }
}
