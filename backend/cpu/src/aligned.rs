//! Memory that starts at a cache line, in huge pages where there is much of it.
//!
//! A decode step reads every weight once. With pages of 4 KiB the processor's prefetchers stop at the
//! end of each, and up to a third of the memory bandwidth is lost; so large arrays are mapped by themselves,
//! and the kernel is asked for huge pages. It may refuse, which costs speed only.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

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
    Large(MmapMut),
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Bytes of a huge page; less is not worth a mapping.
const HUGE_PAGE: usize = 2 << 20;

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        if bytes >= HUGE_PAGE
            && let Ok(map) = MmapMut::map_anon(bytes)
        {
            // Refused where the kernel has none: see above.
            #[cfg(target_os = "linux")]
            let _ = map.advise(Advice::HugePage);
            return Self { storage: Storage::Large(map), start: 0, bytes, elements: PhantomData };
        }
        let storage = vec![0; bytes + LINE];
        let start = storage.as_ptr().align_offset(LINE).min(LINE);
        Self { storage: Storage::Small(storage), start, bytes, elements: PhantomData }
    }
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
            Storage::Large(map) => map,
        };
        bytemuck::cast_slice(&storage[self.start..][..self.bytes])
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let storage: &mut [u8] = match &mut self.storage {
            Storage::Small(bytes) => bytes,
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
        for len in [0, 1, 31, 32, 1000, HUGE_PAGE / 4, HUGE_PAGE + 1] {
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
