// The cut of a ranking: the shortest prefix whose weight reaches a goal, without sorting anything.
//
// Weights are integers, so their sums are exact in any order, may be made by atomics, and still are the same bits
// every time. With weight 1 the prefix is the k best, which is top-k. With probabilities as fixed-point numbers it is
// top-p: weight = round(2ˢ · e^((l − l₁)/T)), s as large as keeps the sum of all below 2⁶³: 45 for a vocabulary of
// 131072. A weight is then off by half of 2⁻⁴⁵ of the best one's at most, a sum of 131072 typically by 3e-12.
//
// A radix search from the top: a histogram of weights over the leading digit of the rank (rank.cuh); the bin where the
// running sum from the best down reaches the goal; the next digit among the ranks of that bin. The upper 32 bits of
// a rank are the logit's, so three digits name the logit the cut goes through, and only ties go on into the ids.
// Six passes at most, however flat the row; three for real ones, of which only the first computes exponentials
// for every token. It runs on one multiprocessor from L2, 4 bytes a logit and pass.
//
// That first pass is some 20 f64 operations a token. For 131072 tokens that makes 25 µs where a multiprocessor does 64
// a clock, as on data-centre GPUs, and 0.7 ms where it does 2, as on others (counted, not measured).
//
// Rejected: sorting pieces of growing size from the top (flat rows take hundreds of them); float sums in
// shared histograms (their order would be chance); a bisection on the threshold with sums in a fixed order (sixteen
// passes, each with all exponentials).
#pragma once

#include "rank.cuh"
#include "reduce.cuh"

// Calls body(logits, token) for every four tokens from `token` on, over all threads of the block. Behind `count`
// logits are −∞. The body may not use collectives.
//
// FLIGHT: quads that a thread has in flight: one multiprocessor alone is latency-bound.
template <unsigned FLIGHT, class Body> DEVICE void each_quad(Global<const float> row, unsigned count, Body body) {
    const unsigned quads = (count + 3) / 4;
    for (unsigned base = thread(); base < quads; base += FLIGHT * threads()) {
        float logits[FLIGHT][4];
#pragma unroll
        for (unsigned f = 0; f < FLIGHT; f++) {
            const unsigned first = 4 * (base + f * threads());
            const bool whole = first + 4 <= count;
            const Quad bits = whole ? row.template load_as<Quad>(first) : Quad{};
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                logits[f][i] = whole ? from_bits(bits.word[i]) : first + i < count ? row.load(first + i) : -INFINITE;
            }
        }
#pragma unroll
        for (unsigned f = 0; f < FLIGHT; f++) {
            const unsigned first = 4 * (base + f * threads());
            if (first < count) {
                body(logits[f], first);
            }
        }
    }
}

// Every token weighs the same, the goal is how many to keep.
struct ByCount {
    uint64_t keep;

    DEVICE uint64_t weight(float) const { return 1; }
    DEVICE uint64_t goal(uint64_t) const { return keep; }
};

// A token weighs its probability at a temperature, the goal is a fraction of the whole.
struct ByMass {
    double best; // largest logit
    double temperature;
    double inverse; // 1 / T
    double fraction;
    double scale;

    DEVICE ByMass(float largest, const Choice &choice, uint32_t vocabulary)
        : best(double(largest)), temperature(double(choice.temperature)), inverse(1.0 / double(choice.temperature)),
          fraction(double(choice.top_p)), scale(double(uint64_t(1) << (31 + leading_zeros(vocabulary)))) {}

    // As the contract says, so that it can be compared exactly.
    DEVICE double exponent(float logit) const { return (double(logit) - best) / temperature; }

    // A product here: a division is half as long as the exponential, and the last bits are below a weight's ones.
    DEVICE uint64_t weight(float logit) const {
        const double share = exponential_f64((double(logit) - best) * inverse);
        // False for NaN, which the row of a broken model may have.
        return share <= 1.0 ? uint64_t(share * scale + 0.5) : 0;
    }

    DEVICE uint64_t goal(uint64_t total) const {
        const double wanted = fraction * double(total);
        const uint64_t floor = uint64_t(wanted);
        const uint64_t goal = double(floor) < wanted ? floor + 1 : floor;
        return goal > 0 ? goal : 1;
    }
};

// Bits of the digits, from the top of a rank.
constexpr unsigned DIGITS = 6;
constexpr unsigned LOGIT_DIGITS = 3;
DEVICE unsigned digit_bits(unsigned digit) { return digit % LOGIT_DIGITS == LOGIT_DIGITS - 1 ? 10 : 11; }
constexpr unsigned BINS = 1 << 11;

// What the block agrees on while it searches.
struct Found {
    uint64_t total;  // weight of everything
    uint64_t before; // weight of the bins above the one found
    uint64_t weight; // of that bin
    uint32_t bin;    // counted from the best
    uint32_t unused;
};

// Shared memory of a search, from some offset on.
struct SelectRoom {
    static constexpr unsigned BYTES = 2 * BINS * sizeof(uint32_t) + 32 * sizeof(uint64_t) + sizeof(Found);

    Shared<uint32_t> low;  // weights of the bins, lower and upper halves
    Shared<uint32_t> high;
    Shared<uint64_t> warps; // weights of the warps' bins
    Shared<Found> found;

    DEVICE explicit SelectRoom(unsigned offset)
        : low(shared_array<uint32_t>(offset, BINS)), high(shared_array<uint32_t>(offset + BINS * 4, BINS)),
          warps(shared_array<uint64_t>(offset + BINS * 8, 32)), found(shared_array<Found>(offset + BINS * 8 + 256, 1)) {}

    // Adds in two halves: shared memory adds 32 bits natively, 64 by a loop. Each carry is seen by the one addition
    // that overflows, so the sum is exact.
    DEVICE void add(uint32_t bin, uint64_t weight) const {
        if (weight == 0) {
            return;
        }
        const uint32_t part = uint32_t(weight);
        const uint32_t before = atomic_add(low, bin, part);
        const uint32_t rest = uint32_t(weight >> 32) + (before + part < before ? 1 : 0);
        if (rest != 0) {
            atomic_add(high, bin, rest);
        }
    }
    DEVICE uint64_t weight(uint32_t bin) const { return uint64_t(high.load(bin)) << 32 | low.load(bin); }
};

// Finds the bin in which the sum from bin 0 on reaches the goal; if it never does, `weight` is 0. `bins` is a
// multiple of the threads. All threads call, behind a barrier; there is one before anybody may write to the room
// again.
template <class Goal> DEVICE Found find_bin(const SelectRoom &room, unsigned bins, Goal goal) {
    const unsigned share = bins / threads();
    const unsigned first = thread() * share;
    uint64_t own = 0;
    for (unsigned i = 0; i < share; i++) {
        own += room.weight(first + i);
    }
    uint64_t through = own; // sum through this lane
#pragma unroll
    for (unsigned apart = 1; apart < 32; apart *= 2) {
        const uint64_t other = shuffle(through, lane() >= apart ? lane() - apart : 0);
        through += lane() >= apart ? other : 0;
    }
    if (lane() == 31) {
        room.warps.store(warp(), through);
    }
    if (thread() == 0) {
        room.found.store(0, {0, 0, 0, 0, 0});
    }
    barrier();
    uint64_t before = through - own, total = 0;
    for (unsigned other = 0; other < threads() / 32; other++) {
        before += other < warp() ? room.warps.load(other) : 0;
        total += room.warps.load(other);
    }
    const uint64_t wanted = goal(total);
    for (unsigned i = 0; i < share; i++) {
        const uint64_t weight = room.weight(first + i);
        if (before < wanted && wanted <= before + weight) {
            room.found.store(0, {total, before, weight, first + i, 0});
        }
        before += weight;
    }
    barrier();
    return room.found.load(0);
}

// The least rank of the shortest prefix of the ranking that reaches the goal, among the ranks from `least` on;
// `least` if all of them do not. All threads of the block call.
template <class Weigh>
DEVICE Rank select(Global<const float> row, unsigned count, Rank least, const Weigh &weigh, const SelectRoom &room) {
    Rank prefix = 0;
    uint64_t wanted = 0;
    unsigned shift = 64;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        const unsigned bits = digit_bits(digit), bins = 1 << bits, above = shift;
        shift -= bits;
        for (unsigned bin = thread(); bin < bins; bin += threads()) {
            room.low.store(bin, 0);
            room.high.store(bin, 0);
        }
        barrier();
        each_quad<4>(row, count, [&](const float(&logits)[4], uint32_t token) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const Rank rank = rank_of(logits[i], token + i);
                if (rank >= least && (digit == 0 || rank >> above == prefix)) {
                    room.add(bins - 1 - (uint32_t(rank >> shift) & (bins - 1)), weigh.weight(logits[i]));
                }
            }
        });
        barrier();
        const Found found = find_bin(
            room, bins, [&](uint64_t total) { return digit == 0 ? weigh.goal(total) : wanted; });
        if (found.weight == 0) {
            return least;
        }
        wanted = (digit == 0 ? weigh.goal(found.total) : wanted) - found.before;
        prefix = prefix << bits | (bins - 1 - found.bin);
        // One logit, one weight: is every token of the bin needed? Always so if there is but one.
        if (digit >= LOGIT_DIGITS - 1) {
            const uint64_t one = weigh.weight(rank_logit(prefix << shift));
            if (found.weight - wanted < one) {
                break;
            }
        }
    }
    // Where digits were left open, ranks below `least` may share the prefix.
    const Rank cut = prefix << shift;
    return cut > least ? cut : least;
}
