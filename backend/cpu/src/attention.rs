//! Causal attention of one row over paged keys and values.
//!
//! # Order
//!
//! Positions are taken in splits of [`SPLIT`], aligned at position 0. In a split,
//!
//! * a score is the sum over dimensions in ascending order by fused multiply-add from +0, times
//!   1/√dim;
//! * weights are [`exp`] of the score minus the split's largest; their sum has 8 lanes, lane j taking
//!   the positions j, j + 8, … of the split, then [`crate::order::tree`];
//! * the output is, for each dimension, the sum over positions in ascending order by fused
//!   multiply-add from +0.
//!
//! Splits are merged in ascending order: with m the larger of the two maxima, both sides are scaled
//! by exp(own maximum − m) and added; scaled as `fma(new, its scale, old · its scale)`. At the end the
//! output is divided by the sum. So a row's bits depend on its query, its position and the entries it
//! sees, not on pages, neighbours or threads.
//!
//! Query heads that share keys run together, up to four, so that keys and values are loaded once.

use rewind_engine::PageId;

use crate::arch::{Kernel, LANES, Simd};
use crate::exp::exp;
use crate::kv::{Entries, Head, Place};

/// Positions of a split.
pub(crate) const SPLIT: usize = 128;

/// Attention of neighbouring query heads of one row that share a key-value head.
#[derive(Debug)]
pub(crate) struct Attend<'a> {
    pub(crate) cache: Entries<'a>,
    pub(crate) layer: usize,
    /// The key-value head.
    pub(crate) head: usize,
    /// The sequence's pages, enough for `position`.
    pub(crate) pages: &'a [PageId],
    /// The row's own position; entries 0 ..= position are seen.
    pub(crate) position: usize,
    /// Queries, `dim` for each head.
    pub(crate) queries: &'a [f32],
    /// As long as `queries`.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.cache.shape().dim;
        let Self { cache, layer, head, pages, position, queries, out } = self;
        let view = View { cache, layer, head, pages, position };
        for (queries, out) in queries.chunks(4 * dim).zip(out.chunks_mut(4 * dim)) {
            match queries.len() / dim {
                1 => heads::<S, 1>(s, view, queries, out),
                2 => heads::<S, 2>(s, view, queries, out),
                3 => heads::<S, 3>(s, view, queries, out),
                _ => heads::<S, 4>(s, view, queries, out),
            }
        }
    }
}

/// What is seen.
#[derive(Clone, Copy)]
struct View<'a> {
    cache: Entries<'a>,
    layer: usize,
    head: usize,
    pages: &'a [PageId],
    position: usize,
}

/// Neighbouring positions in one page.
#[derive(Clone, Copy)]
struct Segment<'a> {
    entries: Head<'a>,
    /// Index of the first position in the page.
    first: usize,
    len: usize,
    /// Index of the first position in the split.
    offset: usize,
}

impl<'a> View<'a> {
    /// The pieces of pages that the positions `start .. start + len` lie in.
    #[inline(always)]
    fn segments(self, start: usize, len: usize) -> impl Iterator<Item = Segment<'a>> {
        let size = self.cache.shape().page_tokens;
        let (mut offset, mut first) = (0, start % size);
        let pages = self.pages[start / size..].iter();
        pages.map_while(move |&page| {
            let segment_len = (size - first).min(len - offset);
            if segment_len == 0 {
                return None;
            }
            let entries = self.cache.head(Place { page, layer: self.layer, head: self.head });
            let segment = Segment { entries, first, len: segment_len, offset };
            (offset, first) = (offset + segment_len, 0);
            Some(segment)
        })
    }
}

#[inline(always)]
fn heads<S: Simd, const H: usize>(s: S, view: View<'_>, queries: &[f32], out: &mut [f32]) {
    let dim = view.cache.shape().dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let (mut maxima, mut totals) = ([0.0_f32; H], [0.0_f32; H]);
    for start in (0..=view.position).step_by(SPLIT) {
        let len = SPLIT.min(view.position + 1 - start);
        let mut weights = [[[0.0_f32; LANES]; SPLIT / LANES]; H];
        scores::<S, H>(s, view, start, len, queries, &mut weights);
        let (mut old, mut new) = ([0.0; H], [1.0; H]);
        for h in 0..H {
            let (maximum, total) = soften(s, &mut weights[h], len, scale);
            if start == 0 {
                (maxima[h], totals[h]) = (maximum, total);
            } else {
                let larger = if maximum > maxima[h] { maximum } else { maxima[h] };
                old[h] = one(s, maxima[h] - larger);
                new[h] = one(s, maximum - larger);
                maxima[h] = larger;
                totals[h] = total.mul_add(new[h], totals[h] * old[h]);
            }
        }
        let merge = (start > 0).then_some((old, new));
        let vectors = dim.div_ceil(LANES);
        let mut at = 0;
        // Twelve sums and what they are made of fill sixteen registers.
        while H < 4 && at + 4 <= vectors {
            outputs::<S, H, 4>(s, view, start, len, &weights, at, merge, out);
            at += 4;
        }
        while at + 2 <= vectors {
            outputs::<S, H, 2>(s, view, start, len, &weights, at, merge, out);
            at += 2;
        }
        if at < vectors {
            outputs::<S, H, 1>(s, view, start, len, &weights, at, merge, out);
        }
    }
    for (out, total) in out.chunks_mut(dim).zip(totals) {
        out.iter_mut().for_each(|o| *o /= total);
    }
}

/// Scores of a split, not scaled. What stands behind `len` means nothing.
#[inline(always)]
fn scores<S: Simd, const H: usize>(
    s: S,
    view: View<'_>,
    start: usize,
    len: usize,
    queries: &[f32],
    out: &mut [[[f32; LANES]; SPLIT / LANES]; H],
) {
    for segment in view.segments(start, len) {
        // Whole vectors of the page; lanes outside the segment are computed and dropped.
        let mut at = segment.first / LANES;
        let end = (segment.first + segment.len).div_ceil(LANES);
        while H < 4 && at + 4 <= end {
            score_vectors::<S, H, 4>(s, segment, at, queries, out);
            at += 4;
        }
        while at + 2 <= end {
            score_vectors::<S, H, 2>(s, segment, at, queries, out);
            at += 2;
        }
        if at < end {
            score_vectors::<S, H, 1>(s, segment, at, queries, out);
        }
    }
}

#[inline(always)]
fn score_vectors<S: Simd, const H: usize, const V: usize>(
    s: S,
    segment: Segment<'_>,
    at: usize,
    queries: &[f32],
    out: &mut [[[f32; LANES]; SPLIT / LANES]; H],
) {
    let head = segment.entries;
    let dim = queries.len() / H;
    let mut of: [&[f32]; H] = [&[]; H];
    for h in 0..H {
        of[h] = &queries[h * dim..][..dim];
    }
    let mut sums = [[s.splat(0.0); V]; H];
    for d in 0..dim {
        let keys = &head.keys[d * head.key_stride + at..][..V];
        let mut query = [s.splat(0.0); H];
        for h in 0..H {
            query[h] = s.splat(of[h][d]);
        }
        for v in 0..V {
            let key = s.load(&keys[v]);
            for h in 0..H {
                sums[h][v] = s.fma(query[h], key, sums[h][v]);
            }
        }
    }
    for h in 0..H {
        let out = out[h].as_flattened_mut();
        for v in 0..V {
            let mut lanes = [0.0; LANES];
            s.store(sums[h][v], &mut lanes);
            let column = (at + v) * LANES;
            let from = segment.first.max(column);
            let to = (segment.first + segment.len).min(column + LANES);
            let out = &mut out[segment.offset + from - segment.first..][..to - from];
            match out.first_chunk_mut() {
                // Most are whole, and need no call.
                Some(out) => *out = lanes,
                None => out.copy_from_slice(&lanes[from - column..to - column]),
            }
        }
    }
}

/// Turns scores into weights; gives the largest scaled score and the sum of the weights.
#[inline(always)]
fn soften<S: Simd>(
    s: S,
    scores: &mut [[f32; LANES]; SPLIT / LANES],
    len: usize,
    scale: f32,
) -> (f32, f32) {
    // The first score fills the rest of the last vector: it changes no maximum.
    let first = scores[0][0];
    let used = len.div_ceil(LANES);
    scores.as_flattened_mut()[len..used * LANES].fill(first);
    let scores = &mut scores[..used];
    let mut largest = s.splat(f32::NEG_INFINITY);
    for score in scores.iter_mut() {
        let scaled = s.mul(s.load(score), s.splat(scale));
        largest = s.max(largest, scaled);
        s.store(scaled, score);
    }
    let largest = s.largest(largest);
    for score in scores.iter_mut() {
        s.store(exp(s, s.sub(s.load(score), s.splat(largest))), score);
    }
    scores.as_flattened_mut()[len..].fill(0.0);
    let mut total = s.splat(0.0);
    for weight in scores.iter() {
        total = s.add(total, s.load(weight));
    }
    (largest, s.sum(total))
}

/// [`exp`] of one number.
#[inline(always)]
fn one<S: Simd>(s: S, x: f32) -> f32 {
    let mut out = [0.0; LANES];
    s.store(exp(s, s.splat(x)), &mut out);
    out[0]
}

/// V vectors of dimensions of the output, from vector `at` on, for one split.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one loop nest of `heads`, named")]
fn outputs<S: Simd, const H: usize, const V: usize>(
    s: S,
    view: View<'_>,
    start: usize,
    len: usize,
    weights: &[[[f32; LANES]; SPLIT / LANES]; H],
    at: usize,
    merge: Option<([f32; H], [f32; H])>,
    out: &mut [f32],
) {
    let mut sums = [[s.splat(0.0); V]; H];
    for segment in view.segments(start, len) {
        let head = segment.entries;
        let mut of: [&[f32]; H] = [&[]; H];
        for h in 0..H {
            of[h] = &weights[h].as_flattened()[segment.offset..][..segment.len];
        }
        for i in 0..segment.len {
            let values = &head.values[(segment.first + i) * head.value_stride + at..][..V];
            let mut weight = [s.splat(0.0); H];
            for h in 0..H {
                weight[h] = s.splat(of[h][i]);
            }
            for v in 0..V {
                let value = s.load(&values[v]);
                for h in 0..H {
                    sums[h][v] = s.fma(weight[h], value, sums[h][v]);
                }
            }
        }
    }
    let dim = out.len() / H;
    for h in 0..H {
        for v in 0..V {
            let mut lanes = [0.0; LANES];
            s.store(sums[h][v], &mut lanes);
            let first = (at + v) * LANES;
            let used = LANES.min(dim - first);
            let out = &mut out[h * dim + first..][..used];
            for (out, sum) in out.iter_mut().zip(lanes) {
                *out = match merge {
                    None => sum,
                    Some((old, new)) => sum.mul_add(new[h], *out * old[h]),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Isa;
    use crate::kv::{Cache, Shape};
    use crate::order::tree;

    fn exp_of(x: f32) -> f32 {
        struct One(f32);
        impl Kernel for One {
            type Output = f32;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> f32 {
                one(s, self.0)
            }
        }
        Isa::portable().run(One(x))
    }

    /// The order of the module's documentation, as plain loops over contiguous entries.
    fn naive(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let scale = 1.0 / (query.len() as f32).sqrt();
        let (mut maximum, mut total, mut out) = (0.0, 0.0, vec![0.0; query.len()]);
        for (split, (keys, values)) in keys.chunks(SPLIT).zip(values.chunks(SPLIT)).enumerate() {
            let dot =
                |k: &Vec<f32>| query.iter().zip(k).fold(0.0_f32, |sum, (q, k)| q.mul_add(*k, sum));
            let scores: Vec<f32> = keys.iter().map(|k| dot(k) * scale).collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| exp_of(score - largest)).collect();
            let mut lanes = [0.0; 8];
            weights.iter().enumerate().for_each(|(i, w)| lanes[i % 8] += w);
            let (mut old, mut new, sum) = (0.0, 1.0, tree(lanes));
            if split > 0 {
                let larger = f32::max(largest, maximum);
                (old, new) = (exp_of(maximum - larger), exp_of(largest - larger));
                (maximum, total) = (larger, sum.mul_add(new, total * old));
            } else {
                (maximum, total) = (largest, sum);
            }
            for (d, out) in out.iter_mut().enumerate() {
                let sum =
                    weights.iter().zip(values).fold(0.0_f32, |sum, (w, v)| w.mul_add(v[d], sum));
                *out = if split > 0 { sum.mul_add(new, *out * old) } else { sum };
            }
        }
        out.iter().map(|o| o / total).collect()
    }

    #[test]
    fn every_shape_and_instruction_set_gives_the_bits_of_the_documented_order() {
        for (page_tokens, dim, group) in
            [(16, 8, 3), (32, 64, 1), (7, 10, 5), (1, 4, 4), (200, 24, 2)]
        {
            let shape = Shape {
                pages: 400_usize.div_ceil(page_tokens) + 1,
                page_tokens,
                layers: 2,
                heads: 2,
                dim,
            };
            let mut cache = Cache::new(shape);
            // Pages in a scattered order.
            let pages: Vec<_> =
                (0..shape.pages).map(|i| PageId(((i * 7 + 3) % shape.pages) as u32)).collect();
            let mut pages = pages;
            pages.sort_unstable();
            pages.dedup();
            pages.reverse();
            let value = |seed: usize| (seed as f32 * 0.618).sin() * 2.0;
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in 0..(pages.len() * page_tokens).min(400) {
                let k: Vec<f32> = (0..2 * dim).map(|i| value(position * 31 + i)).collect();
                let v: Vec<f32> = (0..2 * dim).map(|i| value(position * 17 + i * 3 + 1)).collect();
                for (head, (k, v)) in k.chunks(dim).zip(v.chunks(dim)).enumerate() {
                    let place = Place { page: pages[position / page_tokens], layer: 1, head };
                    cache.write(place, position % page_tokens, k, v);
                }
                keys.push(k[dim..].to_vec());
                values.push(v[dim..].to_vec());
            }
            let queries: Vec<f32> = (0..group * dim).map(|i| value(i * 5)).collect();
            for position in [0, 1, 6, 7, 8, 126, 127, 128, 255, 256, 300] {
                let Some(keys) = keys.get(..=position) else { continue };
                for isa in Isa::all() {
                    let mut out = vec![0.0; queries.len()];
                    isa.run(Attend {
                        cache: cache.entries(),
                        layer: 1,
                        head: 1,
                        pages: &pages,
                        position,
                        queries: &queries,
                        out: &mut out,
                    });
                    for (query, out) in queries.chunks(dim).zip(out.chunks(dim)) {
                        let expected = naive(query, keys, &values[..=position]);
                        let bits =
                            |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(out), bits(&expected), "{isa:?} {shape:?} {position}");
                    }
                }
            }
        }
    }
}
