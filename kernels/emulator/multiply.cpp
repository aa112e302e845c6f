// Each sum runs over k in ascending order in f32, one product after the other. Products of two numbers of 11
// bits are exact in f32 (but at the ends of its range), so each step is rounded once, as a fused
// multiply-add would. An element of d depends on its own row of a and column of b alone.
//
// The hardware does the same up to the order and the rounding of the sums, which NVIDIA does not document:
// this is the part of a kernel whose bits the emulator cannot tell.

#include "emulator/multiply.h"

#include "emulator/floats.h"

namespace emulator {

namespace {

constexpr uint32_t ROWS = 16;
constexpr uint32_t COLUMNS = 8;

F16 low(uint32_t pair) { return {uint16_t(pair)}; }
F16 high(uint32_t pair) { return {uint16_t(pair >> 16)}; }
float tf32(uint32_t bits) { return bit_cast<float>(bits & ~0x1fffu); }

// A row of b or d: what the host's vector registers hold, so that a step of a sum takes few instructions.
typedef float Row __attribute__((vector_size(COLUMNS * sizeof(float))));

// d in PTX's accumulator layout: lane 4g + t holds (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <uint32_t K>
void multiply(const Fragments *const (&lanes)[LANES], const float (&a)[ROWS][K], const Row (&b)[K]) {
    Row d[ROWS];
    for (uint32_t lane = 0; lane < LANES; ++lane) {
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t i = 0; i < 4; ++i) {
            d[g + i / 2 * 8][2 * t + i % 2] = (*lanes[lane]->d)[i];
        }
    }
    for (uint32_t row = 0; row < ROWS; ++row) {
        Row sum = d[row];
        for (uint32_t k = 0; k < K; ++k) {
            sum += a[row][k] * b[k];
        }
        d[row] = sum;
    }
    for (uint32_t lane = 0; lane < LANES; ++lane) {
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t i = 0; i < 4; ++i) {
            (*lanes[lane]->d)[i] = d[g + i / 2 * 8][2 * t + i % 2];
        }
    }
}

} // namespace

// a: register r holds row g + 8 (r odd), columns 2t and 2t + 1, from 8 on for r ≥ 2. b: rows 2t and 2t + 1 of
// column g, from 8 on for r = 1.
void multiply_f16(const Fragments *const (&lanes)[LANES]) {
    constexpr uint32_t K = 16;
    // First where they belong, then all to f32: compilers do the second several at a time.
    F16 a[ROWS][K], b[K][COLUMNS];
    for (uint32_t lane = 0; lane < LANES; ++lane) {
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t r = 0; r < 4; ++r) {
            uint32_t pair = (*lanes[lane]->a)[r];
            F16 *at = &a[g + r % 2 * 8][2 * t + r / 2 * 8];
            at[0] = low(pair);
            at[1] = high(pair);
        }
        for (uint32_t r = 0; r < 2; ++r) {
            uint32_t pair = (*lanes[lane]->b)[r];
            b[2 * t + r * 8][g] = low(pair);
            b[2 * t + r * 8 + 1][g] = high(pair);
        }
    }
    float wide_a[ROWS][K];
    Row wide_b[K];
    for (uint32_t row = 0; row < ROWS; ++row) {
        for (uint32_t k = 0; k < K; ++k) {
            wide_a[row][k] = f32_of(a[row][k]);
        }
    }
    for (uint32_t k = 0; k < K; ++k) {
        for (uint32_t column = 0; column < COLUMNS; ++column) {
            wide_b[k][column] = f32_of(b[k][column]);
        }
    }
    multiply(lanes, wide_a, wide_b);
}

// a: register r holds row g + 8 (r odd), column t, or t + 4 for r ≥ 2. b: row t, or t + 4, of column g.
void multiply_tf32(const Fragments *const (&lanes)[LANES]) {
    float a[ROWS][8];
    Row b[8];
    for (uint32_t lane = 0; lane < LANES; ++lane) {
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t r = 0; r < 4; ++r) {
            a[g + r % 2 * 8][t + r / 2 * 4] = tf32((*lanes[lane]->a)[r]);
        }
        for (uint32_t r = 0; r < 2; ++r) {
            b[t + r * 4][g] = tf32((*lanes[lane]->b)[r]);
        }
    }
    multiply(lanes, a, b);
}

} // namespace emulator
