// The order of tokens: by logit, then by lower id; and the two that lead.
#pragma once

#include "gumbel.cuh"

// Place of a token in the ranking; the greater is the better. One word: the logit's bits in an order-preserving form
// above the complement of the id. So a rank names its token, no two are equal, and a set of the best is a threshold.
using Rank = uint64_t;

// Below every candidate, above everything excluded, which has the logit −∞.
constexpr Rank LAST_RANK = uint64_t(0x00800000) << 32;

DEVICE Rank rank_of(float logit, uint32_t token) {
    const uint32_t bits = bits_of(logit + 0.0f); // −0 becomes +0
    const uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 1u << 31;
    return uint64_t(ordered) << 32 | uint32_t(~token);
}

DEVICE uint32_t rank_token(Rank rank) { return ~uint32_t(rank); }

DEVICE float rank_logit(Rank rank) {
    const uint32_t ordered = uint32_t(rank >> 32);
    return from_bits(ordered >> 31 != 0 ? ordered ^ 1u << 31 : ~ordered);
}

// The two best scores with their tokens, whatever order they come in. Of equal scores the lower id is the better. A
// score of −∞ stands for none; −∞ and NaN never lead.
struct Leaders {
    double first;
    double second;
    uint32_t winner;
    uint32_t runner_up;

    // The tokens of absent leaders are 0, below which no id is, so nothing ties with them.
    DEVICE static Leaders none() { return {-INFINITE_F64, -INFINITE_F64, 0, 0}; }

    DEVICE bool is_empty() const { return first == -INFINITE_F64; }
    DEVICE bool is_alone() const { return second == -INFINITE_F64; }

    DEVICE void offer(double score, uint32_t token) {
        if (beats(score, token, first, winner)) {
            second = first;
            runner_up = winner;
            first = score;
            winner = token;
        } else if (beats(score, token, second, runner_up)) {
            second = score;
            runner_up = token;
        }
    }

    // The same token must not be in both.
    DEVICE void merge(const Leaders &other) {
        offer(other.first, other.winner);
        offer(other.second, other.runner_up);
    }

    // Of the lane whose number differs by `mask`.
    DEVICE Leaders shuffled(unsigned mask) const {
        return {shuffle_xor(first, mask), shuffle_xor(second, mask), shuffle_xor(winner, mask),
                shuffle_xor(runner_up, mask)};
    }

    // How far the winner is ahead; `unit` turns a difference of scores into one of logits. Kept finite, for infinity
    // means that there is no second.
    DEVICE float margin(double unit) const {
        const double gap = (first - second) * unit;
        return is_alone() ? INFINITE : float(gap < double(LARGEST) ? gap : double(LARGEST));
    }

  private:
    DEVICE static bool beats(double score, uint32_t token, double other, uint32_t than) {
        return score > other || (score == other && token < than);
    }
};
