// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC
// 2011).
//
// A pure function from key and counter to four words, so any token's noise can be had by any thread in any order,
// with no state to carry. About a hundred integer instructions for the noise of four tokens.
#pragma once

#include "device.cuh"

// Four uniform words for a counter under a key.
DEVICE Quad philox(Quad counter, uint32_t key_low, uint32_t key_high) {
    constexpr uint32_t MULTIPLIER_0 = 0xd2511f53, MULTIPLIER_1 = 0xcd9e8d57;
    constexpr uint32_t WEYL_0 = 0x9e3779b9, WEYL_1 = 0xbb67ae85;
#pragma unroll
    for (unsigned round = 0; round < 10; round++) {
        const uint32_t a = counter.word[0], b = counter.word[2];
        counter = {{multiply_high(MULTIPLIER_1, b) ^ counter.word[1] ^ key_low, MULTIPLIER_1 * b,
                    multiply_high(MULTIPLIER_0, a) ^ counter.word[3] ^ key_high, MULTIPLIER_0 * a}};
        key_low += WEYL_0;
        key_high += WEYL_1;
    }
    return counter;
}

// The noise words of tokens 4 · block .. 4 · block + 4 at an absolute position, under a seed. The third counter word is
// the index of the choice, of which there is one.
DEVICE Quad token_words(uint64_t seed, uint32_t block, uint32_t position) {
    return philox({{block, position, 0, 0}}, uint32_t(seed), uint32_t(seed >> 32));
}

// That of one token among the words of its block.
DEVICE uint32_t word_of(const Quad &words, uint32_t token) {
    const uint32_t low = token % 2 == 0 ? words.word[0] : words.word[1];
    const uint32_t high = token % 2 == 0 ? words.word[2] : words.word[3];
    return token / 2 % 2 == 0 ? low : high;
}
