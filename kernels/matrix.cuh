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
// | int8 | 16×32 | word 2·step + pair, byte 2·half + (input & 1), code + 128 | prmt into 1024 + code, subtract |
// | fp8 | 16×32 | as int8, the code | prmt, sign and the rest in place, · 2⁸ |
// | f16, bf16 | 16×16 | word 2·step + pair, halfword `half` | to f32, whose bits are a tf32 |
// | f32 | 16×16, two loads | quad `step`, word i | split in three tf32 |
//
// Scales: f16 [panel][group][g][tile][half], so that a lane's four are one load; or, one a row, f32 in the order of
// the rows. Whatever pads rows, columns or groups is code 0 and scale 0.
//
// Rejected: ldmatrix, a round trip through shared memory for weights that are used once; dequantizing to f16, which
// rounds; a plain copy of the matrix for the embedding, which reads one row a token and can afford to pick it out
// (weight_at).
#pragma once

#include "device.cuh"

constexpr unsigned TILE_ROWS = 16;
constexpr unsigned PANEL_ROWS = 2 * TILE_ROWS;
constexpr unsigned QUAD_BYTES = 512; // of a warp's load

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

// Where the scales of a format are: nowhere, one a row, one a group of a row's weights.
enum class Scales { NONE, ROW, GROUP };

// The formats. BLOCKS blocks of inputs make a unit, which a lane loads as QUADS times 16 bytes; decode() gives
// the operands of one block.
struct Int4Group : HalfBlock {
    static constexpr unsigned BLOCKS = 2;
    static constexpr unsigned QUADS = 1;
    static constexpr Scales SCALES = Scales::GROUP;

    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned block) {
        Weights weights;
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            const uint32_t word = codes[0].word[2 * block + step];
            pair(weights.step[step][0], weights.step[step][1], word);
            pair(weights.step[step][2], weights.step[step][3], word >> 8);
        }
        return weights;
    }

  private:
    // An f16 of exponent 10 counts in ones: 0x6400 | n is 1024 + n, and with n four bits further up 1024 + 16n. Both
    // ways a nibble needs no shift of its own.
    DEVICE static void pair(uint32_t &low, uint32_t &high, uint32_t word) {
        constexpr int AND_OR = (0xf0 & 0xcc) | 0xaa;
        low = subtract_f16x2(select_bits<AND_OR>(word, 0x000f000f, 0x64006400), 0x64086408); // − 1032
        // · 1/16 − 72
        high = fma_f16x2(select_bits<AND_OR>(word, 0x00f000f0, 0x64006400), 0x2c002c00, 0xd480d480);
    }
};

struct Int8Row : HalfBlock {
    static constexpr unsigned BLOCKS = 1;
    static constexpr unsigned QUADS = 1;
    static constexpr Scales SCALES = Scales::ROW;

    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes[0].word[i];
            // Bytes n become 0x6400 | n, 1024 + n; n is code + 128.
            weights.step[i / 2][i % 2 * 2] = subtract_f16x2(permute_bytes(word, 0x64646464, 0x4140), 0x64806480);
            weights.step[i / 2][i % 2 * 2 + 1] = subtract_f16x2(permute_bytes(word, 0x64646464, 0x4342), 0x64806480);
        }
        return weights;
    }
};

struct Int8Group : Int8Row {
    static constexpr Scales SCALES = Scales::GROUP;
};

struct Fp8Row : Int8Row {
    // As f16 an E4M3 code is 2⁸ times too small, the difference of the biases; the product is exact, of subnormals too.
    static constexpr uint32_t BIAS = 0x5c00; // 2⁸

    DEVICE static uint32_t placed(uint32_t high_bytes) {
        return (high_bytes & 0x80008000) | (high_bytes & 0x7f007f00) >> 1;
    }

    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes[0].word[i];
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
    static constexpr unsigned QUADS = 1;
    static constexpr Scales SCALES = Scales::NONE;

    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes[0].word[i];
            weights.part[0][i / 2][i % 2 * 2] = word << 16;
            weights.part[0][i / 2][i % 2 * 2 + 1] = word & 0xffff0000;
        }
        return weights;
    }
};

struct F16Weights : Bf16Weights {
    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint32_t word = codes[0].word[i];
            weights.part[0][i / 2][i % 2 * 2] = bits_of(to_f32(F16{uint16_t(word)}));
            weights.part[0][i / 2][i % 2 * 2 + 1] = bits_of(to_f32(F16{uint16_t(word >> 16)}));
        }
        return weights;
    }
};

struct F32Weights : FloatBlock<3> {
    static constexpr unsigned BLOCKS = 1;
    static constexpr unsigned QUADS = 2;
    static constexpr Scales SCALES = Scales::NONE;

    DEVICE static Weights decode(const Quad (&codes)[QUADS], unsigned) {
        Weights weights;
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            uint32_t parts[3];
            split(from_bits(codes[i / 4].word[i % 4]), parts);
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
template <class Format> constexpr unsigned UNIT_BYTES = 2 * Format::QUADS * QUAD_BYTES;
// Bytes of the scales of a group of a panel.
constexpr unsigned GROUP_BYTES = PANEL_ROWS * sizeof(F16);

// Groups of a row, of a matrix that has them.
template <class Format> DEVICE unsigned groups(const Matrix &matrix) {
    return (matrix.units * UNIT_INPUTS<Format> + matrix.group - 1) / matrix.group;
}

// The exact value of one weight, code · scale rounded once. Not for interleaved matrices.
DEVICE float weight_at(const Matrix &matrix, unsigned row, unsigned col) {
    const size_t panel = row / PANEL_ROWS;
    const unsigned tile = row % PANEL_ROWS / TILE_ROWS;
    const unsigned half = row % TILE_ROWS / 8;
    // Byte of a lane's first code. A unit covers `inputs`, a tile's unit is `quads` loads, `stretch` neighbours of a
    // block are a lane's.
    auto start = [&](unsigned inputs, unsigned quads, unsigned stretch) {
        const unsigned lane = row % 8 * 4 + col / stretch % 4;
        return ((panel * matrix.units + col / inputs) * 2 + tile) * quads * QUAD_BYTES + lane * sizeof(Quad);
    };
    auto group_scale = [&](unsigned count) {
        const unsigned place = row % 8 * 4 + tile * 2 + half;
        return to_f32(matrix.scales.load_as<F16>((panel * count + col / matrix.group) * GROUP_BYTES + place * 2));
    };
    auto byte = [&] {
        const unsigned input = col % 8;
        return matrix.codes.load(start(32, 1, 8) + input / 2 * 4 + half * 2 + input % 2);
    };
    auto int8 = [&] { return float(int(byte()) - 128); };
    switch (matrix.format) {
    case FORMAT_F32:
        return matrix.codes.load_as<float>(start(16, 2, 4) + col % 4 / 2 * QUAD_BYTES + col % 2 * 8 + half * 4);
    case FORMAT_F16:
        return to_f32(matrix.codes.load_as<F16>(start(16, 1, 4) + col % 4 * 4 + half * 2));
    case FORMAT_BF16:
        return to_f32(matrix.codes.load_as<Bf16>(start(16, 1, 4) + col % 4 * 4 + half * 2));
    case FORMAT_INT8:
        return int8() * matrix.scales.load_as<float>(row * sizeof(float));
    case FORMAT_FP8: {
        const float code = to_f32(F16{uint16_t(Fp8Row::placed(uint32_t(byte()) << 8))});
        return code * 256.0f * matrix.scales.load_as<float>(row * sizeof(float));
    }
    case FORMAT_INT8_GROUP:
        return int8() * group_scale(groups<Int8Group>(matrix));
    default: {
        const unsigned input = col % 8;
        const uint32_t word = matrix.codes.load_as<uint32_t>(start(64, 1, 8) + col % 64 / 32 * 8 + input / 4 * 4);
        const unsigned nibble = input % 4 / 2 * 2 + half + input % 2 * 4;
        return float(int(word >> (4 * nibble) & 15) - 8) * group_scale(groups<Int4Group>(matrix));
    }
    }
}
