// Number formats of the tensor cores, and the PTX instructions on them, bit for bit.
//
// A result that is NaN is the one NaN that PTX names for its format: all bits set but the sign.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// IEEE half precision and bfloat16, by their bits.
struct F16 {
    uint16_t bits;
};
struct Bf16 {
    uint16_t bits;
};

namespace emulator {

template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

// Exact. Scaling by 2^112 moves the exponent from one bias to the other and normalizes subnormals. Masks
// instead of branches, because matrix products convert by the hundred.
inline float f32_of(F16 x) {
    uint32_t magnitude = x.bits & 0x7fffu;
    uint32_t is_finite = uint32_t(magnitude >= 0x7c00) - 1;
    uint32_t is_number = uint32_t(magnitude > 0x7c00) - 1;
    uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f);
    bits |= (~is_finite & 0x7f800000) | (~is_number & 0x7fffffff);
    bits |= is_number & uint32_t(x.bits & 0x8000u) << 16;
    return bit_cast<float>(bits);
}

// To nearest, ties to even; infinite from 65520 on. From f64, so that a sum can be rounded once.
inline F16 f16_of(double x) {
    uint64_t bits = bit_cast<uint64_t>(x);
    uint16_t sign = uint16_t(bits >> 48 & 0x8000u);
    bits &= ~(uint64_t(1) << 63);
    double magnitude = bit_cast<double>(bits);
    if (std::isnan(x)) {
        return {0x7fff};
    }
    if (magnitude >= 65520.0) {
        return {uint16_t(sign | 0x7c00u)};
    }
    if (magnitude < 0x1p-14) {
        // The sum's last bit is worth 2^-24, what a subnormal f16 counts in: the addition rounds.
        return {uint16_t(sign | (bit_cast<uint64_t>(magnitude + 0x1p28) & 0x7ffu))};
    }
    bits += (uint64_t(1) << 41) - 1 + (bits >> 42 & 1);
    return {uint16_t(sign | ((bits >> 42) - (uint64_t(1023 - 15) << 10)))};
}

inline Bf16 bf16_of(float x) {
    uint32_t bits = bit_cast<uint32_t>(x);
    if (std::isnan(x)) {
        return {0x7fff};
    }
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

// cvt.rna.tf32.f32: to nearest, ties away from zero.
inline uint32_t tf32_of(float x) {
    if (std::isnan(x)) {
        return 0x7fffffffu;
    }
    uint32_t bits = bit_cast<uint32_t>(x);
    return std::isinf(x) ? bits : (bits + 0x1000u) & ~0x1fffu;
}

// a · b + c rounded once to f16. The product of two f16 is exact in f64; the sum with the third need not be,
// so it is rounded to odd, and then the rounding to the 11 bits of f16 sees on which side of a tie it lies
// (53 bits are more than the two beyond 11 that this takes).
inline F16 fma_f16(F16 a, F16 b, F16 c) {
    double product = double(f32_of(a)) * double(f32_of(b));
    double addend = f32_of(c);
    double sum = product + addend;
    if (std::isfinite(sum)) {
        // Knuth's two-sum: what the sum has lost, exactly.
        double part = sum - product;
        double lost = (product - (sum - part)) + (addend - part);
        uint64_t bits = bit_cast<uint64_t>(sum);
        if (lost != 0.0 && (bits & 1) == 0) {
            bits += (lost > 0.0) == (sum > 0.0) ? 1 : uint64_t(-1);
            sum = bit_cast<double>(bits);
        }
    }
    return f16_of(sum);
}

} // namespace emulator
