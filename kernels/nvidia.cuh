// The names of device.cuh on an NVIDIA GPU, sm_80 and later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>

#define DEVICE __device__ __forceinline__

// Launch bounds make the compiler stay below the registers that let BLOCKS blocks share a multiprocessor.
#define KERNEL(name, Arguments, THREADS, BLOCKS)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(const __grid_constant__ Arguments arguments)

// Sixteen and eight bytes that move as one.
struct alignas(16) Quad {
    uint32_t word[4];
};
struct alignas(8) Pair {
    uint32_t word[2];
};

// IEEE half precision and bfloat16, by their bits.
struct F16 {
    uint16_t bits;
};
struct Bf16 {
    uint16_t bits;
};

// Device memory. Eight bytes, so that it can stand in an argument struct.
template <class T> struct Global {
    T *at;

    DEVICE bool is_null() const { return at == nullptr; }
    DEVICE Global offset(size_t elements) const { return {at + elements}; }
    DEVICE T load(size_t i) const { return at[i]; }
    DEVICE void store(size_t i, T value) const { at[i] = value; }
    // A Pair or Quad that starts at element i and is aligned to its own size.
    template <class V> DEVICE V load_as(size_t i) const { return *reinterpret_cast<const V *>(at + i); }
    template <class V> DEVICE void store_as(size_t i, V value) const { *reinterpret_cast<V *>(at + i) = value; }
    // For weights: read once a pass, so they must not push anything else out of L1.
    DEVICE Quad load_stream(size_t i) const {
        Quad q;
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3])
                     : "l"(at + i));
        return q;
    }
};

// Shared memory of the block.
template <class T> struct Shared {
    T *at;

    DEVICE Shared offset(size_t elements) const { return {at + elements}; }
    DEVICE T load(size_t i) const { return at[i]; }
    DEVICE void store(size_t i, T value) const { at[i] = value; }
    template <class V> DEVICE V load_as(size_t i) const { return *reinterpret_cast<const V *>(at + i); }
    template <class V> DEVICE void store_as(size_t i, V value) const { *reinterpret_cast<V *>(at + i) = value; }
};

extern __shared__ __align__(16) unsigned char rewind_shared_memory[];

template <class T> DEVICE Shared<T> shared_array(unsigned offset, unsigned) {
    return {reinterpret_cast<T *>(rewind_shared_memory + offset)};
}

DEVICE unsigned thread() { return threadIdx.x; }
DEVICE unsigned threads() { return blockDim.x; }
DEVICE unsigned lane() { return threadIdx.x % 32; }
DEVICE unsigned warp() { return threadIdx.x / 32; }
DEVICE unsigned block_x() { return blockIdx.x; }
DEVICE unsigned block_y() { return blockIdx.y; }
DEVICE unsigned block_z() { return blockIdx.z; }

DEVICE void barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
template <class T> DEVICE T shuffle(T value, unsigned from) { return __shfl_sync(0xffffffffu, value, from); }
template <class T> DEVICE T shuffle_xor(T value, unsigned mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// A macro, because CUDA's own headers still declare an old function of this name.
#define ballot(predicate) __ballot_sync(0xffffffffu, predicate)

DEVICE uint32_t atomic_add(Global<uint32_t> memory, size_t i, uint32_t value) { return atomicAdd(memory.at + i, value); }
DEVICE uint32_t atomic_max(Global<uint32_t> memory, size_t i, uint32_t value) { return atomicMax(memory.at + i, value); }
DEVICE uint32_t atomic_add(Shared<uint32_t> memory, size_t i, uint32_t value) { return atomicAdd(memory.at + i, value); }
DEVICE uint32_t atomic_max(Shared<uint32_t> memory, size_t i, uint32_t value) { return atomicMax(memory.at + i, value); }

// fma(float, float, float) is CUDA's own overload, rounded once; a second one here would be ambiguous.
DEVICE float square_root(float x) { return __fsqrt_rn(x); }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE float larger(float a, float b) { return b > a ? b : a; }
DEVICE float smaller(float a, float b) { return b < a ? b : a; }
DEVICE float round_even(float x) { return rintf(x); }
DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
DEVICE float from_bits(uint32_t u) { return __uint_as_float(u); }
DEVICE double logarithm(double x) { return log(x); }
DEVICE double exponential_f64(double x) { return exp(x); }

DEVICE float to_f32(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
DEVICE float to_f32(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
DEVICE F16 to_f16(float x) {
    // The comparisons leave NaN as it is.
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return {__half_as_ushort(__float2half_rn(x))};
}
DEVICE Bf16 to_bf16(float x) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return {bits};
}
DEVICE uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

DEVICE uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
template <int LUT> DEVICE uint32_t select_bits(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(LUT));
    return d;
}
DEVICE uint32_t leading_zeros(uint32_t x) { return __clz(int(x)); }
DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
