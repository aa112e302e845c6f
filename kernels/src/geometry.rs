//! How the kernels between the matrix products are launched: blocks, threads, shared memory.
//!
//! The executor and the operation suite launch through these functions, so that what is tested is what
//! runs. Shapes are those of the argument structs. A grid may depend on how many rows there are; a
//! row's bits do not.

use crate::arguments::{Cache, PAGE_TOKENS, SPLIT};

/// What a launch needs beside its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks, in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes; above 48 KiB a GPU must be asked for it.
    pub shared: u32,
}

/// Query heads that one block of `attend` takes.
const GENERATED_COLUMNS: u32 = 8;

/// Queries, (row, head) pairs, that one block of `attend_prompt` takes.
const PROMPT_COLUMNS: u32 = 32;

/// f16 numbers that one block of `copy_pages` copies.
const COPY_BLOCK: usize = 256 * 8;

/// Bytes of a `Column` of attend.cuh.
const COLUMN: u32 = 32;

/// RMS norm of `rows` rows, `norm_f32` or `norm_f16`.
///
/// Rows of the stream, the weight and the output start at multiples of 16 bytes.
#[must_use]
pub const fn norm(f16: bool, rows: u32) -> Geometry {
    let kernel = if f16 { "norm_f16" } else { "norm_f32" };
    Geometry { kernel, grid: [rows, 1, 1], threads: 256, shared: 32 }
}

/// Biases, norms and rotation of `rows` rows, `heads` query heads each.
#[must_use]
pub const fn rotate(cache: &Cache, heads: u32, rows: u32) -> Geometry {
    let all = heads + 2 * cache.heads;
    Geometry { kernel: "rotate", grid: [all.div_ceil(4), rows, 1], threads: 128, shared: 0 }
}

/// Attention of `rows` generated rows over up to `splits` splits; [`merge`] follows.
///
/// `splits` is at most the arguments', and covers the last position of every row.
#[must_use]
pub const fn attend(cache: &Cache, heads: u32, splits: u32, rows: u32) -> Geometry {
    let blocks = (heads / cache.heads).div_ceil(GENERATED_COLUMNS);
    let shared = GENERATED_COLUMNS * column_bytes(cache);
    Geometry { kernel: "attend", grid: [splits, cache.heads * blocks, rows], threads: 256, shared }
}

/// Merges what [`attend`] left of `rows` rows.
#[must_use]
pub const fn merge(heads: u32, head_dim: u32, rows: u32) -> Geometry {
    let threads = head_dim.next_multiple_of(32);
    Geometry { kernel: "merge", grid: [heads, rows, 1], threads, shared: 0 }
}

/// f32 numbers of the partial results of `rows` rows, `splits` each.
#[must_use]
pub const fn partials(cache: &Cache, heads: u32, splits: u32, rows: u32) -> usize {
    rows as usize * heads as usize * splits as usize * (cache.dim as usize + 2)
}

/// Splits that a row at `position` sees.
#[must_use]
pub const fn splits(position: u32) -> u32 {
    position / SPLIT + 1
}

/// Attention of `tiles` tiles of prompt rows, none with more than [`prompt_rows`] rows.
#[must_use]
pub const fn attend_prompt(cache: &Cache, heads: u32, tiles: u32) -> Geometry {
    let blocks = (heads / cache.heads).div_ceil(PROMPT_COLUMNS);
    let shared = PROMPT_COLUMNS * (column_bytes(cache) + 4 * cache.dim);
    let grid = [tiles, cache.heads * blocks, 1];
    Geometry { kernel: "attend_prompt", grid, threads: 128, shared }
}

/// Rows that a tile of `attend_prompt` has room for.
#[must_use]
pub const fn prompt_rows(cache: &Cache, heads: u32) -> u32 {
    let group = heads / cache.heads;
    if group < PROMPT_COLUMNS { PROMPT_COLUMNS / group } else { 1 }
}

/// Page copies, however many. A page is a whole number of blocks.
#[must_use]
pub const fn copy_pages(cache: &Cache) -> Geometry {
    let blocks = (page_elements(cache) / COPY_BLOCK) as u32;
    Geometry { kernel: "copy_pages", grid: [blocks, 1, 1], threads: 256, shared: 0 }
}

/// f16 numbers of a page, all layers.
#[must_use]
pub const fn page_elements(cache: &Cache) -> usize {
    2 * cache.layers as usize * cache.heads as usize * PAGE_TOKENS as usize * cache.dim as usize
}

/// Shared memory of a query: what is known of it, itself, its weights of a split.
const fn column_bytes(cache: &Cache) -> u32 {
    COLUMN + 4 * (cache.dim + 4) + 4 * (SPLIT + 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Address;

    const fn cache(heads: u32, dim: u32) -> Cache {
        Cache { data: Address::NULL, layers: 3, heads, dim, pages: 7 }
    }

    #[test]
    fn shared_memory_fits_every_supported_gpu() {
        // The smallest limit of a block is that of sm_86 and sm_89, 99 KiB.
        assert!(attend_prompt(&cache(8, 256), 32, 1).shared <= 99 * 1024);
        // Below 48 KiB nobody needs to be asked.
        assert!(attend(&cache(8, 256), 32, 1, 1).shared <= 48 * 1024);
    }

    #[test]
    fn every_head_has_a_column() {
        for group in 1..=70 {
            let cache = cache(2, 64);
            let blocks = attend(&cache, 2 * group, 5, 3).grid[1] / 2;
            assert!(
                blocks * GENERATED_COLUMNS >= group && (blocks - 1) * GENERATED_COLUMNS < group
            );
            let blocks = attend_prompt(&cache, 2 * group, 5).grid[1] / 2;
            let rows = prompt_rows(&cache, 2 * group);
            assert!(rows >= 1 && blocks * PROMPT_COLUMNS >= rows * group);
        }
    }

    #[test]
    fn a_page_is_copied_whole() {
        for dim in [32, 64, 96, 256] {
            let blocks = copy_pages(&cache(3, dim)).grid[0] as usize;
            assert_eq!(blocks * COPY_BLOCK, page_elements(&cache(3, dim)));
        }
    }
}
