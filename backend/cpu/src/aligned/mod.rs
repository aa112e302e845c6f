//! Memory that starts at a cache line, in huge pages where there is much of it.
//!
//! A decode step reads every weight once. With pages of 4 KiB the processor's prefetchers stop at the
//! end of each, and up to a third of the memory bandwidth is lost; so the kernel is asked for huge pages. It may
//! refuse, which costs speed only. Arrays that fill huge pages are mapped by themselves, smaller ones are cut
//! from blocks that do: the matrices of a small model's layers have less than a huge page each.

#[allow(unsafe_code, reason = "arrays that share a mapping")]
mod block;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

use self::block::Piece;

/// A fixed number of elements, zeros at first, the first at a cache line, so that no vector load of a
/// row that is a whole number of lines straddles two.
pub(crate) struct Aligned<T> {
    storage: Storage,
    /// Bytes in front of the first element.
    start: usize,
    bytes: usize,
    elements: PhantomData<T>,
}

enum Storage {
    Small(Vec<u8>),
    Medium(Piece),
    Large(MmapMut),
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Bytes of a huge page; less is not worth a mapping.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that are worth a piece of a block: four small pages.
const MEDIUM: usize = 16 << 10;

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let at_a_line = |storage| Self { storage, start: 0, bytes, elements: PhantomData };
        if bytes >= HUGE_PAGE
            && let Some(map) = map(bytes)
        {
            return at_a_line(Storage::Large(map));
        }
        if (MEDIUM..HUGE_PAGE).contains(&bytes)
            && let Some(piece) = Piece::zeroed(bytes)
        {
            return at_a_line(Storage::Medium(piece));
        }
        let storage = vec![0; bytes + LINE];
        let start = storage.as_ptr().align_offset(LINE).min(LINE);
        Self { storage: Storage::Small(storage), start, bytes, elements: PhantomData }
    }
}

/// Zeros in huge pages, if the system has memory and such pages.
fn map(bytes: usize) -> Option<MmapMut> {
    let map = MmapMut::map_anon(bytes).ok()?;
    // Refused where the kernel has none: see above.
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage);
    Some(map)
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let storage: &[u8] = match &self.storage {
            Storage::Small(bytes) => bytes,
            Storage::Medium(piece) => piece.bytes(),
            Storage::Large(map) => map,
        };
        bytemuck::cast_slice(&storage[self.start..][..self.bytes])
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let storage: &mut [u8] = match &mut self.storage {
            Storage::Small(bytes) => bytes,
            Storage::Medium(piece) => piece.bytes_mut(),
            Storage::Large(map) => map,
        };
        bytemuck::cast_slice_mut(&mut storage[self.start..][..self.bytes])
    }
}

impl<T> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_line_and_has_its_length() {
        for len in [0, 1, 31, 32, 1000, MEDIUM / 4 - 1, MEDIUM, HUGE_PAGE / 4, HUGE_PAGE + 1] {
            let mut bytes = Aligned::<i8>::zeroed(len);
            let mut floats = Aligned::<f32>::zeroed(len);
            assert_eq!((bytes.len(), floats.len()), (len, len));
            assert_eq!(bytes.as_ptr() as usize % LINE, 0);
            assert_eq!(floats.as_ptr() as usize % LINE, 0);
            assert!(bytes.iter().all(|&x| x == 0) && floats.iter().all(|&x| x == 0.0));
            bytes.fill(3);
            floats.fill(4.0);
            assert!(bytes.iter().all(|&x| x == 3) && floats.iter().all(|&x| x == 4.0));
        }
    }
}
