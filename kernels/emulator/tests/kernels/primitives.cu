// Every name of device.cuh, so that tests/machine.rs can compare it with a naive form.
#include "device.cuh"

struct PrimitiveArguments {
    Global<const uint32_t> a;
    Global<const uint32_t> b;
    Global<const uint32_t> c;
    Global<uint32_t> out;
    uint32_t count;
    uint32_t unused;
};

#define EACH(name, expression)                                                                                         \
    KERNEL(name, PrimitiveArguments, 256, 1) {                                                                         \
        for (size_t i = block_x() * threads() + thread(); i < arguments.count; i += threads() * 4) {                   \
            const uint32_t a = arguments.a.load(i), b = arguments.b.load(i), c = arguments.c.load(i);                  \
            (void)a, (void)b, (void)c;                                                                                 \
            arguments.out.store(i, expression);                                                                        \
        }                                                                                                              \
    }

EACH(test_f32_of_f16, bits_of(to_f32(F16{uint16_t(a)})))
EACH(test_f32_of_bf16, bits_of(to_f32(Bf16{uint16_t(a)})))
EACH(test_f16_of_f32, to_f16(from_bits(a)).bits)
EACH(test_bf16_of_f32, to_bf16(from_bits(a)).bits)
EACH(test_tf32_of_f32, to_tf32(from_bits(a)))
EACH(test_subtract_f16x2, subtract_f16x2(a, b))
EACH(test_fma_f16x2, fma_f16x2(a, b, c))
EACH(test_permute_bytes, permute_bytes(a, b, c))
EACH(test_select_bits_ea, select_bits<0xea>(a, b, c))
EACH(test_select_bits_1b, select_bits<0x1b>(a, b, c))
EACH(test_leading_zeros, leading_zeros(a))
EACH(test_multiply_high, multiply_high(a, b))
EACH(test_fma, bits_of(fma(from_bits(a), from_bits(b), from_bits(c))))
EACH(test_square_root, bits_of(square_root(from_bits(a))))
EACH(test_absolute, bits_of(absolute(from_bits(a))))
EACH(test_larger, bits_of(larger(from_bits(a), from_bits(b))))
EACH(test_smaller, bits_of(smaller(from_bits(a), from_bits(b))))
EACH(test_round_even, bits_of(round_even(from_bits(a))))

// One warp: what each lane has after each of the exchanges.
KERNEL(test_exchange, PrimitiveArguments, 32, 1) {
    const uint32_t own = arguments.a.load(lane());
    arguments.out.store(lane(), shuffle(own, arguments.b.load(lane())));
    arguments.out.store(32 + lane(), shuffle_xor(own, 5));
    const double wide = shuffle(1.0 + own, lane() + 1);
    arguments.out.store(64 + lane(), uint32_t(wide));
    arguments.out.store(96 + lane(), ballot(own % 3 == 0));
}

// In which order threads and blocks came by.
KERNEL(test_order, PrimitiveArguments, 64, 1) {
    const uint32_t place = atomic_add(arguments.out, 0, 1u);
    arguments.out.store(1 + place, block_x() * threads() + thread());
}

// d += a · b, each lane's registers in a row: 4 of a, 2 of b, 4 of d.
KERNEL(test_mma_f16, PrimitiveArguments, 32, 1) {
    uint32_t a[4], b[2];
    float d[4];
    for (unsigned i = 0; i < 4; i++) {
        a[i] = arguments.a.load(lane() * 4 + i);
        d[i] = from_bits(arguments.c.load(lane() * 4 + i));
    }
    for (unsigned i = 0; i < 2; i++) {
        b[i] = arguments.b.load(lane() * 2 + i);
    }
    mma_f16(d, a, b);
    for (unsigned i = 0; i < 4; i++) {
        arguments.out.store(lane() * 4 + i, bits_of(d[i]));
    }
}
KERNEL(test_mma_tf32, PrimitiveArguments, 32, 1) {
    uint32_t a[4], b[2];
    float d[4];
    for (unsigned i = 0; i < 4; i++) {
        a[i] = arguments.a.load(lane() * 4 + i);
        d[i] = from_bits(arguments.c.load(lane() * 4 + i));
    }
    for (unsigned i = 0; i < 2; i++) {
        b[i] = arguments.b.load(lane() * 2 + i);
    }
    mma_tf32(d, a, b);
    for (unsigned i = 0; i < 4; i++) {
        arguments.out.store(lane() * 4 + i, bits_of(d[i]));
    }
}
