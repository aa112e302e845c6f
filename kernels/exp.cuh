// The exponential function in f32, with the same bits on every machine.
//
// eˣ = 2ⁿ · eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2. ln 2 is split in two so that r keeps its bits (Cody
// and Waite), and eʳ is its Taylor polynomial of degree 7. This is backend/cpu/src/exp.rs, operation for
// operation, so the softmax sums of a row have the same bits on GPU, CPU and emulator. Relative error below 1.5e-7.
//
// To round and to make 2ⁿ there is no conversion, which runs at a quarter of the rate of an addition or less: a
// number plus 1.5 · 2²³ is rounded to an integer, ties to even, and that integer stands in its low bits.
//
// Rejected: __expf and ex2.approx, whose bits are the hardware's own; expf, which differs between the GPU's library
// and the host's.
#pragma once

#include "device.cuh"

// Below this the result stays at e^LOW, about the smallest normal number; above the other, at about 2.4e38.
constexpr float EXPONENT_LOW = -87.33654f;
constexpr float EXPONENT_HIGH = 88.376f;

// eˣ, saturating at both ends; NaN gives NaN.
DEVICE float exponential(float x) {
    constexpr float LOG2_E = 1.44269504088896340736f;
    constexpr float LN2_HIGH = 0.6933594f; // times an integer of 8 bits it is exact
    constexpr float LN2_LOW = -2.1219444e-4f;
    constexpr float ROUNDER = 12582912.0f; // 1.5 · 2²³; its low nine bits are zero

    // The number goes first: both take the first operand unless the second beats it, which it never does with NaN.
    x = larger(smaller(x, EXPONENT_HIGH), EXPONENT_LOW);
    const float shifted = x * LOG2_E + ROUNDER;
    const float n = shifted - ROUNDER;
    float r = fma(n, -LN2_HIGH, x);
    r = fma(n, -LN2_LOW, r);
    float p = 1.0f / 5040.0f;
    p = fma(p, r, 1.0f / 720.0f);
    p = fma(p, r, 1.0f / 120.0f);
    p = fma(p, r, 1.0f / 24.0f);
    p = fma(p, r, 1.0f / 6.0f);
    p = fma(p, r, 0.5f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    return p * from_bits((bits_of(shifted) + 127) << 23);
}
