// From the tiles of a row to its answer: statistics, the token, and whether to trust it.
//
// Bytes: a row's tiles, 1 a logit, twice (the second time from L1), and the logits of the few tiles that can hold the
// two best. One block a row; for one row it is latency, a few loads deep.
//
// 1. The largest logit; the second largest of the scores' lower bounds, below which no score can matter.
// 2. Sums: tile sums relative to their own maximum m move to the row's M. With δ = max(m − M, EXPONENT_LOW) and r = e^δ,
//    Z += r·z, S += r·(s + δz), Q += r·(q + δ(2s + δz)), in f64. Thread i takes the tiles i, i + 256, … in ascending order;
//    reduce.cuh has the rest of the order.
// 3. Exact scores of tokens whose upper bound reaches that second lower bound: at most a handful, unless many tie.
//    Rows marked CHOICE_GENERAL have been decided by choose.cu.
// 4. The detector's score against the threshold, so that the host reads nothing but a flag.
//
// Rejected: the last block of the head to finish does this (a counter and a fence in every block, against one launch
// in a graph); all tiles in one pass with running maxima (more exponentials, and what a tile adds is rounded many
// times).
#include "reduce.cuh"
#include "tile.cuh"

constexpr unsigned FINISH_THREADS = 256;

// What pass 1 finds.
struct Extent {
    float max;
    TopTwo lower;
    uint32_t finite;

    DEVICE void merge(const Extent &other) {
        max = larger(max, other.max);
        lower.merge(other.lower);
        finite = finite & other.finite;
    }
    DEVICE Extent shuffled(unsigned mask) const {
        return {shuffle_xor(max, mask), lower.shuffled(mask), shuffle_xor(finite, mask)};
    }
};

// What pass 2 finds: sums relative to the row's maximum.
struct Sums {
    double z;
    double s;
    double q;

    // A tile whose maximum is `shift` above the row's, which is never positive.
    DEVICE void add(const LogitTile &tile, float shift) {
        const double scale = double(exponential(shift));
        const double delta = double(shift), tile_z = double(tile.z), tile_s = double(tile.s);
        z = z + scale * tile_z;
        s = s + scale * (tile_s + delta * tile_z);
        q = q + scale * (double(tile.q) + delta * (2.0 * tile_s + delta * tile_z));
    }
    DEVICE void merge(const Sums &other) {
        z = z + other.z;
        s = s + other.s;
        q = q + other.q;
    }
    DEVICE Sums shuffled(unsigned mask) const {
        return {shuffle_xor(z, mask), shuffle_xor(s, mask), shuffle_xor(q, mask)};
    }
};

DEVICE Answer empty_answer() {
    Answer answer = {};
    answer.token = NONE;
    answer.runner_up = NONE;
    answer.finite = 1;
    return answer;
}

// A row with a NaN or an infinity: always suspect.
DEVICE Answer not_finite_answer() {
    Answer answer = empty_answer();
    answer.log_z = double(NOT_A_NUMBER);
    answer.entropy = NOT_A_NUMBER;
    answer.varentropy = NOT_A_NUMBER;
    answer.top1 = NOT_A_NUMBER;
    answer.margin = NOT_A_NUMBER;
    answer.finite = 0;
    answer.suspect = 1;
    return answer;
}

// rewind_monitor::Sums::finish, with `max` the row's largest logit.
DEVICE void put_statistics(Answer &answer, const Sums &sums, float max) {
    const double mean = sums.s / sums.z;
    const double log_z = logarithm(sums.z);
    const double entropy = log_z - mean;
    const double varentropy = sums.q / sums.z - mean * mean;
    answer.log_z = double(max) + log_z;
    // Rounding must not make either negative.
    answer.entropy = entropy > 0.0 ? float(entropy) : 0.0f;
    answer.varentropy = varentropy > 0.0 ? float(varentropy) : 0.0f;
    answer.top1 = float(1.0 / sums.z);
}

// rewind_monitor::Fused::logit of a finite row, to the bit: products of two f32 are exact in f64, so it does not
// matter which of them a compiler fuses with the addition.
DEVICE float fused_logit(const Answer &answer, const Choice &choice) {
    if (answer.margin == INFINITE) {
        return -INFINITE;
    }
    const float ln_top1 = float(logarithm(double(answer.top1)));
    double sum = double(choice.fused_bias);
    sum = sum + double(choice.fused_entropy) * double(answer.entropy);
    sum = sum + double(choice.fused_varentropy) * double(answer.varentropy);
    sum = sum + double(choice.fused_ln_top1) * double(ln_top1);
    sum = sum + double(choice.fused_margin) * double(answer.margin);
    return float(sum);
}

// rewind_monitor::Gate::is_suspect of a finite row: a score that is no number is suspect too.
DEVICE bool exceeds(const Answer &answer, const Choice &choice) {
    const float score = choice.detector == DETECTOR_ENTROPY  ? answer.entropy
                        : choice.detector == DETECTOR_TOP1   ? 1.0f - answer.top1
                        : choice.detector == DETECTOR_MARGIN ? -answer.margin
                                                             : fused_logit(answer, choice);
    return !(score <= choice.threshold);
}

// The two best scores of a row, of which none outside the tiles whose upper bound reaches `floor` can be one.
DEVICE Leaders find_leaders(const FinishArguments &arguments, Global<const LogitTile> tiles, unsigned tile_count,
                            const Scores &scores, float floor) {
    const auto logits = arguments.logits.offset(size_t(block_x()) * arguments.logits_stride);
    Leaders leaders = Leaders::none();
    for (unsigned base = 32 * warp(); base < tile_count; base += FINISH_THREADS) {
        const unsigned mine = base + lane();
        unsigned open = ballot(mine < tile_count && tiles.load(mine < tile_count ? mine : 0).upper >= floor);
        // A lane a token.
        while (open != 0) {
            const unsigned tile = base + 31 - leading_zeros(open);
            open &= ~(1u << (tile - base));
            const uint32_t token = HEAD_TILE * tile + lane();
            if (token < arguments.vocabulary) {
                const float logit = logits.load(token);
                const uint32_t word = word_of(scores.words(token / 4), token);
                if (scores.upper(logit, word) >= floor) {
                    leaders.offer(scores.exact(logit, word), token);
                }
            }
        }
    }
    return leaders;
}

KERNEL(finish, FinishArguments, FINISH_THREADS, 2) {
    const unsigned row = block_x();
    const Choice choice = arguments.choices.load(row);
    if (choice.position == PADDING) {
        if (thread() == 0) {
            arguments.answers.store(row, empty_answer());
        }
        return;
    }
    const auto extents = shared_array<Extent>(0, FINISH_THREADS / 32);
    const auto sum_room = shared_array<Sums>(sizeof(Extent) * FINISH_THREADS / 32, FINISH_THREADS / 32);
    const auto leader_room =
        shared_array<Leaders>((sizeof(Extent) + sizeof(Sums)) * FINISH_THREADS / 32, FINISH_THREADS / 32);

    const unsigned tile_count = (arguments.vocabulary + HEAD_TILE - 1) / HEAD_TILE;
    const auto tiles = arguments.tiles.offset(size_t(row) * arguments.tile_stride);
    Extent extent = {-INFINITE, TopTwo::none(), 1};
#pragma unroll 4
    for (unsigned i = thread(); i < tile_count; i += FINISH_THREADS) {
        const LogitTile tile = tiles.load(i);
        extent.merge({tile.max, {tile.lower, tile.second_lower}, uint32_t(tile.max == tile.max)});
    }
    extent = merge_block(extent, extents);

    const bool chooses = choice.slot != NONE;
    Answer answer = empty_answer();
    if (extent.finite == 0) {
        answer = not_finite_answer();
    } else {
        if ((choice.flags & CHOICE_SUMS) != 0) {
            Sums sums = {0.0, 0.0, 0.0};
#pragma unroll 4
            for (unsigned i = thread(); i < tile_count; i += FINISH_THREADS) {
                const LogitTile tile = tiles.load(i);
                sums.add(tile, larger(tile.max - extent.max, EXPONENT_LOW));
            }
            put_statistics(answer, merge_block(sums, sum_room), extent.max);
        }
        if (chooses && (choice.flags & CHOICE_GENERAL) != 0) {
            // Only by the thread that writes the answer.
            if (thread() == 0) {
                const Answer chosen = arguments.answers.load(row);
                answer.token = chosen.token;
                answer.runner_up = chosen.runner_up;
                answer.margin = chosen.margin;
            }
        } else if (chooses) {
            const Scores scores(choice, true);
            Leaders leaders = find_leaders(arguments, tiles, tile_count, scores, extent.lower.second);
            leaders = merge_block(leaders, leader_room);
            answer.token = leaders.winner;
            answer.runner_up = leaders.is_alone() ? NONE : leaders.runner_up;
            answer.margin = leaders.margin(scores.sampled ? scores.temperature : 1.0);
        }
    }
    if (thread() == 0) {
        // By one thread: f64 logarithms are dear.
        if (extent.finite != 0 && (choice.flags & CHOICE_GATE) != 0) {
            answer.suspect = exceeds(answer, choice) ? 1 : 0;
        }
        arguments.answers.store(row, answer);
        if (chooses && (choice.flags & CHOICE_QUIET) == 0) {
            arguments.last.store(choice.slot, answer.token == NONE ? 0 : answer.token);
        }
    }
}
