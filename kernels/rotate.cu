// Between projection and attention: biases, norms of heads, rotation of queries and keys; keys and values
// into the cache.
//
// Bytes: a row of qkv in f32, its angles; queries in f32 and keys and values in f16 out. A warp takes a head of a row;
// lane i has the pairs (i, i + half), (i + 32, …), … in registers from the first load to the last store, so the steps
// cost no memory in between. Nothing depends on other rows.
//
// The squares of a norm: lane i adds those of its pairs, first element then second, pairs ascending, by fused
// multiply-add from +0; then lanes in pairs 16, 8, 4, 2, 1 apart.
//
// Values are stored [dim][position], so a row's are scattered, two bytes each 64 apart: the price for attention that reads
// them as rows of a matrix product. A generated row writes a few thousand; for prompt rows the L2 joins neighbours.
// Rejected: transposing 16 rows in shared memory first, which must know where a sequence starts.
#include "device.cuh"

constexpr unsigned ROTATE_THREADS = 128;
constexpr unsigned LANE_PAIRS = 4; // heads of up to 256

KERNEL(rotate, RotateArguments, ROTATE_THREADS, 8) {
    const Row row = arguments.rows.load(block_y());
    const Cache &cache = arguments.cache;
    const unsigned number = block_x() * (ROTATE_THREADS / 32) + warp();
    const bool query = number < arguments.heads;
    const bool value = number >= arguments.heads + cache.heads;
    if (row.position == PADDING || number >= arguments.heads + 2 * cache.heads) {
        return;
    }

    const unsigned half = arguments.head_dim / 2;
    const size_t first = size_t(number) * arguments.head_dim;
    const auto source = arguments.qkv.offset(size_t(block_y()) * arguments.qkv_stride + first);
    float a[LANE_PAIRS], b[LANE_PAIRS];
#pragma unroll
    for (unsigned k = 0; k < LANE_PAIRS; k++) {
        const unsigned i = lane() + 32 * k;
        const bool inside = i < half;
        a[k] = inside ? source.load(i) : 0.0f;
        b[k] = inside ? source.load(i + half) : 0.0f;
        if (inside && !arguments.bias.is_null()) {
            a[k] += arguments.bias.load(first + i);
            b[k] += arguments.bias.load(first + i + half);
        }
    }

    const auto weight = query ? arguments.query_norm : arguments.key_norm;
    if (!value && !weight.is_null()) {
        float squares = 0.0f;
#pragma unroll
        for (unsigned k = 0; k < LANE_PAIRS; k++) {
            squares = fma(a[k], a[k], squares);
            squares = fma(b[k], b[k], squares);
        }
#pragma unroll
        for (unsigned apart = 16; apart > 0; apart /= 2) {
            squares += shuffle_xor(squares, apart);
        }
        const float scale = 1.0f / square_root(squares / float(arguments.head_dim) + arguments.epsilon);
#pragma unroll
        for (unsigned k = 0; k < LANE_PAIRS; k++) {
            const unsigned i = lane() + 32 * k;
            if (i < half) {
                a[k] = a[k] * scale * weight.load(i);
                b[k] = b[k] * scale * weight.load(i + half);
            }
        }
    }

    if (!value) {
        const size_t angles = size_t(row.position) * half;
#pragma unroll
        for (unsigned k = 0; k < LANE_PAIRS; k++) {
            const unsigned i = lane() + 32 * k;
            if (i < half) {
                const float cosine = arguments.cosines.load(angles + i);
                const float sine = arguments.sines.load(angles + i);
                const float rotated = fma(a[k], cosine, -(b[k] * sine));
                b[k] = fma(b[k], cosine, a[k] * sine);
                a[k] = rotated;
            }
        }
    }

    // store(d, x) for every dimension, the padding's zeros included: what a page held before must not meet a query.
    auto store_all = [&](auto store) {
#pragma unroll
        for (unsigned k = 0; k < LANE_PAIRS; k++) {
            const unsigned i = lane() + 32 * k;
            if (i < half) {
                store(i, a[k]);
                store(i + half, b[k]);
            }
        }
        const unsigned padding = arguments.head_dim + lane();
        if (padding < cache.dim) {
            store(padding, 0.0f);
        }
    };
    if (query) {
        const auto to = arguments.queries.offset((size_t(block_y()) * arguments.heads + number) * cache.dim);
        store_all([&](unsigned d, float x) { to.store(d, x); });
        return;
    }
    const unsigned head = number - arguments.heads - (value ? cache.heads : 0);
    const unsigned page = arguments.pages.load(row.table + row.position / PAGE_TOKENS);
    const unsigned slot = row.position % PAGE_TOKENS;
    const size_t entry = (size_t(page) * cache.layers + arguments.layer) * cache.heads + head;
    const size_t size = size_t(PAGE_TOKENS) * cache.dim;
    if (value) {
        const auto to = cache.data.offset((2 * entry + 1) * size + slot);
        store_all([&](unsigned d, float x) { to.store(size_t(d) * PAGE_TOKENS, to_f16(x)); });
    } else {
        const auto to = cache.data.offset(2 * entry * size + size_t(slot) * cache.dim);
        store_all([&](unsigned d, float x) { to.store(d, to_f16(x)); });
    }
}
