// The tensor cores' matrix products, from the fragments that a warp's lanes hold.
#pragma once

#include <cstdint>

#include "emulator/watch.h"

namespace emulator {

// A lane's registers: d += a · b.
struct Fragments {
    float (*d)[4];
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
};

// d[16×8] += a[16×16] · b[16×8], f16 in pairs.
void multiply_f16(const Fragments *const (&lanes)[LANES]);
// d[16×8] += a[16×8] · b[8×8], tf32: f32 whose low 13 bits are ignored.
void multiply_tf32(const Fragments *const (&lanes)[LANES]);

} // namespace emulator
