// What 32 neighbouring logits say, while they are at hand: the sums of the softmax and who may be chosen.
//
// Eight lanes hold a tile, each four tokens in a row: four is what one 16-byte access brings and what one call of the
// generator makes noise for, and three exchanges then join the lanes. A lane a token needs five exchanges for every
// sum and four times the calls; a lane a tile leaves most of a warp idle when rows are few.
//
// Sums, relative to the tile's largest logit m: d = max(l − m, EXPONENT_LOW), e = eᵈ, Z = Σ e, S = Σ e·d, Q = Σ e·d².
// A lane adds its tokens in ascending order from +0, Q by fused multiply-add; lanes are added in pairs 1, 2, 4 apart.
// Where eᵈ saturates d must too, or a huge |d| would outweigh it.
//
// Not who leads but bounds of the scores are kept: one largest upper and two largest lower ones. The row's two best
// then are in the few tiles whose upper bound reaches the second largest lower bound of the row, and only their
// scores are made exactly (finish.cu). Greedy scores are logits and are their own bounds. Rejected: exact leaders in
// every tile, which costs some f64 logarithms a tile for tokens that hardly ever win.
#pragma once

#include "exp.cuh"
#include "rank.cuh"

constexpr unsigned TILE_LANES = HEAD_TILE / 4;

// The two largest of some numbers; −∞ for none.
struct TopTwo {
    float first;
    float second;

    DEVICE static TopTwo none() { return {-INFINITE, -INFINITE}; }

    DEVICE void offer(float x) {
        second = larger(second, smaller(first, x));
        first = larger(first, x);
    }

    DEVICE void merge(const TopTwo &other) {
        offer(other.first);
        offer(other.second);
    }

    DEVICE TopTwo shuffled(unsigned mask) const { return {shuffle_xor(first, mask), shuffle_xor(second, mask)}; }
};

// Describes a tile; all lanes of the warp call, four tiles a warp, and the eight of a tile get the same answer.
//
// `logits`: those of tokens `token` .. `token` + 4, of which only the ones below `vocabulary` count.
DEVICE LogitTile describe(const float (&logits)[4], uint32_t token, uint32_t vocabulary, const Scores &scores, bool sums) {
    float max = -INFINITE;
    TopTwo lower = TopTwo::none();
    float upper = -INFINITE;
    bool finite = true;
    const Quad words = scores.words(token / 4);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        if (token + i < vocabulary) {
            finite = finite && absolute(logits[i]) < INFINITE;
            max = larger(max, logits[i]);
            lower.offer(scores.lower(logits[i], words.word[i]));
            upper = larger(upper, scores.upper(logits[i], words.word[i]));
        }
    }
#pragma unroll
    for (unsigned apart = 1; apart < TILE_LANES; apart *= 2) {
        max = larger(max, shuffle_xor(max, apart));
        lower.merge(lower.shuffled(apart));
        upper = larger(upper, shuffle_xor(upper, apart));
    }
    // The votes of this tile's lanes.
    finite = (ballot(finite) >> (lane() & ~(TILE_LANES - 1)) & ((1u << TILE_LANES) - 1)) == (1u << TILE_LANES) - 1;

    float z = 0.0f, s = 0.0f, q = 0.0f;
    // Rows of one warp may differ in what they want: the exchanges below are for all.
    if (sums) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            if (token + i < vocabulary) {
                const float d = larger(logits[i] - max, EXPONENT_LOW);
                const float e = exponential(d);
                const float ed = e * d;
                z = z + e;
                s = s + ed;
                q = fma(ed, d, q);
            }
        }
    }
#pragma unroll
    for (unsigned apart = 1; apart < TILE_LANES; apart *= 2) {
        z = z + shuffle_xor(z, apart);
        s = s + shuffle_xor(s, apart);
        q = q + shuffle_xor(q, apart);
    }
    return {finite ? max : NOT_A_NUMBER, upper, lower.first, lower.second, z, s, q, 0};
}
