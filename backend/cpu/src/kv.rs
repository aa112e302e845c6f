//! Keys and values of all sequences, in pages.
//!
//! A page holds `page_tokens` positions of every layer, so that copying one is a single copy. Within
//! a page each layer has, for each key-value head, the keys `[dim][position]` and then the values
//! `[position][dim]`: scores are sums over dimensions for eight positions at once, outputs are sums
//! over positions for eight dimensions at once, and neither ever sums across lanes. Entries are
//! `f32`: the shadow is exact, and at the lengths served on a CPU the weights weigh more.
//!
//! Which page belongs to whom is the engine's business; tables come with each pass.

use rewind_engine::PageId;

use crate::aligned::Aligned;
use crate::arch::LANES;
use crate::pool::Worker;
use crate::shared::{Block, SharedRows};

/// Sizes of a [`Cache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) pages: usize,
    pub(crate) page_tokens: usize,
    pub(crate) layers: usize,
    /// Key-value heads.
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

impl Shape {
    /// Positions between two dimensions of the keys.
    fn key_stride(self) -> usize {
        self.page_tokens.next_multiple_of(LANES)
    }

    /// Elements between two positions of the values.
    fn value_stride(self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    fn keys(self) -> usize {
        self.dim * self.key_stride()
    }

    fn head(self) -> usize {
        self.keys() + self.page_tokens * self.value_stride()
    }

    /// Elements of a page.
    fn page(self) -> usize {
        self.layers * self.heads * self.head()
    }

    /// Writes one position of a head's entries in a page.
    #[inline(always)]
    fn write(self, entries: &mut [f32], index: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = entries.split_at_mut(self.keys());
        for (column, key) in keys.chunks_exact_mut(self.key_stride()).zip(key) {
            column[index] = *key;
        }
        values[index * self.value_stride()..][..self.dim].copy_from_slice(value);
    }

    /// Memory of the whole cache in bytes; `None` if that does not fit in a `usize`.
    pub(crate) fn bytes(self) -> Option<usize> {
        self.page().checked_mul(size_of::<f32>())?.checked_mul(self.pages)
    }
}

/// Memory of keys and values.
#[derive(Debug)]
pub(crate) struct Cache {
    data: Aligned<f32>,
    shape: Shape,
}

/// The cache in a pass.
#[derive(Debug)]
pub(crate) struct SharedCache<'a> {
    /// A row for each head of each page.
    heads: SharedRows<'a, f32>,
    shape: Shape,
}

/// The cache while nobody writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries<'a> {
    heads: Block<'a, f32>,
    shape: Shape,
}

/// Which head of which page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) page: PageId,
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

/// Keys and values of one head in one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// `[dim]` rows of positions, in vectors.
    pub(crate) keys: &'a [[f32; LANES]],
    /// Vectors between two dimensions.
    pub(crate) key_stride: usize,
    /// `[position]` rows of dimensions, in vectors.
    pub(crate) values: &'a [[f32; LANES]],
    /// Vectors between two positions.
    pub(crate) value_stride: usize,
}

impl Cache {
    /// A cache whose memory the system has not handed out yet; pages cost when they are first used.
    ///
    /// The caller has checked that [`Shape::bytes`] is not `None`.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { data: Aligned::zeroed(shape.pages * shape.page()), shape }
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Everything, to read.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> Entries<'_> {
        let head = self.shape.head();
        Entries { heads: Block::new(&self.data, head, head), shape: self.shape }
    }

    /// Writes the key and the value of one head at one position.
    #[cfg(test)]
    pub(crate) fn write(&mut self, place: Place, index: usize, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        let first = place.row(shape) * shape.head();
        shape.write(&mut self.data[first..][..shape.head()], index, key, value);
    }

    /// Copies a page at every layer.
    pub(crate) fn copy(&mut self, from: PageId, to: PageId) {
        let page = self.shape.page();
        let start = from.0 as usize * page;
        self.data.copy_within(start..start + page, to.0 as usize * page);
    }

    /// All pages, for the workers of a pass.
    pub(crate) fn share(&mut self) -> SharedCache<'_> {
        let head = self.shape.head();
        SharedCache { heads: SharedRows::new(&mut self.data, head, head), shape: self.shape }
    }
}

impl SharedCache<'_> {
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Writes the key and the value of one head at one position.
    ///
    /// # Safety
    /// Before the worker's next barrier nobody else reads or writes entries of this head in this page.
    #[inline(always)]
    pub(crate) unsafe fn write(
        &self,
        worker: &Worker<'_>,
        place: Place,
        index: usize,
        key: &[f32],
        value: &[f32],
    ) {
        // SAFETY: the caller says so.
        let entries = unsafe { self.heads.row_mut(worker, place.row(self.shape)) };
        self.shape.write(entries, index, key, value);
    }

    /// Everything, to read.
    ///
    /// # Safety
    /// Before the worker's next barrier nobody writes.
    #[inline(always)]
    pub(crate) unsafe fn read<'w>(&'w self, worker: &'w Worker<'_>) -> Entries<'w> {
        let shape = self.shape;
        let rows = shape.pages * shape.layers * shape.heads;
        // SAFETY: the caller says so.
        let heads = unsafe { self.heads.part(worker, 0..rows) };
        Entries { heads, shape }
    }
}

impl<'a> Entries<'a> {
    pub(crate) fn shape(self) -> Shape {
        self.shape
    }

    /// One head of one page.
    #[inline(always)]
    pub(crate) fn head(self, place: Place) -> Head<'a> {
        let shape = self.shape;
        let (keys, values) = self.heads.row(place.row(shape)).split_at(shape.keys());
        Head {
            keys: keys.as_chunks().0,
            key_stride: shape.key_stride() / LANES,
            values: values.as_chunks().0,
            value_stride: shape.value_stride() / LANES,
        }
    }
}

impl Place {
    fn row(self, shape: Shape) -> usize {
        (self.page.0 as usize * shape.layers + self.layer) * shape.heads + self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_where_they_were_written_and_copies_are_whole() {
        let shape = Shape { pages: 3, page_tokens: 5, layers: 2, heads: 3, dim: 6 };
        let mut cache = Cache::new(shape);
        let value = |layer: usize, index: usize, i: usize| (layer * 1000 + index * 100 + i) as f32;
        for layer in 0..2 {
            for index in 0..5 {
                for head in 0..3 {
                    let keys: Vec<f32> =
                        (0..6).map(|i| value(layer, index, head * 6 + i)).collect();
                    let values: Vec<f32> = keys.iter().map(|k| -k).collect();
                    let place = Place { page: PageId(1), layer, head };
                    cache.write(place, index, &keys, &values);
                }
            }
        }
        cache.copy(PageId(1), PageId(2));
        for page in [1, 2] {
            for (layer, head) in [(0, 0), (0, 2), (1, 1)] {
                let found = cache.entries().head(Place { page: PageId(page), layer, head });
                for (index, d) in [(0, 0), (4, 5), (2, 3)] {
                    let expected = value(layer, index, head * 6 + d);
                    let keys = found.keys[d * found.key_stride..].as_flattened();
                    let values = found.values[index * found.value_stride..].as_flattened();
                    assert_eq!((keys[index], values[d]), (expected, -expected));
                }
            }
        }
        let empty = Place { page: PageId(0), layer: 0, head: 0 };
        assert!(cache.entries().head(empty).keys.as_flattened().iter().all(|&k| k == 0.0));
        assert_eq!(shape.bytes(), Some(3 * 2 * 3 * (6 * 8 + 5 * 8) * 4));
    }
}
