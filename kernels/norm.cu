// RMS norm: out = x · (1 / √(mean(x²) + ε)) · weight, rounded after each product as on the CPU.
//
// Bytes: 4 · cols of the stream and of the weight, 4 or 2 · cols of the output. At a batch of one this is latency, not
// bandwidth: one block a row, 16-byte accesses, all loads of a pass independent; the second pass over the row
// comes from L1.
//
// The squares are summed in one order whatever the grid: thread i takes the quads of columns i, i + 256, … in ascending
// order by fused multiply-add from +0; lanes are added in pairs 16, 8, 4, 2, 1 apart; then the eight warps in
// ascending order.
//
// Rejected: several rows a block, which saves nothing while rows are fewer than multiprocessors; several blocks
// a row, which needs a second launch to agree on the sum.
#include "device.cuh"

constexpr unsigned NORM_THREADS = 256;

DEVICE void store_quad(Global<uint8_t> out, size_t i, const float (&x)[4], float) {
    out.store_as<Quad>(4 * i, {bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])});
}
DEVICE void store_quad(Global<uint8_t> out, size_t i, const float (&x)[4], F16) {
    auto pair = [](float a, float b) { return uint32_t(to_f16(a).bits) | uint32_t(to_f16(b).bits) << 16; };
    out.store_as<Pair>(2 * i, {pair(x[0], x[1]), pair(x[2], x[3])});
}
DEVICE void store_one(Global<uint8_t> out, size_t i, float x, float) { out.store_as<float>(4 * i, x); }
DEVICE void store_one(Global<uint8_t> out, size_t i, float x, F16) { out.store_as<F16>(2 * i, to_f16(x)); }

// T: element of the output, float or F16.
template <class T> DEVICE void norm(const NormArguments &arguments) {
    const unsigned cols = arguments.cols;
    const unsigned row = arguments.index.is_null() ? block_x() : arguments.index.load(block_x());
    const auto x = arguments.stream.offset(size_t(row) * arguments.stream_stride);

    // Columns 4q .. 4q + 4, zeros behind the row.
    auto quad = [&](Global<const float> from, unsigned q, float (&values)[4]) {
        const bool whole = 4 * q + 4 <= cols;
        const Quad bits = whole ? from.load_as<Quad>(4 * q) : Quad{};
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            values[i] = whole ? from_bits(bits.word[i]) : 4 * q + i < cols ? from.load(4 * q + i) : 0.0f;
        }
    };

    float squares = 0.0f;
#pragma unroll 4
    for (unsigned q = thread(); 4 * q < cols; q += NORM_THREADS) {
        float values[4];
        quad(x, q, values);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            squares = fma(values[i], values[i], squares);
        }
    }
#pragma unroll
    for (unsigned apart = 16; apart > 0; apart /= 2) {
        squares += shuffle_xor(squares, apart);
    }
    const auto sums = shared_array<float>(0, NORM_THREADS / 32);
    if (lane() == 0) {
        sums.store(warp(), squares);
    }
    barrier();
    float sum = sums.load(0);
#pragma unroll
    for (unsigned i = 1; i < NORM_THREADS / 32; i++) {
        sum += sums.load(i);
    }
    const float scale = 1.0f / square_root(sum / float(cols) + arguments.epsilon);

    const size_t start = size_t(block_x()) * arguments.out_stride;
#pragma unroll 4
    for (unsigned q = thread(); 4 * q < cols; q += NORM_THREADS) {
        float values[4], weight[4];
        quad(x, q, values);
        quad(arguments.weight, q, weight);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            values[i] = values[i] * scale * weight[i];
        }
        if (4 * q + 4 <= cols) {
            store_quad(arguments.out, start + 4 * q, values, T{});
        } else {
#pragma unroll
            for (unsigned i = 0; i < 3; i++) {
                if (4 * q + i < cols) {
                    store_one(arguments.out, start + 4 * q + i, values[i], T{});
                }
            }
        }
    }
}

KERNEL(norm_f32, NormArguments, NORM_THREADS, 4) { norm<float>(arguments); }
KERNEL(norm_f16, NormArguments, NORM_THREADS, 4) { norm<F16>(arguments); }
