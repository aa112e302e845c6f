// The score that a token is chosen by: its logit, or, sampled, l / T + noise. The greatest wins.
//
// Noise is −ln(−ln u), u = (word + ½) · 2⁻³²: Gumbel-max, so the winner is a sample of the softmax at temperature T.
// The score is in f64, and f64 logarithms are dear where a GPU has one f64 unit for 64 of f32. So each score has two
// bounds in f32 that cost a handful of instructions: whoever looks for the two best finds the second largest of all
// lower bounds and needs the exact scores of those few tokens only whose upper bound reaches it. To skip the others
// is exact.
//
// With y the complement of the word and z its leading zeros, 1 − u = (y + ½) · 2⁻³² lies between 2^−(z+1) and 2^−z.
// From −ln u > 1 − u the noise is below (z + 1) ln 2. From −ln(1 − x) ≤ 2x ln 2 for x ≤ ½ it is above z ln 2 − ln(2
// ln 2) where z ≥ 1; where z = 0, it is above that of the word 0, −3.13.
#pragma once

#include <limits>

#include "philox.cuh"

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
constexpr float LARGEST = std::numeric_limits<float>::max();
constexpr double INFINITE_F64 = std::numeric_limits<double>::infinity();

// How the scores of one row are made.
struct Scores {
    bool sampled;
    float inverse; // 1 / T
    double temperature;
    uint64_t seed;
    uint32_t position;

    // `sample`: false for rows whose noise nobody wants. A temperature that is NaN counts as greedy.
    DEVICE Scores(const Choice &choice, bool sample)
        : sampled(sample && choice.temperature > 0.0f), inverse(1.0f / choice.temperature),
          temperature(double(choice.temperature)), seed(choice.seed), position(choice.position) {}

    // Noise words of tokens 4 · block .. 4 · block + 4; zeros if there is no noise.
    DEVICE Quad words(uint32_t block) const { return sampled ? token_words(seed, block, position) : Quad{}; }

    DEVICE double exact(float logit, uint32_t word) const {
        constexpr double SCALE = 1.0 / 4294967296.0;
        if (!sampled) {
            return double(logit);
        }
        const double u = (double(word) + 0.5) * SCALE;
        return double(logit) / temperature - logarithm(-logarithm(u));
    }

    // Not below the exact score; infinite where f32 cannot tell.
    DEVICE float upper(float logit, uint32_t word) const {
        const float bound = shift(logit, float(zeros(word) + 1) * LN_2, 1.0f);
        return !sampled ? logit : bound == bound ? bound : INFINITE;
    }

    // Not above the exact score.
    DEVICE float lower(float logit, uint32_t word) const {
        const uint32_t z = zeros(word);
        const float bound = shift(logit, z > 0 ? float(z) * LN_2 - 0.32664f : -3.1301f, -1.0f);
        return !sampled ? logit : bound == bound ? bound : -INFINITE;
    }

    // Upper bound over all words.
    DEVICE float ceiling(float logit) const { return upper(logit, ~0u); }

  private:
    static constexpr float LN_2 = 0.6931472f; // above ln 2 by 6e-8 of a step

    DEVICE static uint32_t zeros(uint32_t word) { return leading_zeros(~word); }

    // l / T + noise, moved outwards by more than the roundings here, at most 3e-7 · |l / T| + 4e-6, can do.
    DEVICE float shift(float logit, float noise, float side) const {
        const float scaled = logit * inverse;
        return scaled + noise + side * (absolute(scaled) * 1e-6f + 2e-5f);
    }
};
