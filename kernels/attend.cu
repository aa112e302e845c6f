// Attention of generated rows: a block for each (split, key-value head, row), then a merge of the splits.
//
// Bytes: keys and values of the sequence once for each 8 query heads that share them, 4 · dim a position; a
// partial result a split, 1/128 of that for 4 heads. Splits fill the machine when rows are few; their size is fixed,
// so they are cut the same whatever else is in the batch.
//
// A captured graph has the grid of the longest sequence: blocks behind a row's last split leave at once. Groups of more than
// 8 heads take several blocks, which find keys and values in L2; wider operands would cost all others.
//
// merge computes what walking the splits in ascending order gives (attend_prompt.cu does walk them), bit for bit,
// without its chain of exponentials: the maximum before each split is a prefix maximum over lanes, so the factors of 32
// splits are had at once, and only the multiply-adds remain in sequence.
#include "attend.cuh"

// Partial result of a (row, head): outputs [cache.dim], maximum, sum for each split.
DEVICE Global<float> partial_of(const AttendArguments &arguments, size_t row, size_t head, size_t split) {
    const size_t at = (row * arguments.heads + head) * arguments.splits + split;
    return arguments.partials.offset(at * (arguments.cache.dim + 2));
}

constexpr unsigned ATTEND_WARPS = SPLIT_PAGES; // a page of a split each

KERNEL(attend, AttendArguments, ATTEND_WARPS * 32, 2) {
    const Row row = arguments.rows.load(block_z());
    const unsigned split = block_x(), start = split * SPLIT;
    if (row.position == PADDING || start > row.position) {
        return;
    }
    const unsigned group = arguments.heads / arguments.cache.heads;
    const unsigned blocks = (group + EIGHT - 1) / EIGHT; // that share a key-value head
    const unsigned head = block_y() / blocks, first = block_y() % blocks * EIGHT;
    const Attention<1, ATTEND_WARPS, 4> attention(arguments, head);

    attention.load_queries([&](unsigned i) {
        Column column{};
        column.row = block_z();
        column.head = head * group + first + i;
        column.position = first + i < group ? row.position : PADDING;
        return column;
    });
    const unsigned behind = row.position - start + 1;
    const unsigned seen = behind < SPLIT ? behind : SPLIT;
    const unsigned pages = (seen + PAGE_TOKENS - 1) / PAGE_TOKENS;
    const unsigned page_of_lane = attention.page_of_lane(row.table, split, pages);
    barrier();
    attention.score(page_of_lane, pages);
    barrier();
    attention.soften(start, pages, true);
    barrier();
    for (unsigned dims = warp(); dims < attention.dim_tiles(); dims += ATTEND_WARPS) {
        float sums[1][4];
        attention.weigh(page_of_lane, pages, dims, start, seen, seen, sums);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const Column column = attention.columns.load(attention.column(0, i));
            if (column.position != PADDING) {
                const auto partial = partial_of(arguments, column.row, column.head, split);
                partial.store(attention.dimension(dims, i), sums[0][i]);
            }
        }
    }
    if (thread() < EIGHT) {
        const Column column = attention.columns.load(thread());
        if (column.position != PADDING) {
            const auto partial = partial_of(arguments, column.row, column.head, split);
            partial.store(arguments.cache.dim, column.maximum);
            partial.store(arguments.cache.dim + 1, column.sum);
        }
    }
}

constexpr unsigned MERGE_THREADS = 256;

KERNEL(merge, AttendArguments, MERGE_THREADS, 4) {
    const Row row = arguments.rows.load(block_y());
    if (row.position == PADDING) {
        return;
    }
    const unsigned dim = arguments.cache.dim, d = thread();
    const unsigned splits = row.position / SPLIT + 1;
    float maximum = NO_MAXIMUM, sum = 0.0f, output = 0.0f;
    for (unsigned first = 0; first < splits; first += 32) {
        const bool inside = first + lane() < splits;
        const auto own = partial_of(arguments, block_y(), block_x(), first + lane());
        const float here = inside ? own.load(dim) : NO_MAXIMUM;
        const float weight = inside ? own.load(dim + 1) : 0.0f;
        float prefix = here;
#pragma unroll
        for (unsigned apart = 1; apart < 32; apart *= 2) {
            const float before = shuffle(prefix, (lane() - apart) & 31);
            prefix = lane() >= apart ? larger(before, prefix) : prefix;
        }
        prefix = larger(maximum, prefix);
        const float neighbour = shuffle(prefix, (lane() - 1) & 31);
        const float before = lane() > 0 ? neighbour : first > 0 ? maximum : here;
        const Merge merge = merge_of(before, here);
        maximum = shuffle(prefix, 31);
        const unsigned count = splits - first < 32 ? splits - first : 32;
#pragma unroll 4
        for (unsigned i = 0; i < count; i++) {
            const float keep = shuffle(merge.keep, i), add = shuffle(merge.add, i);
            const auto partial = partial_of(arguments, block_y(), block_x(), first + i);
            const float value = d < arguments.head_dim ? partial.load(d) : 0.0f;
            sum = fma(shuffle(weight, i), add, sum * keep);
            output = fma(value, add, output * keep);
        }
    }
    if (d < arguments.head_dim) {
        Column column{};
        column.row = block_y();
        column.head = block_x();
        store_output(arguments, column, d, output / sum);
    }
}
