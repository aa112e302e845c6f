// out = x · matrixᵀ: the loop that the products of a layer and the LM head share.
//
// Idea: one token reads every weight once, so time is bytes over bandwidth; the rows of x come along almost free.
// Weights are the 16-row operand of mma.sync and 8 rows of x its other one, so 1 row and 8 cost the same, and one
// K-order serves any number of rows.
//
// A block of 8 warps makes the 32 outputs of a panel for 8 · TILES rows. Warp w takes the units w, w + 8, … of it, so
// that what it loads of x serves two tiles. Each block of inputs (32, or 16 for float formats) is summed in a fresh
// f32 partial, which joins the warp's sum with one rounding: sum = fma(scale, partial, sum), or sum + partial where
// groups have no scales; then, where they have offsets, fma(offset, sum of the inputs, sum). The sums of the warps are added in their order, through shared memory; a scale of the row
// comes last. Nothing of this depends on the number of rows, which is what makes a row's bits its own.
//
// Bytes: codes and scales once per grid row, from HBM; 2 or 4 · cols of x per row and block, from L1 and L2. To keep
// 3.35 TB/s busy an H100 needs 700 ns · 3.35 TB/s / 132 = 18 KB in flight per multiprocessor. A warp keeps DEPTH
// units in registers and loads each anew when it is used up: of a single block, which is all there is when a matrix of
// 4096 outputs makes 128 of them, 8 warps · (4 − 1) · 1 KB = 24 KB; of two twice that.
//
// Rejected: cp.async rings in shared memory (one warp uses a weight once; the round trip would only buy depth, which
// registers have); SIMT dot products for one row (another order, hence other bits); splitting K over blocks (a second
// pass, or atomics); zeros for rows that are not there (they repeat the last row instead, so that no load is
// predicated, and nobody looks at their sums).
#pragma once

#include "matrix.cuh"

constexpr unsigned PRODUCT_WARPS = 8;
constexpr unsigned PRODUCT_THREADS = 32 * PRODUCT_WARPS;
constexpr unsigned PRODUCT_OUTPUTS = PANEL_ROWS; // of a block

// Partial sums of 8 rows of x: [warp][row][output]. With this stride the lanes of a store meet 32 different banks.
constexpr unsigned SUM_STRIDE = PANEL_ROWS + 4;
constexpr unsigned SUM_WARP = 8 * SUM_STRIDE;
constexpr unsigned SUM_BUFFER = PRODUCT_WARPS * SUM_WARP;

// Dynamic shared memory that multiply() takes, from offset 0.
template <unsigned TILES> constexpr unsigned PRODUCT_SHARED = (TILES > 1 ? 2 : 1) * SUM_BUFFER * sizeof(float);

// One unit of a panel, as a lane holds it.
template <class Format> struct Unit {
    typename Format::Codes codes[2]; // of each tile
    typename Format::Groups scales[Format::BLOCKS];
};

// Loads a warp's units of a panel, each PRODUCT_WARPS behind the one before.
template <class Format> struct WeightReader {
    using Groups = typename Format::Groups;
    static constexpr bool GROUPS = Groups::BYTES != 0;

    Global<const uint8_t> codes;  // of this lane, of the unit that is next
    Global<const uint8_t> scales; // likewise
    unsigned scales_ahead;        // bytes from one unit's scales to the next's
    unsigned scales_of_block;     // bytes from one block's scales to the next's

    DEVICE explicit WeightReader(const Matrix &matrix) {
        const size_t panel = block_x();
        codes = matrix.codes.offset((panel * matrix.units + warp()) * UNIT_BYTES<Format> + lane() * sizeof(Quad));
        if constexpr (GROUPS) {
            // A group is 1, 2 or 4 blocks. PRODUCT_WARPS units are whole groups, and the two blocks that a unit may
            // have are each a group, or in the same one.
            const unsigned blocks = matrix.group / Format::INPUTS;
            const unsigned group = warp() * Format::BLOCKS / blocks;
            scales_ahead = PRODUCT_WARPS * Format::BLOCKS / blocks * Groups::BYTES;
            scales_of_block = blocks == 1 ? Groups::BYTES : 0;
            const size_t start = PanelScales<Format>(matrix, panel).group(group);
            scales = matrix.scales.offset(start + lane() / 4 * Groups::LANE_BYTES);
        }
    }

    DEVICE Unit<Format> next() {
        Unit<Format> unit;
#pragma unroll
        for (unsigned tile = 0; tile < 2; tile++) {
            unit.codes[tile] = Format::Codes::load(codes, tile);
        }
        codes = codes.offset(PRODUCT_WARPS * UNIT_BYTES<Format>);
        if constexpr (GROUPS) {
#pragma unroll
            for (unsigned block = 0; block < Format::BLOCKS; block++) {
                unit.scales[block] = Groups::load(scales.offset(block * scales_of_block));
            }
            scales = scales.offset(scales_ahead);
        }
        return unit;
    }
};

// Multiplies panel block_x() with the rows of x from 8 · TILES · block_y() on, below `count`, and calls
//
//     tail(unsigned row, unsigned output, float value)
//
// with each finished sum: by whole warps, a warp with one row of x, whose 32 outputs its lanes hold in order, output =
// 32 · block_x() + lane(). Warp w gets rows w, w + 8, … of the block's. `output` runs to the padded end, so the tail
// must look at matrix.rows. It may use collectives of the warp, none of the block, and shared memory from
// PRODUCT_SHARED<TILES> on.
//
// Format: how weights are packed. TILES: how many times 8 rows of x a block takes: 1, 2 or 8, and 4 where 8 would
// spill registers. The block has
// PRODUCT_THREADS threads. Rows of x start at multiples of 16 bytes and are padded as ProductArguments says.
template <class Format, unsigned TILES, class Tail>
DEVICE void multiply(const Matrix &matrix, Global<const uint8_t> x, unsigned x_stride, unsigned count, Tail tail) {
    // Units in flight. Many rows are bound by arithmetic and need their registers for sums.
    constexpr unsigned LOADS = Format::Codes::BYTES / QUAD_BYTES;
    constexpr bool OFFSETS = Format::Groups::OFFSETS; // which take registers
    constexpr unsigned DEPTH = (TILES == 8 ? 2 / Format::BLOCKS : TILES == 1 ? 4 : OFFSETS ? 2 : 3) / LOADS;
    // With one alone nothing is in flight while it is used, unless it is copied first; f32 has no registers for that.
    constexpr bool COPY = DEPTH == 1 && LOADS == 1;
    const unsigned first = 8 * TILES * block_y();
    const unsigned group = lane() / 4;   // row of a tile's half; row of x
    const unsigned stretch = lane() % 4; // sixteen bytes of a block of inputs; pair of columns of a sum

    // Bytes from the inputs of the block's first row to those of this lane's rows: 64 rows are far below 4 GiB.
    const Global<const uint8_t> inputs = x.offset(size_t(first) * x_stride * Format::INPUT_BYTES);
    unsigned rows[TILES];
#pragma unroll
    for (unsigned j = 0; j < TILES; j++) {
        const unsigned row = 8 * j + group;
        const unsigned last = count - first - 1;
        rows[j] = (row < last ? row : last) * x_stride * Format::INPUT_BYTES + stretch * sizeof(Quad);
    }

    float sums[2][TILES][4] = {};
    WeightReader<Format> weights(matrix);
    Unit<Format> ring[DEPTH];
#pragma unroll
    for (unsigned d = 0; d < DEPTH; d++) {
        if (warp() + d * PRODUCT_WARPS < matrix.units) {
            ring[d] = weights.next();
        }
    }
    for (unsigned turn = warp(); turn < matrix.units; turn += DEPTH * PRODUCT_WARPS) {
#pragma unroll
        for (unsigned d = 0; d < DEPTH; d++) {
            const unsigned index = turn + d * PRODUCT_WARPS;
            if (index >= matrix.units) {
                break;
            }
            const Unit<Format> unit = ring[d];
            auto load_anew = [&] {
                if (index + DEPTH * PRODUCT_WARPS < matrix.units) {
                    ring[d] = weights.next();
                }
            };
            if (COPY) {
                load_anew();
            }
            const unsigned column = index * UNIT_INPUTS<Format> * Format::INPUT_BYTES;
#pragma unroll
            for (unsigned block = 0; block < Format::BLOCKS; block++) {
                const typename Format::Weights tiles[2] = {Format::decode(unit.codes[0], block),
                                                           Format::decode(unit.codes[1], block)};
#pragma unroll
                for (unsigned j = 0; j < TILES; j++) {
                    const size_t at = rows[j] + column + block * 4 * sizeof(Quad);
                    const auto in = Format::inputs(inputs.template load_as<Quad>(at));
                    float whole[4] = {}; // in each register the sum of that row's inputs
                    if constexpr (OFFSETS) {
                        Format::add(whole, in);
                    }
#pragma unroll
                    for (unsigned i = 0; i < 2; i++) {
                        float partial[4] = {};
                        Format::multiply(partial, tiles[i], in);
#pragma unroll
                        for (unsigned r = 0; r < 4; r++) {
                            sums[i][j][r] = unit.scales[block].join(i, r, partial[r], whole[r], sums[i][j][r]);
                        }
                    }
                }
            }
            if (!COPY) {
                load_anew();
            }
        }
    }

    const unsigned output = PANEL_ROWS * block_x() + lane();
    float scale = 1.0f;
    if (Format::ROW_SCALES) {
        scale = matrix.scales.load_as<float>(PanelScales<Format>(matrix, block_x()).row(lane()));
    }
#pragma unroll
    for (unsigned j = 0; j < TILES; j++) {
        // Two buffers in turn: whoever fills one again has passed the barrier behind which all had read it.
        const Shared<float> buffer = shared_array<float>(j % 2 * SUM_BUFFER * sizeof(float), SUM_BUFFER);
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
#pragma unroll
            for (unsigned r = 0; r < 4; r++) {
                const unsigned row = 2 * stretch + r % 2;
                const unsigned place = i * TILE_ROWS + r / 2 * 8 + group;
                buffer.store(warp() * SUM_WARP + row * SUM_STRIDE + place, sums[i][j][r]);
            }
        }
        barrier();
        const unsigned at = warp() * SUM_STRIDE + lane();
        float sum = buffer.load(at);
#pragma unroll
        for (unsigned w = 1; w < PRODUCT_WARPS; w++) {
            sum = sum + buffer.load(w * SUM_WARP + at);
        }
        const unsigned row = first + 8 * j + warp();
        if (row < count) {
            tail(row, output, Format::ROW_SCALES ? sum * scale : sum);
        }
    }
}
