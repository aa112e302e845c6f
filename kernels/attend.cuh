// Attention of a few queries over one split of a sequence: what generated and prompt rows share, bit for bit.
//
// A column is a query: one head of one row. Up to 8 · TILES columns whose heads share a key-value head are the 8-wide
// operand of mma.m16n8k16; positions (for scores) or dimensions (for outputs) are its 16 rows, straight from
// the cache, one 16-byte load a lane, no shared memory between. As with the weights (matrix.cuh) lane t
// takes 8 neighbouring inputs instead of those PTX names: dimensions of a key, positions of a value's
// dimension; that is why values are stored [dim][position].
//
//     scores      S[position][column]   = K[position][dim] · Q[dim][column]
//     softening   P = exp(S · scale − maximum) of each column, its sum
//     outputs     O[dim][column]        = Vᵀ[dim][position] · P[position][column]
//
// Exactness. Keys and values are f16 as they are. Queries and weights P are f32 and enter as two f16, high and low, 22
// bits: queries times the power of two that brings the largest of a head to 2¹⁴ .. 2¹⁵, weights times 2¹⁵, so
// that neither overflows and what the low part cannot hold is below 2⁻³⁹ of the largest. High and low products
// have accumulators of their own, added at the end: small sums are not cut off by large ones.
//
// Order. Splits of 256 positions from position 0. In a split: scores, two products for each 32 dimensions, ascending;
// the maximum; weights, eight neighbours a lane summed in ascending order, then lanes in pairs 16, 8, 4, 2, 1 apart;
// outputs, two products for each page, ascending. Then merge_of(). A column's sums never mix with another's, and what
// it does not see adds exact zeros, so its bits are those of its query, its position and the entries it sees; tiles,
// pages, neighbours and the kernel it runs in do not matter. (That a product treats its columns alike and that zeros
// leave an accumulator as it is, is the hardware's part; the suite checks it.)
//
// What is not seen cannot poison. Scores of later positions are dropped before the maximum. Values of positions that no
// column sees, which may be stale NaNs, become zeros. Values that some columns see and others do not (a tile's last rows)
// are checked: 0 · NaN would reach those who do not. See scrub().
//
// Shared memory, bytes (geometry.rs computes the same):
//     columns   8·TILES × 32                what is known of each
//     queries   8·TILES × (4·dim + 16)      split operand, below
//     weights   8·TILES × 1040              scores in f32, then the split operand in their place
//     outputs   8·TILES × 4 · dim           prompt only: sums so far, as the accumulators lie in lanes
//
// A split operand holds 8 neighbours as 16 bytes of high and 16 bytes of low parts, as much as 8 floats. Its rows are
// padded by 16 bytes: the lanes of a load then touch every bank once.
//
// Rejected: keys through shared memory (cp.async), as each is used by one warp only; queries and weights rounded to
// f16, half a thousandth of each product; tf32 operands, at half the rate, and whose keys would be 4 bytes.
#pragma once

#include "device.cuh"
#include "exp.cuh"

constexpr unsigned SPLIT_PAGES = SPLIT / PAGE_TOKENS;
constexpr unsigned EIGHT = 8;                        // neighbours of a lane; columns of an operand
constexpr unsigned WEIGHT_WORDS = SPLIT + 4;         // of a column, with padding
constexpr float WEIGHT_SCALE = 32768.0f;             // of weights in the split operand
constexpr float NO_MAXIMUM = -__builtin_huge_valf(); // of nothing

// A query and what its softmax has come to.
struct Column {
    uint32_t row;      // of the pass
    uint32_t head;     // query head
    uint32_t position; // PADDING: the column is none
    float factor;      // from raw score to score
    float maximum;     // of all scores so far
    float sum;         // of all weights so far, relative to the maximum
    float keep;        // how the sums so far enter the new ones
    float add;         // how this split's sums enter; 0: not at all, the column does not see it
};

static_assert(sizeof(Column) == 32, "geometry.rs counts on it");

// Two sums of exponentials with different maxima become one: sum = fma(new, add, old · keep).
struct Merge {
    float maximum, keep, add;
};
DEVICE Merge merge_of(float before, float here) {
    const float maximum = larger(before, here);
    return {maximum, exponential(before - maximum), exponential(here - maximum)};
}

// Eight numbers as a split operand.
DEVICE void store_split(Shared<float> to, size_t at, const float (&x)[EIGHT]) {
    Quad high, low;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        uint32_t highs = 0, lows = 0;
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            const F16 part = to_f16(x[2 * i + j]);
            highs |= uint32_t(part.bits) << (16 * j);
            lows |= uint32_t(to_f16(x[2 * i + j] - to_f32(part)).bits) << (16 * j);
        }
        high.word[i] = highs;
        low.word[i] = lows;
    }
    to.store_as<Quad>(at, high);
    to.store_as<Quad>(at + 4, low);
}

// A lane's registers of two rows, 8 apart, and of a column become the operands of product `step`, 0 or 1.
DEVICE void multiply(float (&sum)[4], const Quad &upper, const Quad &lower, const Quad &column, unsigned step) {
    const uint32_t a[4] = {upper.word[2 * step], lower.word[2 * step], upper.word[2 * step + 1],
                           lower.word[2 * step + 1]};
    const uint32_t b[2] = {column.word[2 * step], column.word[2 * step + 1]};
    mma_f16(sum, a, b);
}

DEVICE bool is_finite_f16(uint32_t bits) { return (bits & 0x7c00) != 0x7c00; }

// TILES: operands of 8 columns that share the loads of keys and values.
// WARPS: of the block. They share the pages of scores and the dimensions of outputs; no sum is cut between them.
// AHEAD: blocks of 32 dimensions of a page's keys that are loaded before the first is used.
template <unsigned TILES, unsigned WARPS, unsigned AHEAD> struct Attention {
    static constexpr unsigned COLUMNS = EIGHT * TILES;
    static constexpr unsigned PAGES_AHEAD = 4; // of values

    const AttendArguments &arguments;
    const unsigned head; // key-value head
    const unsigned query_words;
    const unsigned group = lane() / 4; // row of the 16-row operand, and the one 8 below; column of the other
    const unsigned part = lane() % 4;  // which 8 neighbouring inputs; which two columns of a result
    const Shared<Column> columns;
    const Shared<float> queries, weights, outputs;

    DEVICE Attention(const AttendArguments &arguments, unsigned head)
        : arguments(arguments), head(head), query_words(arguments.cache.dim + 4),
          columns(shared_array<Column>(0, COLUMNS)),
          queries(shared_array<float>(COLUMNS * sizeof(Column), COLUMNS * query_words)),
          weights(shared_array<float>(COLUMNS * (sizeof(Column) + 4 * query_words), COLUMNS * WEIGHT_WORDS)),
          outputs(shared_array<float>(COLUMNS * (sizeof(Column) + 4 * query_words + 4 * WEIGHT_WORDS),
                                      TILES > 1 ? COLUMNS * arguments.cache.dim : 0)) {}

    // Tiles of 16 dimensions.
    DEVICE unsigned dim_tiles() const { return (arguments.head_dim + 15) / 16; }

    // Fills columns and queries; open(i) gives row, head and position of column i. A barrier must follow.
    template <class Open> DEVICE void load_queries(Open open) const {
        const unsigned dim = arguments.cache.dim, first = EIGHT * lane();
        for (unsigned i = warp(); i < COLUMNS; i += WARPS) {
            Column column = open(i);
            const bool inside = column.position != PADDING && first < dim;
            const size_t at = (size_t(column.row) * arguments.heads + column.head) * dim + first;
            float x[EIGHT], largest = 0.0f, poison = 0.0f;
#pragma unroll
            for (unsigned quad = 0; quad < 2; quad++) {
                const Quad bits = inside ? arguments.queries.load_as<Quad>(at + 4 * quad) : Quad{};
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    const float value = from_bits(bits.word[j]);
                    x[4 * quad + j] = value;
                    largest = larger(largest, absolute(value));
                    poison += value * 0.0f; // NaN for NaN and infinities
                }
            }
#pragma unroll
            for (unsigned apart = 16; apart > 0; apart /= 2) {
                largest = larger(largest, shuffle_xor(largest, apart));
                poison += shuffle_xor(poison, apart);
            }
            // Biased exponents, kept where both the power and its inverse are normal numbers.
            const uint32_t exponent = bits_of(largest) >> 23;
            const uint32_t bounded = exponent < 15 ? 15 : exponent > 254 ? 254 : exponent;
            const float power = from_bits((127 + 14 + 127 - bounded) << 23);
            const float inverse = from_bits((bounded - 14) << 23);
#pragma unroll
            for (unsigned j = 0; j < EIGHT; j++) {
                x[j] *= power;
            }
            if (first < dim) {
                store_split(queries, size_t(i) * query_words + first, x);
            }
            if (lane() == 0) {
                column.factor = inverse * arguments.scale + poison;
                column.maximum = NO_MAXIMUM;
                column.sum = 0.0f;
                column.keep = 1.0f;
                column.add = 0.0f;
                columns.store(i, column);
            }
        }
    }

    // Where the entries of a page of this layer and head start; `page` of the whole cache.
    DEVICE Global<F16> entries(unsigned page) const {
        const Cache &cache = arguments.cache;
        const size_t entry = (size_t(page) * cache.layers + arguments.layer) * cache.heads + head;
        return cache.data.offset(2 * entry * PAGE_TOKENS * cache.dim);
    }

    // Lane i gets the page of positions 32·i .. of a split.
    DEVICE unsigned page_of_lane(unsigned table, unsigned split, unsigned pages) const {
        return lane() < pages ? arguments.pages.load(table + split * SPLIT_PAGES + lane()) : 0;
    }

    // Raw scores of the first `pages` pages of a split; warps take turns. A barrier must follow.
    DEVICE void score(unsigned page_of_lane, unsigned pages) const {
        const unsigned dim = arguments.cache.dim;
        for (unsigned page = warp(); page < pages; page += WARPS) {
            const auto keys = entries(shuffle(page_of_lane, page)).offset(size_t(group) * dim + EIGHT * part);
            float high[2][TILES][4] = {}, low[2][TILES][4] = {};
            for (unsigned base = 0; base < dim; base += 32 * AHEAD) {
                Quad key[AHEAD][4];
#pragma unroll
                for (unsigned ahead = 0; ahead < AHEAD; ahead++) {
                    const unsigned block = base + 32 * ahead;
                    if (ahead == 0 || block < dim) {
#pragma unroll
                        for (unsigned i = 0; i < 4; i++) {
                            key[ahead][i] = keys.template load_as<Quad>(size_t(EIGHT * i) * dim + block);
                        }
                    }
                }
#pragma unroll
                for (unsigned ahead = 0; ahead < AHEAD; ahead++) {
                    const unsigned block = base + 32 * ahead;
                    if (ahead == 0 || block < dim) {
                        score_block(key[ahead], block, high, low);
                    }
                }
            }
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
#pragma unroll
                for (unsigned tile = 0; tile < TILES; tile++) {
#pragma unroll
                    for (unsigned i = 0; i < 4; i++) {
                        const size_t column = EIGHT * tile + 2 * part + i % 2;
                        const unsigned position = PAGE_TOKENS * page + 16 * half + group + EIGHT * (i / 2);
                        weights.store(column * WEIGHT_WORDS + position, high[half][tile][i] + low[half][tile][i]);
                    }
                }
            }
        }
    }

    // Scores become weights, and each column learns how its sums go on; warps take turns. `start`: the
    // split's first position; `first_split`: there are no sums yet. A barrier must follow.
    DEVICE void soften(unsigned start, unsigned pages, bool first_split) const {
        for (unsigned i = warp(); i < COLUMNS; i += WARPS) {
            Column column = columns.load(i);
            // All lanes have read the column before one of them changes it.
            warp_barrier();
            if (column.position == PADDING || column.position < start) {
                if (lane() == 0) {
                    column.keep = 1.0f;
                    column.add = 0.0f;
                    columns.store(i, column);
                }
                continue;
            }
            const unsigned first = EIGHT * lane(), last = column.position - start;
            const size_t at = size_t(i) * WEIGHT_WORDS + first;
            const bool inside = first < PAGE_TOKENS * pages;
            float x[EIGHT], maximum = NO_MAXIMUM, sum = 0.0f;
#pragma unroll
            for (unsigned quad = 0; quad < 2; quad++) {
                const Quad bits = inside ? weights.template load_as<Quad>(at + 4 * quad) : Quad{};
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    const unsigned k = 4 * quad + j;
                    x[k] = from_bits(bits.word[j]) * column.factor;
                    maximum = first + k <= last ? larger(maximum, x[k]) : maximum;
                }
            }
#pragma unroll
            for (unsigned apart = 16; apart > 0; apart /= 2) {
                maximum = larger(maximum, shuffle_xor(maximum, apart));
            }
#pragma unroll
            for (unsigned k = 0; k < EIGHT; k++) {
                // Computed for all, so that lanes do not part.
                const float weight = exponential(x[k] - maximum);
                x[k] = first + k <= last ? weight : 0.0f;
                sum += x[k];
                x[k] *= WEIGHT_SCALE;
            }
#pragma unroll
            for (unsigned apart = 16; apart > 0; apart /= 2) {
                sum += shuffle_xor(sum, apart);
            }
            if (inside) {
                store_split(weights, at, x);
            }
            if (lane() == 0) {
                const Merge merge = merge_of(first_split ? maximum : column.maximum, maximum);
                column.sum = fma(sum, merge.add, column.sum * merge.keep);
                column.maximum = merge.maximum;
                column.keep = merge.keep;
                column.add = merge.add;
                columns.store(i, column);
            }
        }
    }

    // Outputs of a tile of 16 dimensions over the first `pages` pages of a split. Positions below `all` are seen by
    // every column, those from `any` on by none; both count from the split's start.
    DEVICE void weigh(unsigned page_of_lane, unsigned pages, unsigned dims, unsigned start, unsigned all, unsigned any,
                      float (&sums)[TILES][4]) const {
        float high[TILES][4] = {}, low[TILES][4] = {};
        auto load = [&](unsigned page, Quad (&value)[2]) {
            const auto values = entries(shuffle(page_of_lane, page)).offset(size_t(PAGE_TOKENS) * arguments.cache.dim);
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                const size_t dim = 16 * dims + EIGHT * i + group;
                value[i] = values.template load_as<Quad>(dim * PAGE_TOKENS + EIGHT * part);
            }
        };
        auto add = [&](unsigned page, const Quad (&value)[2]) {
#pragma unroll
            for (unsigned tile = 0; tile < TILES; tile++) {
                const size_t at = size_t(EIGHT * tile + group) * WEIGHT_WORDS + PAGE_TOKENS * page + EIGHT * part;
                const Quad weight_high = weights.template load_as<Quad>(at);
                const Quad weight_low = weights.template load_as<Quad>(at + 4);
#pragma unroll
                for (unsigned step = 0; step < 2; step++) {
                    multiply(high[tile], value[0], value[1], weight_high, step);
                    multiply(low[tile], value[0], value[1], weight_low, step);
                }
            }
        };
        for (unsigned base = 0; base < pages; base += PAGES_AHEAD) {
            Quad value[PAGES_AHEAD][2];
#pragma unroll
            for (unsigned ahead = 0; ahead < PAGES_AHEAD; ahead++) {
                if (ahead == 0 || base + ahead < pages) {
                    load(base + ahead, value[ahead]);
                }
            }
#pragma unroll
            for (unsigned ahead = 0; ahead < PAGES_AHEAD; ahead++) {
                const unsigned page = base + ahead, behind = PAGE_TOKENS * (page + 1);
                if (page < pages) {
                    if (behind > all) {
                        const bool poisoned = scrub(value[ahead], PAGE_TOKENS * page + EIGHT * part, all, any);
                        if (ballot(poisoned) != 0) {
                            poison(shuffle(page_of_lane, page), page, dims, start, all, any, high);
                        }
                    }
                    add(page, value[ahead]);
                }
            }
        }
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                sums[tile][i] = (high[tile][i] + low[tile][i]) * (1.0f / WEIGHT_SCALE);
            }
        }
    }

    // Dimension and column of accumulator i.
    DEVICE unsigned dimension(unsigned dims, unsigned i) const { return 16 * dims + group + EIGHT * (i / 2); }
    DEVICE unsigned column(unsigned tile, unsigned i) const { return EIGHT * tile + 2 * part + i % 2; }

  private:
    // 32 dimensions of a page's 32 positions: rows group, + 8, + 16, + 24.
    DEVICE void score_block(const Quad (&key)[4], unsigned block, float (&high)[2][TILES][4],
                            float (&low)[2][TILES][4]) const {
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
            const size_t at = size_t(EIGHT * tile + group) * query_words + block + EIGHT * part;
            const Quad query_high = queries.template load_as<Quad>(at);
            const Quad query_low = queries.template load_as<Quad>(at + 4);
#pragma unroll
            for (unsigned step = 0; step < 2; step++) {
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    multiply(high[half][tile], key[2 * half], key[2 * half + 1], query_high, step);
                    multiply(low[half][tile], key[2 * half], key[2 * half + 1], query_low, step);
                }
            }
        }
    }

    // Zeroes values from position `any` on, and of those from `all` on the ones that are not finite: true if there were.
    // `first` is the position of a lane's first value.
    DEVICE static bool scrub(Quad (&value)[2], unsigned first, unsigned all, unsigned any) {
        bool poisoned = false;
#pragma unroll
        for (unsigned i = 0; i < EIGHT; i++) {
            const unsigned position = first + i, shift = 16 * (i % 2);
#pragma unroll
            for (unsigned row = 0; row < 2; row++) {
                uint32_t &word = value[row].word[i / 2];
                const bool bad = position >= all && position < any && !is_finite_f16(word >> shift);
                poisoned = poisoned || bad;
                word = bad || position >= any ? word & ~(0xffffu << shift) : word;
            }
        }
        return poisoned;
    }

    // What scrub() took away is given to the columns that see it: NaN. Rare, so it may be slow.
    DEVICE void poison(unsigned page_id, unsigned page, unsigned dims, unsigned start, unsigned all, unsigned any,
                       float (&high)[TILES][4]) const {
        const auto values = entries(page_id).offset(size_t(PAGE_TOKENS) * arguments.cache.dim);
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const uint32_t own = columns.load(column(tile, i)).position;
                const auto row = values.offset(size_t(dimension(dims, i)) * PAGE_TOKENS);
                for (unsigned k = 0; k < PAGE_TOKENS; k++) {
                    const unsigned position = PAGE_TOKENS * page + k;
                    const bool sees = own != PADDING && start + position <= own;
                    if (sees && position >= all && position < any && !is_finite_f16(row.load(k).bits)) {
                        high[tile][i] += to_f32(F16{0x7e00}); // NaN
                    }
                }
            }
        }
    }
};

// Writes an element of the output of either type.
DEVICE void store_output(const AttendArguments &arguments, const Column &column, unsigned dim, float x) {
    const size_t at = size_t(column.row) * arguments.out_stride + column.head * arguments.head_dim + dim;
    if (arguments.out_f16 != 0) {
        arguments.out.store_as<F16>(2 * at, to_f16(x));
    } else {
        arguments.out.store_as<float>(4 * at, x);
    }
}
