// Merging what the threads of a block found, in an order that depends on their numbers alone.
//
// T has merge(other), which commutes, and shuffled(mask). Lanes merge in pairs 16, 8, 4, 2, 1 apart, then warps in
// ascending order; every thread gets the result.
#pragma once

#include "device.cuh"

// `room`: one T for each warp.
template <class T> DEVICE T merge_block(T value, Shared<T> room) {
#pragma unroll
    for (unsigned apart = 16; apart > 0; apart /= 2) {
        value.merge(value.shuffled(apart));
    }
    barrier(); // of an earlier merge in the same room all have read
    if (lane() == 0) {
        room.store(warp(), value);
    }
    barrier();
    T all = room.load(0);
    for (unsigned other = 1; other < threads() / 32; other++) {
        all.merge(room.load(other));
    }
    return all;
}
