// An interpreter: a program says what each thread touches in each phase, and what stands between phases. So
// tests/machine/races.rs can put thousands of access patterns to the race check.
#include "device.cuh"

struct ProgramArguments {
    Global<const uint32_t> program; // [phase]: what comes behind it; then [block][phase][thread]: what is done
    Global<uint32_t> memory;        // PROGRAM_WORDS, zero
    uint32_t phases;
    uint32_t unused;
};

constexpr unsigned PROGRAM_WORDS = 4;
enum Between : uint32_t { NOTHING, WARP_BARRIER, BARRIER };
enum Deed : uint32_t { NO_DEED, LOAD, STORE, ATOMIC };

template <class Memory> DEVICE void act(Memory memory, uint32_t deed, unsigned word) {
    if (deed == LOAD) {
        memory.load(word);
    } else if (deed == STORE) {
        memory.store(word, thread());
    } else if (deed == ATOMIC) {
        atomic_add(memory, word, 1u);
    }
}

KERNEL(test_program, ProgramArguments, 128, 1) {
    const auto shared = shared_array<uint32_t>(0, PROGRAM_WORDS);
    if (thread() < PROGRAM_WORDS) {
        shared.store(thread(), 0);
    }
    barrier();
    const auto deeds = arguments.program.offset(arguments.phases * (1 + block_x() * threads()));
    for (unsigned phase = 0; phase < arguments.phases; phase++) {
        // The deed, the word, and whose it is.
        const uint32_t step = deeds.load(phase * threads() + thread());
        if ((step >> 8 & 1) != 0) {
            act(shared, step & 3, step >> 4 & 3);
        } else {
            act(arguments.memory, step & 3, step >> 4 & 3);
        }
        const uint32_t between = arguments.program.load(phase);
        if (between == WARP_BARRIER) {
            warp_barrier();
        } else if (between == BARRIER) {
            barrier();
        }
    }
}
