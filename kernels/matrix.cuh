// Weights as the matrix products want them: packed tiles, and how each format becomes the operands of mma.
//
// A matrix of `rows` outputs by `cols` inputs is cut into panels of 32 rows, two tiles of 16, and each
// panel into units along the inputs. A unit of a tile is what a warp takes with one 16-byte load per lane
// (two for f32); that of a panel, what it takes before it goes on, lies in one piece:
//
//     codes[panel][unit][tile][quad][lane][16 bytes]
//
// Lane 4g + t holds rows g and g + 8 of a tile, as the 16-row operand of mma.m16n8k* wants it. Its inputs are
// not the ones PTX names, but a stretch of neighbours: a sum does not care in which order its inputs come, as
// long as both operands agree, and so a lane's share of the other operand, the activations, is 16 bytes
// of a plain row:
//
//     f16 activations, blocks of 32 inputs: lane t takes inputs 8t .. 8t+8; 4 go into each of two m16n8k16
//     f32 activations, blocks of 16 inputs: lane t takes inputs 4t .. 4t+4; 2 go into each of two m16n8k8
//
// Of these, product `step` gets at register i = 2 · pair + half of its 16-row operand row g + 8 · half and
// inputs {4 · step + 2 · pair, + 1} (f16), input 2 · step + pair (f32). Everything below follows from that.
//
// | format | unit | a lane's 16 bytes | decoding, always exact |
// | --- | --- | --- | --- |
// | int4 | 16×64 | word 2·block + step, nibble i + 4·(input & 1), code + 8 | lop3 into 1024 + code, subtract |
// | int6 | 16×64 | as int4, the low bits of code + 32; its high bits below | lop3 into 1024 + code, twice, subtract |
// | nf4 | 16×64 | word 2·block + step, nibble 2·i + (input & 1) | prmt from tables of f16, which round the numbers |
// | int8 | 16×32 | word 2·step + pair, byte 2·half + (input & 1), code + 128 | prmt into 1024 + code, subtract |
// | fp8 | 16×32 | as int8, the code | prmt, sign and the rest in place, · 2⁸ |
// | f16, bf16 | 16×16 | word 2·step + pair, halfword `half` | to f32, whose bits are a tf32 |
// | f32 | 16×16, two loads | quad `step`, word i | split in three tf32 |
//
// The high bits of six follow the 16 bytes of all lanes of both tiles: 8 bytes a lane, word `block`, bits
// 2 · (4·step + i) + 16 · (input & 1).
//
// Scales: f16 [panel][group][g][tile][half], so that a lane's four are one load, and offsets likewise behind
// those of the group; or, one a row, f32 in the order of the rows. Factors of nested scales are bytes in the
// order of the former, behind the scales of their panel's rows. Whatever pads rows, columns or groups has scale
// and offset 0, and the code of zero.
//
// Rejected: ldmatrix, a round trip through shared memory for weights that are used once; dequantizing to f16, which
// rounds; a plain copy of the matrix for the embedding, which reads one row a token and can afford to pick it out
// (weight_at).
#pragma once

#include "device.cuh"

constexpr unsigned TILE_ROWS = 16;
constexpr unsigned PANEL_ROWS = 2 * TILE_ROWS;
constexpr unsigned QUAD_BYTES = 512; // of a warp's load

constexpr int AND_OR = (0xf0 & 0xcc) | 0xaa; // for select_bits: (a & b) | c

// A block of 32 inputs against f16 activations.
struct HalfBlock {
    static constexpr unsigned INPUTS = 32;
    static constexpr unsigned INPUT_BYTES = 2;

    struct Weights {
        uint32_t step[2][4];
    };
    struct Inputs {
        uint32_t step[2][2];
    };

    DEVICE static Inputs inputs(Quad x) { return {{{x.word[0], x.word[1]}, {x.word[2], x.word[3]}}}; }

    DEVICE static void multiply(float (&sum)[4], const Weights &weights, const Inputs &inputs) {
        mma_f16(sum, weights.step[0], inputs.step[0]);
        mma_f16(sum, weights.step[1], inputs.step[1]);
    }

    // The inputs alone, as if all weights were 1.
    DEVICE static void add(float (&sum)[4], const Inputs &inputs) {
        constexpr uint32_t ONES = 0x3c003c00;
        multiply(sum, {{{ONES, ONES, ONES, ONES}, {ONES, ONES, ONES, ONES}}}, inputs);
    }
};

// A block of 16 inputs against f32 activations, which become three tf32 whose sum they are. The weights are PARTS
// tf32: one holds any 16-bit float, three any f32. Products below 2⁻³⁰ of the whole are left out.
template <unsigned PARTS> struct FloatBlock {
    static constexpr unsigned INPUTS = 16;
    static constexpr unsigned INPUT_BYTES = 4;

    struct Weights {
        uint32_t part[PARTS][2][4];
    };
    struct Inputs {
        uint32_t part[3][2][2];
    };

    // x = parts[0] + parts[1] + parts[2], exactly: its first 11 bits, the next 11, the last 2. Cut off, not rounded:
    // a mask is cheaper than a conversion. NaN stays, and infinity becomes it.
    DEVICE static void split(float x, uint32_t (&parts)[3]) {
        constexpr uint32_t FIRST_BITS = 0xffffe000;
        parts[0] = bits_of(x) & FIRST_BITS;
        const float rest = x - from_bits(parts[0]);
        parts[1] = bits_of(rest) & FIRST_BITS;
        parts[2] = bits_of(rest - from_bits(parts[1]));
    }

    DEVICE static Inputs inputs(Quad x) {
        Inputs inputs;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            uint32_t parts[3];
            split(from_bits(x.word[i]), parts);
#pragma unroll
            for (unsigned p = 0; p < 3; p++) {
                inputs.part[p][i / 2][i % 2] = parts[p];
            }
        }
        return inputs;
    }

    // Small products first: they are lost less often.
    DEVICE static void multiply(float (&sum)[4], const Weights &weights, const Inputs &inputs) {
#pragma unroll
        for (unsigned down = 0; down < 3; down++) {
#pragma unroll
            for (unsigned p = 0; p < PARTS; p++) {
                const unsigned rank = 2 - down;
                if (p <= rank) {
                    mma_tf32(sum, weights.part[p][0], inputs.part[rank - p][0]);
                    mma_tf32(sum, weights.part[p][1], inputs.part[rank - p][1]);
                }
            }
        }
    }
};

// What joins a block's products to a sum: `join` is told the tile, the place in the fragment, its product and, if there
// are OFFSETS, the sum of the inputs. BYTES are those of a group of a panel, LANE_BYTES a lane's.

// Nothing.
struct NoGroups {
    static constexpr unsigned BYTES = 0;
    static constexpr bool OFFSETS = false;

    DEVICE float join(unsigned, unsigned, float product, float, float sum) const { return sum + product; }
};

// The scales of rows g and g + 8 of both tiles.
struct Halves {
    static constexpr unsigned BYTES = PANEL_ROWS * sizeof(F16);
    static constexpr unsigned LANE_BYTES = sizeof(Pair);
    static constexpr bool OFFSETS = false;

    Pair rows;

    DEVICE static Halves load(Global<const uint8_t> group) { return {group.load_as<Pair>(0)}; }
    DEVICE float of(unsigned tile, unsigned r) const {
        const uint32_t two = rows.word[tile];
        return to_f32(F16{uint16_t(r < 2 ? two : two >> 16)});
    }
    DEVICE float join(unsigned tile, unsigned r, float product, float, float sum) const {
        return fma(of(tile, r), product, sum);
    }
};

// Scales, and offsets behind them.
struct AffineHalves {
    static constexpr unsigned BYTES = 2 * Halves::BYTES;
    static constexpr unsigned LANE_BYTES = Halves::LANE_BYTES;
    static constexpr bool OFFSETS = true;

    Halves scales, offsets;

    DEVICE static AffineHalves load(Global<const uint8_t> group) {
        return {Halves::load(group), Halves::load(group.offset(Halves::BYTES))};
    }
    DEVICE float join(unsigned tile, unsigned r, float product, float inputs, float sum) const {
        return fma(offsets.of(tile, r), inputs, fma(scales.of(tile, r), product, sum));
    }
};

// Factors of the rows' scales.
struct Factors {
    static constexpr unsigned BYTES = PANEL_ROWS;
    static constexpr unsigned LANE_BYTES = sizeof(uint32_t);
    static constexpr bool OFFSETS = false;

    uint32_t rows;

    DEVICE static Factors load(Global<const uint8_t> group) { return {group.load_as<uint32_t>(0)}; }
    DEVICE float join(unsigned tile, unsigned r, float product, float, float sum) const {
        return fma(float(rows >> (16 * tile + 8 * (r / 2)) & 255), product, sum);
    }
};

// What a lane has of a tile's unit: LOADS times 16 bytes. BYTES are those of all lanes.
template <unsigned LOADS> struct Quads {
    static constexpr unsigned BYTES = LOADS * QUAD_BYTES;

    Quad quad[LOADS];

    // From a panel's unit on, at this lane's first bytes.
    DEVICE static Quads load(Global<const uint8_t> unit, unsigned tile) {
        Quads codes;
#pragma unroll
        for (unsigned i = 0; i < LOADS; i++) {
            codes.quad[i] = unit.load_stream(tile * BYTES + i * QUAD_BYTES);
        }
        return codes;
    }
};

// 16 bytes and, behind those of both tiles, 8.
struct QuadAndPair {
    static constexpr unsigned BYTES = QUAD_BYTES + QUAD_BYTES / 2;

    Quad low;
    Pair high;

    DEVICE static QuadAndPair load(Global<const uint8_t> unit, unsigned tile) {
        // A lane's pairs are half as far apart as its quads.
        const size_t high = 2 * QUAD_BYTES + tile * (QUAD_BYTES / 2) - lane() * sizeof(Pair);
        return {unit.load_stream(tile * QUAD_BYTES), unit.load_as<Pair>(high)};
    }
};

// The formats. BLOCKS blocks of inputs make a unit; decode() gives the operands of one block. ROW_SCALES: whether a
// scale of the row comes last.
struct Int4Group : HalfBlock {
    static constexpr unsigned BLOCKS = 2;
    static constexpr bool ROW_SCALES = false;
    using Codes = Quads<1>;
    using Groups = Halves;

    DEVICE static Weights decode(const Codes &codes, unsigned block) {
        Weights weights;
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            const uint32_t word = codes.quad[0].word[2 * block + step];
            pair(weights.step[step][0], weights.step[step][1], word);
            pair(weights.step[step][2], weights.step[step][3], word >> 8);
        }
        return weights;
    }

  private:
    // An f16 of exponent 10 counts in ones: 0x6400 | n is 1024 + n, and with n four bits further up 1024 + 16n. Both
    // ways a nibble needs no shift of its own.
    DEVICE static void pair(uint32_t &low, uint32_t &high, uint32_t word) {
        low = subtract_f16x2(select_bits<AND_OR>(word, 0x000f000f, 0x64006400), 0x64086408); // − 1032
        // · 1/16 − 72
        high = fma_f16x2(select_bits<AND_OR>(word, 0x00f000f0, 0x64006400), 0x2c002c00, 0xd480d480);
    }
};

struct Int4Affine : Int4Group {
    using Groups = AffineHalves;
};

struct Int6Group : HalfBlock {
    static constexpr unsigned BLOCKS = 2;
    static constexpr bool ROW_SCALES = false;
    using Codes = QuadAndPair;
    using Groups = Halves;

    DEVICE static Weights decode(const Codes &codes, unsigned block) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            const uint32_t low = codes.low.word[2 * block + i / 4] >> (4 * (i % 4));
            const uint32_t bits = codes.high.word[block];
            // To bits 4 and 5 of either half.
            const uint32_t high = i < 2 ? bits << (4 - 2 * i) : bits >> (2 * i - 4);
            const uint32_t sum = select_bits<AND_OR>(high, 0x00300030, select_bits<AND_OR>(low, 0x000f000f, 0x64006400));
            weights.step[i / 4][i % 4] = subtract_f16x2(sum, 0x64206420); // − 1056
        }
        return weights;
    }
};

struct Nf4Nested : HalfBlock {
    static constexpr unsigned BLOCKS = 2;
    static constexpr bool ROW_SCALES = true;
    using Codes = Quads<1>;
    using Groups = Factors;

    DEVICE static Weights decode(const Codes &codes, unsigned block) {
        Weights weights;
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            const uint32_t word = codes.quad[0].word[2 * block + step];
            numbers(weights.step[step][0], weights.step[step][1], word);
            numbers(weights.step[step][2], weights.step[step][3], word >> 16);
        }
        return weights;
    }

    // The f16 nearest to the numbers of the codes in the low four nibbles, in that order.
    DEVICE static void numbers(uint32_t &first, uint32_t &second, uint32_t codes) {
        // A selector of prmt chooses one of eight bytes: twice for the low three bits of all codes, then between both
        // by the fourth.
        const uint32_t index = codes & 0x7777;
        const uint32_t table = (codes & 0x8888) >> 1 | 0x3210;
        const uint32_t low = permute_bytes(permute_bytes(0x52339200, 0x00d4ea8d, index),
                                           permute_bytes(0x68e02618, 0x00c9800d, index), table);
        const uint32_t high = permute_bytes(permute_bytes(0xb6b8b9bc, 0x00adb1b4, index),
                                            permute_bytes(0x3533312d, 0x3c393837, index), table);
        first = permute_bytes(low, high, 0x5140);
        second = permute_bytes(low, high, 0x7362);
    }
};

struct Int8Row : HalfBlock {
    static constexpr unsigned BLOCKS = 1;
    static constexpr bool ROW_SCALES = true;
    using Codes = Quads<1>;
    using Groups = NoGroups;

    DEVICE static Weights decode(const Codes &codes, unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes.quad[0].word[i];
            // Bytes n become 0x6400 | n, 1024 + n; n is code + 128.
            weights.step[i / 2][i % 2 * 2] = subtract_f16x2(permute_bytes(word, 0x64646464, 0x4140), 0x64806480);
            weights.step[i / 2][i % 2 * 2 + 1] = subtract_f16x2(permute_bytes(word, 0x64646464, 0x4342), 0x64806480);
        }
        return weights;
    }
};

struct Int8Group : Int8Row {
    static constexpr bool ROW_SCALES = false;
    using Groups = Halves;
};

struct Fp8Row : Int8Row {
    // As f16 an E4M3 code is 2⁸ times too small, the difference of the biases; the product is exact, of subnormals too.
    static constexpr uint32_t BIAS = 0x5c00; // 2⁸

    DEVICE static uint32_t placed(uint32_t high_bytes) {
        return (high_bytes & 0x80008000) | (high_bytes & 0x7f007f00) >> 1;
    }

    DEVICE static Weights decode(const Codes &codes, unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes.quad[0].word[i];
            weights.step[i / 2][i % 2 * 2] = scaled(permute_bytes(word, 0, 0x1404));
            weights.step[i / 2][i % 2 * 2 + 1] = scaled(permute_bytes(word, 0, 0x3424));
        }
        return weights;
    }

  private:
    // Plus −0, which keeps the sign of zeros.
    DEVICE static uint32_t scaled(uint32_t high_bytes) {
        return fma_f16x2(placed(high_bytes), BIAS << 16 | BIAS, 0x80008000);
    }
};

struct Bf16Weights : FloatBlock<1> {
    static constexpr unsigned BLOCKS = 1;
    static constexpr bool ROW_SCALES = false;
    using Codes = Quads<1>;
    using Groups = NoGroups;

    DEVICE static Weights decode(const Codes &codes, unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes.quad[0].word[i];
            weights.part[0][i / 2][i % 2 * 2] = word << 16;
            weights.part[0][i / 2][i % 2 * 2 + 1] = word & 0xffff0000;
        }
        return weights;
    }
};

struct F16Weights : Bf16Weights {
    DEVICE static Weights decode(const Codes &codes, unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes.quad[0].word[i];
            weights.part[0][i / 2][i % 2 * 2] = bits_of(to_f32(F16{uint16_t(word)}));
            weights.part[0][i / 2][i % 2 * 2 + 1] = bits_of(to_f32(F16{uint16_t(word >> 16)}));
        }
        return weights;
    }
};

struct F32Weights : FloatBlock<3> {
    static constexpr unsigned BLOCKS = 1;
    static constexpr bool ROW_SCALES = false;
    using Codes = Quads<2>;
    using Groups = NoGroups;

    DEVICE static Weights decode(const Codes &codes, unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            uint32_t parts[3];
            split(from_bits(codes.quad[i / 4].word[i % 4]), parts);
#pragma unroll
            for (unsigned p = 0; p < 3; p++) {
                weights.part[p][i / 4][i % 4] = parts[p];
            }
        }
        return weights;
    }
};

// Inputs that a unit of a format covers.
template <class Format> constexpr unsigned UNIT_INPUTS = Format::BLOCKS * Format::INPUTS;
// Bytes of a panel's unit.
template <class Format> constexpr unsigned UNIT_BYTES = 2 * Format::Codes::BYTES;

// Where the scales of a panel are: those of its rows, then those of its groups.
template <class Format> struct PanelScales {
    static constexpr unsigned ROWS = Format::ROW_SCALES ? PANEL_ROWS * sizeof(float) : 0;

    size_t start;

    DEVICE PanelScales(const Matrix &matrix, size_t panel) {
        unsigned groups = 0;
        if (Format::Groups::BYTES != 0) {
            groups = (matrix.units * UNIT_INPUTS<Format> + matrix.group - 1) / matrix.group;
        }
        start = panel * (ROWS + groups * Format::Groups::BYTES);
    }
    DEVICE size_t row(unsigned row) const { return start + row * sizeof(float); }
    DEVICE size_t group(unsigned group) const { return start + ROWS + group * Format::Groups::BYTES; }
};

// The exact value of one weight, code · scale + offset rounded once; the numbers of NF4 are rounded to f16 before. Not
// for interleaved matrices.
DEVICE float weight_at(const Matrix &matrix, unsigned row, unsigned col) {
    const size_t panel = row / PANEL_ROWS;
    const unsigned tile = row % PANEL_ROWS / TILE_ROWS;
    const unsigned half = row % TILE_ROWS / 8;
    // Byte of a lane's first code. `unit` bytes of a panel cover `inputs`, a tile's loads are `quads`, `stretch`
    // neighbours of a block are a lane's.
    auto start = [&](unsigned inputs, unsigned unit, unsigned quads, unsigned stretch) {
        const unsigned lane = row % 8 * 4 + col / stretch % 4;
        return (panel * matrix.units + col / inputs) * unit + tile * quads * QUAD_BYTES + lane * sizeof(Quad);
    };
    // Of eight bits and less: the input among the lane's eight, the register that it goes to.
    const unsigned input = col % 8;
    const unsigned i = input % 4 / 2 * 2 + half;
    auto byte = [&] {
        return matrix.codes.load(start(32, UNIT_BYTES<Int8Row>, 1, 8) + input / 2 * 4 + half * 2 + input % 2);
    };
    auto int8 = [&] { return float(int(byte()) - 128); };
    auto nibble = [&](unsigned unit, unsigned number) {
        const size_t at = start(64, unit, 1, 8) + col % 64 / 32 * 8 + input / 4 * 4;
        return matrix.codes.load_as<uint32_t>(at) >> (4 * number) & 15;
    };
    auto int4 = [&] { return float(int(nibble(UNIT_BYTES<Int4Group>, i + input % 2 * 4)) - 8); };
    const unsigned place = row % 8 * 4 + tile * 2 + half; // in a group
    const unsigned group = matrix.group == 0 ? 0 : col / matrix.group;
    auto half_at = [&](size_t start) { return to_f32(matrix.scales.load_as<F16>(start + place * sizeof(F16))); };
    auto row_at = [&](size_t start) { return matrix.scales.load_as<float>(start); };
    switch (matrix.format) {
    case FORMAT_F32:
        return matrix.codes.load_as<float>(start(16, UNIT_BYTES<F32Weights>, 2, 4) + col % 4 / 2 * QUAD_BYTES +
                                           col % 2 * 8 + half * 4);
    case FORMAT_F16:
        return to_f32(matrix.codes.load_as<F16>(start(16, UNIT_BYTES<F16Weights>, 1, 4) + col % 4 * 4 + half * 2));
    case FORMAT_BF16:
        return to_f32(matrix.codes.load_as<Bf16>(start(16, UNIT_BYTES<Bf16Weights>, 1, 4) + col % 4 * 4 + half * 2));
    case FORMAT_INT8:
        return int8() * row_at(PanelScales<Int8Row>(matrix, panel).row(row % PANEL_ROWS));
    case FORMAT_FP8: {
        const float code = to_f32(F16{uint16_t(Fp8Row::placed(uint32_t(byte()) << 8))});
        return code * 256.0f * row_at(PanelScales<Fp8Row>(matrix, panel).row(row % PANEL_ROWS));
    }
    case FORMAT_INT8_GROUP:
        return int8() * half_at(PanelScales<Int8Group>(matrix, panel).group(group));
    case FORMAT_INT6_GROUP: {
        constexpr unsigned UNIT = UNIT_BYTES<Int6Group>;
        const unsigned low = nibble(UNIT, i + input % 2 * 4);
        const size_t unit = (panel * matrix.units + col / 64) * UNIT;
        const unsigned pair = row % 8 * 4 + col / 8 % 4;
        const size_t at = unit + 2 * QUAD_BYTES + tile * QUAD_BYTES / 2 + pair * sizeof(Pair) + col % 64 / 32 * 4;
        const unsigned bits = matrix.codes.load_as<uint32_t>(at) >> (8 * (input / 4) + 2 * i + 16 * (input % 2)) & 3;
        const float code = float(int(low | bits << 4) - 32);
        return code * half_at(PanelScales<Int6Group>(matrix, panel).group(group));
    }
    case FORMAT_INT4_AFFINE: {
        const size_t at = PanelScales<Int4Affine>(matrix, panel).group(group);
        return int4() * half_at(at) + half_at(at + Halves::BYTES);
    }
    case FORMAT_NF4: {
        const PanelScales<Nf4Nested> scales(matrix, panel);
        uint32_t first, second;
        Nf4Nested::numbers(first, second, nibble(UNIT_BYTES<Nf4Nested>, 2 * i + input % 2));
        const float factor = float(matrix.scales.load(scales.group(group) + place));
        return to_f32(F16{uint16_t(first)}) * (factor * row_at(scales.row(row % PANEL_ROWS)));
    }
    default:
        return int4() * half_at(PanelScales<Int4Group>(matrix, panel).group(group));
    }
}
