// The sampling contract of rewind_engine::sampling, for rows that tiles alone cannot decide.
//
//     raw logits → bias → penalties → mask, bans → top-k → top-p → min-p → Gumbel-max
//
// One block a row; a row without lists is read in place, others are adjusted in a scratch copy first. Filters keep a
// prefix of the ranking, so each is a threshold (select.cuh), and the survivors are never listed. Then the two best
// scores of tokens at or above the threshold win. Excluded tokens have the logit −∞.
//
// Bytes: 4 a logit from L2 for each of: the copy (twice), the two best, three passes of top-k, three of top-p, the
// draw. A block alone gets about a hundredth of the machine, some 10 µs a pass over 131072 logits; rows run side by
// side. That is beside a step of milliseconds and only where such sampling is asked for. Rejected for now: several
// blocks a row, which need a launch for each agreement between them.
#include "select.cuh"

constexpr unsigned CHOOSE_THREADS = 512; // 1024 would have 64 registers each and spill

// An extreme but valid penalty may overflow; differences of logits must stay numbers.
DEVICE float bounded(float logit) { return larger(smaller(logit, LARGEST), -LARGEST); }

DEVICE float penalized(float logit, uint32_t seen, const Choice &choice) {
    logit = logit > 0.0f ? logit / choice.repetition : logit * choice.repetition;
    const uint32_t in_answer = seen & ~IN_PROMPT;
    if (in_answer > 0) {
        logit = logit - choice.frequency * float(in_answer);
        logit = logit - choice.presence;
    }
    return bounded(logit);
}

// Fills `out` with the logits after bias, penalties and exclusion.
DEVICE void adjust(Global<const float> logits, Global<float> out, unsigned count, const Choice &choice,
                   Global<const uint32_t> lists) {
    for (unsigned token = thread(); token < count; token += CHOOSE_THREADS) {
        out.store(token, logits.load(token));
    }
    barrier();
    // Each list names a token once, so its entries can be done in any order.
    for (unsigned i = thread(); i < choice.bias_count; i += CHOOSE_THREADS) {
        const uint32_t token = lists.load(choice.bias_first + 2 * i);
        const float bias = from_bits(lists.load(choice.bias_first + 2 * i + 1));
        if (token < count) {
            out.store(token, bounded(out.load(token) + bias));
        }
    }
    barrier();
    for (unsigned i = thread(); i < choice.seen_count; i += CHOOSE_THREADS) {
        const uint32_t token = lists.load(choice.seen_first + 2 * i);
        const uint32_t seen = lists.load(choice.seen_first + 2 * i + 1);
        if (token < count) {
            out.store(token, penalized(out.load(token), seen, choice));
        }
    }
    barrier();
    for (unsigned i = thread(); i < choice.banned_count; i += CHOOSE_THREADS) {
        const uint32_t token = lists.load(choice.banned_first + i);
        if (token < count) {
            out.store(token, -INFINITE);
        }
    }
    if (choice.mask != NONE) {
        barrier(); // a banned token may be masked, too
        for (unsigned token = thread(); token < count; token += CHOOSE_THREADS) {
            const uint32_t word = lists.load(choice.mask + token / 32);
            if ((word >> token % 32 & 1) == 0) {
                out.store(token, -INFINITE);
            }
        }
    }
    barrier();
}

// The two best by logit.
DEVICE Leaders best_logits(Global<const float> row, unsigned count, Shared<Leaders> room) {
    Leaders leaders = Leaders::none();
    each_quad<4>(row, count, [&](const float(&logits)[4], uint32_t token) {
        // One comparison for four: after a while nothing leads.
        if (double(larger(larger(logits[0], logits[1]), larger(logits[2], logits[3]))) > leaders.second) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                leaders.offer(double(logits[i]), token + i);
            }
        }
    });
    return merge_block(leaders, room);
}

// What the filters leave.
struct Survivors {
    Rank last;    // everything below is out
    bool min_p;   // so is
    double least; // whose exponent is below this
    ByMass mass;

    DEVICE bool has(float logit, uint32_t token) const {
        return rank_of(logit, token) >= last && (!min_p || mass.exponent(logit) >= least);
    }
};

DEVICE Survivors filter(Global<const float> row, unsigned count, const Choice &choice, float largest,
                        const SelectRoom &room) {
    Survivors survivors = {LAST_RANK, choice.min_p > 0.0f, 0.0, ByMass(largest, choice, count)};
    if (choice.top_k > 0 && choice.top_k < count) {
        survivors.last = select(row, count, survivors.last, ByCount{choice.top_k}, room);
    }
    if (choice.top_p < 1.0f) {
        survivors.last = select(row, count, survivors.last, survivors.mass, room);
    }
    if (survivors.min_p) {
        // As a logarithm: no exponential per token, and exact for 1.
        survivors.least = logarithm(double(smaller(choice.min_p, 1.0f)));
    }
    return survivors;
}

// The two best perturbed scores among the survivors. `floor`: two of them have scores that are not below.
DEVICE Leaders draw(Global<const float> row, unsigned count, const Survivors &survivors, const Scores &scores, float floor,
                    Shared<Leaders> room) {
    const float last_logit = rank_logit(survivors.last);
    Leaders leaders = Leaders::none();
    each_quad<2>(row, count, [&](const float(&logits)[4], uint32_t token) {
        const float largest = larger(larger(logits[0], logits[1]), larger(logits[2], logits[3]));
        if (largest < last_logit || scores.ceiling(largest) < floor) {
            return;
        }
        const Quad words = scores.words(token / 4);
        for (unsigned i = 0; i < 4; i++) {
            const float logit = i < 2 ? (i == 0 ? logits[0] : logits[1]) : (i == 2 ? logits[2] : logits[3]);
            const uint32_t word = word_of(words, i);
            const float bound = scores.upper(logit, word);
            if (bound >= floor && double(bound) >= leaders.second && survivors.has(logit, token + i)) {
                leaders.offer(scores.exact(logit, word), token + i);
            }
        }
    });
    return merge_block(leaders, room);
}

KERNEL(choose, ChooseArguments, CHOOSE_THREADS, 1) {
    const Choice choice = arguments.choices.load(block_x());
    if (choice.position == PADDING || choice.slot == NONE || (choice.flags & CHOICE_GENERAL) == 0) {
        return;
    }
    const unsigned count = arguments.vocabulary;
    const auto room = shared_array<Leaders>(0, 32);
    const SelectRoom select_room(32 * sizeof(Leaders));

    auto row = arguments.logits.offset(size_t(block_x()) * arguments.logits_stride);
    if (choice.bias_count + choice.seen_count + choice.banned_count > 0 || choice.mask != NONE) {
        const auto out = arguments.processed.offset(size_t(block_x()) * arguments.logits_stride);
        adjust(row, out, count, choice, arguments.lists);
        row = {out.at};
    }

    Leaders leaders = best_logits(row, count, room);
    double unit = 1.0;
    const Scores scores(choice, true);
    if (scores.sampled && !leaders.is_alone()) {
        const float first = float(leaders.first), second = float(leaders.second);
        const Survivors survivors = filter(row, count, choice, first, select_room);
        // One survivor is the first of the ranking, and the distance to the best that is out counts: as if greedy.
        if (survivors.has(second, leaders.runner_up)) {
            const float one = scores.lower(first, word_of(scores.words(leaders.winner / 4), leaders.winner));
            const float other = scores.lower(second, word_of(scores.words(leaders.runner_up / 4), leaders.runner_up));
            leaders = draw(row, count, survivors, scores, smaller(one, other), room);
            unit = scores.temperature;
        }
    }
    if (thread() == 0) {
        Answer answer = {};
        answer.token = leaders.is_empty() ? NONE : leaders.winner;
        answer.runner_up = leaders.is_alone() ? NONE : leaders.runner_up;
        answer.margin = leaders.margin(unit);
        arguments.answers.store(block_x(), answer);
    }
}
