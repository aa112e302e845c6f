// Copies whole pages of the cache, every layer, in order: a later copy may read what an earlier one wrote.
//
// Bytes: two pages a copy. A thread owns the same 16 bytes of every page and does all copies of them itself, so the order
// is that of its own instructions, and one launch without any barrier does for all. Rejected: a device-to-device
// copy per pair, a launch each.
#include "device.cuh"

constexpr unsigned COPY_THREADS = 256;
constexpr unsigned QUAD_ELEMENTS = sizeof(Quad) / sizeof(F16);
static_assert(2 * PAGE_TOKENS * 32 % (COPY_THREADS * QUAD_ELEMENTS) == 0, "a page is a whole number of blocks");

KERNEL(copy_pages, CopyPagesArguments, COPY_THREADS, 4) {
    const Cache &cache = arguments.cache;
    const size_t page = size_t(cache.layers) * cache.heads * 2 * PAGE_TOKENS * cache.dim;
    const size_t at = (size_t(block_x()) * COPY_THREADS + thread()) * QUAD_ELEMENTS;
    for (unsigned i = 0; i < arguments.count; i++) {
        const size_t from = arguments.copies.load(2 * i);
        const size_t to = arguments.copies.load(2 * i + 1);
        cache.data.store_as<Quad>(to * page + at, cache.data.load_as<Quad>(from * page + at));
    }
}
