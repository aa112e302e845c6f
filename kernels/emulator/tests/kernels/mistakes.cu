// Kernels that are right, or make one mistake each if `wrong` says so; tests/machine.rs runs both.
#include "device.cuh"

struct MistakeArguments {
    Global<const uint32_t> in;
    Global<uint32_t> out;
    uint32_t wrong;
    uint32_t distance;
};

// Every thread its own word; or the next one.
KERNEL(test_bounds_store, MistakeArguments, 128, 1) { arguments.out.store(thread() + arguments.wrong, thread()); }

KERNEL(test_bounds_load, MistakeArguments, 128, 1) {
    uint32_t value = arguments.in.load(thread() + (arguments.wrong ? arguments.distance : 0));
    arguments.out.store(thread(), value);
}

KERNEL(test_alignment, MistakeArguments, 128, 1) {
    if (thread() == 0) {
        Quad quad = arguments.in.load_as<Quad>(arguments.wrong);
        arguments.out.store(0, quad.word[3]);
    }
}

KERNEL(test_bounds_shared, MistakeArguments, 128, 1) {
    const auto array = shared_array<uint32_t>(16, threads() + 32);
    const auto own = arguments.wrong ? shared_array<uint32_t>(16, threads()) : array;
    own.offset(16).store(thread() + 16, thread());
}

KERNEL(test_taken_shared, MistakeArguments, 128, 1) {
    shared_array<uint32_t>(0, 128 + arguments.wrong).store(thread(), 1);
}

KERNEL(test_unwritten_shared, MistakeArguments, 128, 1) {
    const auto array = shared_array<uint16_t>(0, 128);
    if (!arguments.wrong || thread() != 77) {
        array.store(thread(), uint16_t(thread()));
    }
    barrier();
    arguments.out.store(thread(), array.load(127 - thread()));
}

// wrong: 1: no barrier; 2: a barrier of the warp only; both are too little for a neighbour in another warp.
KERNEL(test_race_shared, MistakeArguments, 128, 1) {
    const auto array = shared_array<uint32_t>(0, 128);
    array.store(thread(), 0);
    barrier();
    array.store(thread(), thread());
    if (arguments.wrong == 0) {
        barrier();
    } else if (arguments.wrong == 2) {
        warp_barrier();
    }
    arguments.out.store(thread(), array.load((thread() + 32) % 128));
}

// Within a warp. wrong: 1: nothing between; 2: a shuffle, which orders no memory.
KERNEL(test_race_warp, MistakeArguments, 128, 1) {
    const auto array = shared_array<uint32_t>(0, 128);
    array.store(thread(), 0);
    barrier();
    array.store(thread(), thread());
    if (arguments.wrong == 0) {
        warp_barrier();
    } else if (arguments.wrong == 2) {
        shuffle(1.0f, 0);
    }
    arguments.out.store(thread(), array.load(thread() ^ 1));
}

// Reads by all, then a write by one. The barrier between is what `wrong` leaves out.
KERNEL(test_race_overwrite, MistakeArguments, 128, 1) {
    const auto array = shared_array<uint32_t>(0, 1);
    if (thread() == 0) {
        array.store(0, 7);
    }
    barrier();
    uint32_t value = array.load(0);
    if (!arguments.wrong) {
        barrier();
    }
    if (thread() == 64) {
        array.store(0, 8);
    }
    arguments.out.store(thread(), value);
}

// Two threads that write the same value.
KERNEL(test_race_twice, MistakeArguments, 128, 1) {
    if (thread() == 3 || (arguments.wrong && thread() == 100)) {
        arguments.out.store(0, 5);
    }
}

KERNEL(test_race_global, MistakeArguments, 128, 1) {
    arguments.out.store(thread(), thread());
    if (!arguments.wrong) {
        barrier();
    }
    arguments.out.store(128 + thread(), arguments.out.load(127 - thread()));
}

// Blocks of one launch: nothing orders them, a barrier least of all.
KERNEL(test_race_blocks, MistakeArguments, 128, 1) {
    barrier();
    if (thread() == 9) {
        arguments.out.store(arguments.wrong ? 0 : block_x(), 1);
    }
}

// One block reads what another writes; in which order they run must not matter.
KERNEL(test_race_blocks_read, MistakeArguments, 128, 1) {
    if (block_x() == 1 && thread() == 9) {
        arguments.out.store(0, 1);
    }
    if (block_x() == 0 && thread() == 70) {
        arguments.out.store(1, arguments.out.load(arguments.wrong ? 0 : 1));
    }
}

// Atomics go together; an atomic and a plain read do not.
KERNEL(test_race_atomic, MistakeArguments, 128, 1) {
    const auto counter = shared_array<uint32_t>(0, 1);
    if (thread() == 0) {
        counter.store(0, 0);
    }
    barrier();
    atomic_add(counter, 0, 1u);
    atomic_max(counter, 0, 1u);
    if (!arguments.wrong) {
        barrier();
    }
    uint32_t count = counter.load(0);
    atomic_add(arguments.out, 0, count == 128 ? 1u : 0u);
}

// Threads that share a word but not a byte.
KERNEL(test_bytes, MistakeArguments, 128, 1) {
    const auto bytes = shared_array<uint8_t>(0, 128);
    const auto halves = shared_array<F16>(128, 128);
    bytes.store(thread(), uint8_t(thread()));
    halves.store(thread(), F16{uint16_t(thread())});
    barrier();
    if (arguments.wrong && thread() % 2 == 0) {
        bytes.store(thread() + 1, 0);
    }
    uint32_t sum = bytes.load(thread()) + halves.load(127 - thread()).bits;
    arguments.out.store(thread(), sum);
}

KERNEL(test_stale, MistakeArguments, 128, 1) {
    if (thread() == 0) {
        arguments.out.store_as<Quad>(0, {1, 2, 3, 4});
        Quad quad = arguments.wrong ? arguments.out.load_stream(0) : arguments.out.load_as<Quad>(0);
        arguments.out.store(4, quad.word[1]);
    }
}

// A warp that splits: half of it votes.
KERNEL(test_divergence_operation, MistakeArguments, 128, 1) {
    uint32_t value = 0;
    if (arguments.wrong && warp() == 2 && lane() >= 16) {
        value = ballot(true);
    } else {
        value = shuffle(thread(), 0);
    }
    arguments.out.store(thread(), value);
}

// The same operation, but not the same one.
KERNEL(test_divergence_place, MistakeArguments, 128, 1) {
    uint32_t value = 0;
    if (arguments.wrong && lane() >= 16) {
        value = shuffle(thread(), 0);
    } else {
        value = shuffle(thread(), 0);
    }
    arguments.out.store(thread(), value);
}

// Warps at different barriers.
KERNEL(test_divergence_barrier, MistakeArguments, 128, 1) {
    if (arguments.wrong && warp() == 1) {
        barrier();
    } else {
        barrier();
    }
    arguments.out.store(thread(), 0);
}

// A warp that does not come to the barrier.
KERNEL(test_unreached_barrier, MistakeArguments, 128, 1) {
    if (!arguments.wrong || warp() != 3) {
        barrier();
    }
    arguments.out.store(thread(), 0);
}

// A lane that leaves early.
KERNEL(test_unreached_lane, MistakeArguments, 128, 1) {
    if (arguments.wrong && thread() == 37) {
        return;
    }
    arguments.out.store(thread(), shuffle_xor(thread(), 1));
}
