//! Keys and values of all sequences, in pages.
//!
//! A page holds `page_tokens` positions of every layer, so that copying one is a single copy. Within
//! a page each layer has, for each key-value head, the keys `[dim][position]` and then the values
//! `[position][dim]`: scores are sums over dimensions for eight positions at once, outputs are sums
//! over positions for eight dimensions at once, and neither ever sums across lanes. Entries are
//! `f32`: the shadow is exact, and at the lengths served on a CPU the weights weigh more.
//!
//! Which page belongs to whom is the engine's business; tables come with each pass.

use std::ops::Range;

use rewind_engine::PageId;

use crate::aligned::Aligned;
use crate::arch::LANES;

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

    /// Copies a page at every layer.
    pub(crate) fn copy(&mut self, from: PageId, to: PageId) {
        let page = self.shape.page();
        let start = from.0 as usize * page;
        self.data.copy_within(start..start + page, to.0 as usize * page);
    }

    fn range(&self, page: PageId, layer: usize, head: usize) -> Range<usize> {
        let Shape { layers, heads, .. } = self.shape;
        let start = ((page.0 as usize * layers + layer) * heads + head) * self.shape.head();
        start..start + self.shape.head()
    }

    /// One head of one page.
    #[inline(always)]
    pub(crate) fn head(&self, page: PageId, layer: usize, head: usize) -> Head<'_> {
        let (keys, values) = self.data[self.range(page, layer, head)].split_at(self.shape.keys());
        Head {
            keys: keys.as_chunks().0,
            key_stride: self.shape.key_stride() / LANES,
            values: values.as_chunks().0,
            value_stride: self.shape.value_stride() / LANES,
        }
    }

    /// Writes the entry of one position; `keys` and `values` hold all heads, one after the other.
    pub(crate) fn write(
        &mut self,
        page: PageId,
        layer: usize,
        index: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let shape = self.shape;
        let heads = keys.chunks_exact(shape.dim).zip(values.chunks_exact(shape.dim));
        for (head, (keys, values)) in heads.enumerate() {
            let range = self.range(page, layer, head);
            let (key_part, value_part) = self.data[range].split_at_mut(shape.keys());
            for (column, key) in key_part.chunks_exact_mut(shape.key_stride()).zip(keys) {
                column[index] = *key;
            }
            let at = index * shape.value_stride();
            value_part[at..at + shape.dim].copy_from_slice(values);
        }
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
                let keys: Vec<f32> = (0..18).map(|i| value(layer, index, i)).collect();
                let values: Vec<f32> = keys.iter().map(|k| -k).collect();
                cache.write(PageId(1), layer, index, &keys, &values);
            }
        }
        cache.copy(PageId(1), PageId(2));
        for page in [1, 2] {
            for (layer, head) in [(0, 0), (0, 2), (1, 1)] {
                let found = cache.head(PageId(page), layer, head);
                for (index, d) in [(0, 0), (4, 5), (2, 3)] {
                    let expected = value(layer, index, head * 6 + d);
                    let keys = found.keys[d * found.key_stride..].as_flattened();
                    let values = found.values[index * found.value_stride..].as_flattened();
                    assert_eq!((keys[index], values[d]), (expected, -expected));
                }
            }
        }
        assert!(cache.head(PageId(0), 0, 0).keys.as_flattened().iter().all(|&k| k == 0.0));
        assert_eq!(shape.bytes(), Some(3 * 2 * 3 * (6 * 8 + 5 * 8) * 4));
    }
}
