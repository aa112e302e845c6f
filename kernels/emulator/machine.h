// The names of device.cuh on the emulator.
//
// A kernel that is compiled against this header runs as one fiber a thread (block.h). Every access goes
// through Global and Shared below and is checked on the way: it must stay inside of what it was meant for, be
// aligned, read only what was written, and race with no other. Every function that checks takes the place in
// the source it is called from, without the kernel knowing.
#pragma once

#ifndef REWIND_EMULATOR
#error "machine.h stands in for a GPU; define REWIND_EMULATOR to say that this is meant"
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "emulator/block.h"
#include "emulator/floats.h"

#define DEVICE inline __attribute__((always_inline))

// A function of the arguments, and a static object that tells the emulator about it. Two steps, so that a
// name that is itself a macro is expanded as it is on a GPU.
#define KERNEL(name, Arguments, THREADS, BLOCKS) REWIND_KERNEL(name, Arguments, THREADS)
#define REWIND_KERNEL(name, Arguments, THREADS)                                                                        \
    static void name(const Arguments &arguments);                                                                      \
    static const ::emulator::Kernel rewind_kernel_##name(                                                      \
        #name, sizeof(Arguments), THREADS,                                                                             \
        [](const void *arguments) { name(*static_cast<const Arguments *>(arguments)); });                              \
    static void name(const Arguments &arguments)

struct alignas(16) Quad {
    uint32_t word[4];
};
struct alignas(8) Pair {
    uint32_t word[2];
};

// Device memory: an address of the host's, into an allocation of the emulator's.
template <class T> struct Global {
    using Value = std::remove_const_t<T>;
    using Site = emulator::Site;
    using Access = emulator::Access;

    T *at;

    bool is_null() const { return at == nullptr; }
    Global offset(size_t elements) const { return {at + elements}; }
    Value load(size_t i, Site site = Site::here()) const { return read<Value>(i, Access::load, site); }
    void store(size_t i, Value value, Site site = Site::here()) const { write(i, value, site); }
    template <class V> V load_as(size_t i, Site site = Site::here()) const { return read<V>(i, Access::load, site); }
    template <class V> void store_as(size_t i, V value, Site site = Site::here()) const { write(i, value, site); }
    Quad load_stream(size_t i, Site site = Site::here()) const { return read<Quad>(i, Access::stream, site); }

  private:
    template <class V> V read(size_t i, Access access, Site site) const {
        static_assert(std::is_trivially_copyable_v<V>);
        emulator::running->touch_global(at, at + i, sizeof(V), alignof(V), access, site);
        V value;
        std::memcpy(&value, at + i, sizeof(V));
        return value;
    }
    template <class V> void write(size_t i, const V &value, Site site) const {
        static_assert(std::is_trivially_copyable_v<V> && !std::is_const_v<T>);
        emulator::running->touch_global(at, at + i, sizeof(V), alignof(V), Access::store, site);
        std::memcpy(at + i, &value, sizeof(V));
    }
};
static_assert(sizeof(Global<float>) == 8, "Global stands in argument structs");

// An array in the block's shared memory, or what is left of it behind an offset. All in bytes.
template <class T> struct Shared {
    using Value = std::remove_const_t<T>;
    using Site = emulator::Site;
    using Access = emulator::Access;

    size_t at;
    size_t begin;
    size_t end;

    Shared offset(size_t elements) const { return {at + elements * sizeof(T), begin, end}; }
    Value load(size_t i, Site site = Site::here()) const { return read<Value>(i, site); }
    void store(size_t i, Value value, Site site = Site::here()) const { write(i, value, site); }
    template <class V> V load_as(size_t i, Site site = Site::here()) const { return read<V>(i, site); }
    template <class V> void store_as(size_t i, V value, Site site = Site::here()) const { write(i, value, site); }

  private:
    template <class V> V read(size_t i, Site site) const {
        static_assert(std::is_trivially_copyable_v<V>);
        V value;
        std::memcpy(&value,
                    emulator::running->touch_shared(at + i * sizeof(T), begin, end, sizeof(V), alignof(V),
                                                            Access::load, site),
                    sizeof(V));
        return value;
    }
    template <class V> void write(size_t i, const V &value, Site site) const {
        static_assert(std::is_trivially_copyable_v<V> && !std::is_const_v<T>);
        std::memcpy(emulator::running->touch_shared(at + i * sizeof(T), begin, end, sizeof(V), alignof(V),
                                                            Access::store, site),
                    &value, sizeof(V));
    }
};

template <class T>
Shared<T> shared_array(size_t offset, size_t count, emulator::Site site = emulator::Site::here()) {
    emulator::running->take_shared(offset, count * sizeof(T), alignof(T), site);
    return {offset, offset, offset + count * sizeof(T)};
}

inline unsigned thread() { return emulator::running->thread(); }
inline unsigned threads() { return emulator::running->threads(); }
inline unsigned lane() { return thread() % emulator::LANES; }
inline unsigned warp() { return thread() / emulator::LANES; }
inline unsigned block_x() { return emulator::running->index(0); }
inline unsigned block_y() { return emulator::running->index(1); }
inline unsigned block_z() { return emulator::running->index(2); }

inline void barrier(emulator::Site site = emulator::Site::here()) {
    emulator::running->barrier(site);
}
inline void warp_barrier(emulator::Site site = emulator::Site::here()) {
    emulator::running->warp_barrier(site);
}

namespace emulator {

// Through 8 bytes, whatever it is.
template <class T> T shuffle_value(T value, unsigned from, Meeting meeting, Site site) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = running->shuffle(bits, from, meeting, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// Old value; `change` gives the new one.
template <class Change> uint32_t change_atomically(Global<uint32_t> memory, size_t i, Change change, Site site) {
    running->touch_global(memory.at, memory.at + i, 4, 4, Access::atomic, site);
    uint32_t old = memory.at[i];
    memory.at[i] = change(old);
    return old;
}
template <class Change> uint32_t change_atomically(Shared<uint32_t> memory, size_t i, Change change, Site site) {
    unsigned char *at = running->touch_shared(memory.at + 4 * i, memory.begin, memory.end, 4, 4, Access::atomic, site);
    uint32_t old;
    std::memcpy(&old, at, 4);
    uint32_t changed = change(old);
    std::memcpy(at, &changed, 4);
    return old;
}

} // namespace emulator

template <class T>
T shuffle(T value, unsigned from, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle_value(value, from, emulator::Meeting::shuffle, site);
}
template <class T>
T shuffle_xor(T value, unsigned mask, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle_value(value, mask, emulator::Meeting::shuffle_xor, site);
}
inline unsigned ballot(bool predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::running->ballot(predicate, site);
}

template <template <class> class Memory>
uint32_t atomic_add(Memory<uint32_t> memory, size_t i, uint32_t value,
                    emulator::Site site = emulator::Site::here()) {
    return emulator::change_atomically(memory, i, [=](uint32_t old) { return old + value; }, site);
}
template <template <class> class Memory>
uint32_t atomic_max(Memory<uint32_t> memory, size_t i, uint32_t value,
                    emulator::Site site = emulator::Site::here()) {
    return emulator::change_atomically(memory, i, [=](uint32_t old) { return old > value ? old : value; }, site);
}

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float square_root(float x) { return std::sqrt(x); }
inline float absolute(float x) { return std::fabs(x); }
inline float larger(float a, float b) { return b > a ? b : a; }
inline float smaller(float a, float b) { return b < a ? b : a; }
inline float round_even(float x) { return std::nearbyint(x); }
inline uint32_t bits_of(float x) { return emulator::bit_cast<uint32_t>(x); }
inline float from_bits(uint32_t u) { return emulator::bit_cast<float>(u); }
inline double logarithm(double x) { return std::log(x); }
inline double exponential_f64(double x) { return std::exp(x); }

inline float to_f32(F16 x) { return emulator::f32_of(x); }
inline float to_f32(Bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
inline F16 to_f16(float x) {
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return emulator::f16_of(x);
}
inline Bf16 to_bf16(float x) { return emulator::bf16_of(x); }
inline uint32_t to_tf32(float x) { return emulator::tf32_of(x); }

inline uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
    // The difference of two f16 is exact in f64.
    auto subtract = [](uint32_t a, uint32_t b) {
        return emulator::f16_of(double(to_f32(F16{uint16_t(a)})) - double(to_f32(F16{uint16_t(b)}))).bits;
    };
    return uint32_t(subtract(a, b)) | uint32_t(subtract(a >> 16, b >> 16)) << 16;
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    auto multiply_add = [](uint32_t a, uint32_t b, uint32_t c) {
        return emulator::fma_f16(F16{uint16_t(a)}, F16{uint16_t(b)}, F16{uint16_t(c)}).bits;
    };
    return uint32_t(multiply_add(a, b, c)) | uint32_t(multiply_add(a >> 16, b >> 16, c >> 16)) << 16;
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t permuted = 0;
    for (unsigned i = 0; i < 4; ++i) {
        unsigned nibble = selector >> 4 * i & 0xf;
        unsigned byte = unsigned(bytes >> 8 * (nibble & 7)) & 0xff;
        // The nibble's high bit asks for the byte's sign, eight times.
        permuted |= ((nibble & 8) == 0 ? byte : (byte & 0x80) != 0 ? 0xffu : 0u) << 8 * i;
    }
    return permuted;
}
template <int LUT> uint32_t select_bits(uint32_t a, uint32_t b, uint32_t c) {
    // Bit 4a + 2b + c of the table is the answer for these three bits.
    uint32_t selected = 0;
    for (unsigned row = 0; row < 8; ++row) {
        if ((LUT >> row & 1) != 0) {
            selected |= ((row & 4) != 0 ? a : ~a) & ((row & 2) != 0 ? b : ~b) & ((row & 1) != 0 ? c : ~c);
        }
    }
    return selected;
}
inline uint32_t leading_zeros(uint32_t x) { return x == 0 ? 32 : uint32_t(__builtin_clz(x)); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    emulator::Site site = emulator::Site::here()) {
    emulator::running->multiply(d, a, b, emulator::Meeting::mma_f16, site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     emulator::Site site = emulator::Site::here()) {
    emulator::running->multiply(d, a, b, emulator::Meeting::mma_tf32, site);
}
