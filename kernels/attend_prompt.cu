// Attention of prompt rows: a block for each (tile of rows, key-value head) walks the splits of their sequence.
//
// 32 columns, (row of the tile, head of the group), share every load of keys and values, and a tile's rows are
// neighbours, so nearly all they load is seen by all. Each key and value element enters 2 · 2 · 32 multiply-adds (two
// parts of each operand): at dim 128 a split is 128 KiB from L2 for 8.4 MFLOP. Outputs so far stay in shared memory, in
// the lanes' own order, so that merging a split is one 16-byte load and store for 32 products and needs no barrier.
//
// Rows of a tile may have any ascending positions; causality is each column's own position. Bits are those of attend
// and merge: same splits, same order in a split, same merge.
//
// Rejected: 64 columns, whose weights and queries leave room for one block on a multiprocessor and nothing to hide
// the softening behind; outputs in registers, as head sizes up to 256 would spill; skipping splits' rescaling
// when the maximum stays, which is one multiplication.
#include "attend.cuh"

constexpr unsigned PROMPT_TILES = 4;

constexpr unsigned PROMPT_WARPS = 4;

KERNEL(attend_prompt, AttendArguments, PROMPT_WARPS * 32, 3) {
    using Prompt = Attention<PROMPT_TILES, PROMPT_WARPS, 1>;
    const unsigned first_row = arguments.tiles.load(2 * block_x()), rows = arguments.tiles.load(2 * block_x() + 1);
    const Row own = lane() < rows ? arguments.rows.load(first_row + lane()) : Row{0, PADDING, 0, 0};
    // Last and first position of the tile; padding counts for neither.
    uint32_t last = own.position == PADDING ? 0 : own.position + 1, early = own.position;
#pragma unroll
    for (unsigned apart = 16; apart > 0; apart /= 2) {
        const uint32_t other_last = shuffle_xor(last, apart), other_early = shuffle_xor(early, apart);
        last = other_last > last ? other_last : last;
        early = other_early < early ? other_early : early;
    }
    if (last == 0) {
        return;
    }
    const unsigned table = shuffle(own.table, 0);

    // Groups wider than the columns take several blocks.
    const unsigned group = arguments.heads / arguments.cache.heads;
    const unsigned blocks = (group + Prompt::COLUMNS - 1) / Prompt::COLUMNS;
    const unsigned head = block_y() / blocks, first_head = block_y() % blocks * Prompt::COLUMNS;
    const unsigned left = group - first_head, heads = left < Prompt::COLUMNS ? left : Prompt::COLUMNS;
    const Prompt attention(arguments, head);

    attention.load_queries([&](unsigned i) {
        Column column{};
        column.row = first_row + i / heads;
        column.head = head * group + first_head + i % heads;
        const uint32_t position = shuffle(own.position, (i / heads) % 32);
        column.position = i / heads < rows ? position : PADDING;
        return column;
    });
    barrier();

    const auto running = [&](unsigned dims, unsigned tile) { return ((dims * PROMPT_TILES + tile) * 32 + lane()) * 4; };
    for (unsigned split = 0; split * SPLIT < last; split++) {
        const unsigned start = split * SPLIT;
        const unsigned any = last - start < SPLIT ? last - start : SPLIT;
        const unsigned common = early < start ? 0 : early - start + 1, all = common < SPLIT ? common : SPLIT;
        const unsigned pages = (any + PAGE_TOKENS - 1) / PAGE_TOKENS;
        const unsigned page_of_lane = attention.page_of_lane(table, split, pages);
        attention.score(page_of_lane, pages);
        barrier();
        attention.soften(start, pages, split == 0);
        barrier();
        for (unsigned dims = warp(); dims < attention.dim_tiles(); dims += PROMPT_WARPS) {
            float sums[PROMPT_TILES][4];
            attention.weigh(page_of_lane, pages, dims, start, all, any, sums);
#pragma unroll
            for (unsigned tile = 0; tile < PROMPT_TILES; tile++) {
                const Column even = attention.columns.load(attention.column(tile, 0));
                const Column odd = attention.columns.load(attention.column(tile, 1));
                const Quad before = split > 0 ? attention.outputs.load_as<Quad>(running(dims, tile)) : Quad{};
                Quad after;
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    const float old = from_bits(before.word[i]);
                    const float keep = i % 2 == 0 ? even.keep : odd.keep, add = i % 2 == 0 ? even.add : odd.add;
                    after.word[i] = bits_of(add == 0.0f ? old : fma(sums[tile][i], add, old * keep));
                }
                attention.outputs.store_as<Quad>(running(dims, tile), after);
            }
        }
        barrier();
    }

    for (unsigned dims = warp(); dims < attention.dim_tiles(); dims += PROMPT_WARPS) {
#pragma unroll
        for (unsigned tile = 0; tile < PROMPT_TILES; tile++) {
            const Quad sums = attention.outputs.load_as<Quad>(running(dims, tile));
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const Column column = attention.columns.load(attention.column(tile, i));
                const unsigned dim = attention.dimension(dims, i);
                if (column.position != PADDING && dim < arguments.head_dim) {
                    store_output(arguments, column, dim, from_bits(sums.word[i]) / column.sum);
                }
            }
        }
    }
}
