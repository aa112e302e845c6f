// Log-probabilities of the raw distribution: the chosen token first, then the best in order of rank.
//
// ln p = l − ln Z, the ln Z of finish.cu. The rank of the chosen token is a count of those before it; the best are
// those at or above the k-th rank (select.cuh), at most twenty, which put themselves in order by counting. Bytes: 4 a
// logit for four passes, from L2, one block a row, for the few rows whose client wants them.
#include "select.cuh"

constexpr unsigned LOGPROBS_THREADS = 512;
constexpr unsigned MOST_BEST = LOGPROB_ENTRIES - 1;

DEVICE LogprobEntry entry(uint32_t token, float logit, double log_z, uint32_t rank) {
    const double logprob = double(logit) - log_z;
    // Rounding of ln Z must not make a probability exceed 1.
    return {token, float(logprob < 0.0 ? logprob : 0.0), rank};
}

KERNEL(logprobs, LogprobsArguments, LOGPROBS_THREADS, 1) {
    const unsigned row = block_x();
    const Choice choice = arguments.choices.load(row);
    if (choice.position == PADDING || (choice.flags & CHOICE_LOGPROBS) == 0) {
        return;
    }
    const Answer answer = arguments.answers.load(row);
    const auto entries = arguments.entries.offset(size_t(row) * LOGPROB_ENTRIES);
    if (answer.finite == 0) {
        if (thread() == 0) {
            entries.store(0, {NONE, 0.0f, 0});
        }
        return;
    }
    const auto counters = shared_array<uint32_t>(0, 2);
    constexpr unsigned BETTER = 0, LISTED = 1;
    const auto best = shared_array<Rank>(8, MOST_BEST);
    const SelectRoom room(8 + MOST_BEST * sizeof(Rank));

    const unsigned count = arguments.vocabulary;
    const auto logits = arguments.logits.offset(size_t(row) * arguments.logits_stride);
    const uint32_t most = count < MOST_BEST ? count : MOST_BEST;
    const uint32_t wanted = choice.logprobs < most ? choice.logprobs : most;
    const bool chosen = answer.token < count;
    const Rank own = chosen ? rank_of(logits.load(answer.token), answer.token) : ~Rank(0);
    const Rank last = wanted > 0 ? select(logits, count, LAST_RANK, ByCount{wanted}, room) : ~Rank(0);

    if (thread() < 2) {
        counters.store(thread(), 0);
    }
    barrier();
    uint32_t better = 0;
    each_quad<4>(logits, count, [&](const float(&quad)[4], uint32_t token) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const Rank rank = rank_of(quad[i], token + i);
            better += rank > own ? 1 : 0;
            if (rank >= last) {
                best.store(atomic_add(counters, LISTED, 1), rank);
            }
        }
    });
    if (better > 0) {
        atomic_add(counters, BETTER, better);
    }
    barrier();

    const unsigned start = chosen ? 1 : 0;
    if (chosen && thread() == 0) {
        entries.store(0, entry(answer.token, rank_logit(own), answer.log_z, counters.load(BETTER) + 1));
    }
    if (thread() < wanted) {
        const Rank rank = best.load(thread());
        uint32_t place = 0;
        for (unsigned i = 0; i < wanted; i++) {
            place += best.load(i) > rank ? 1 : 0;
        }
        entries.store(start + place, entry(rank_token(rank), rank_logit(rank), answer.log_z, place + 1));
    }
    if (thread() == 0 && start + wanted < LOGPROB_ENTRIES) {
        entries.store(start + wanted, {NONE, 0.0f, 0});
    }
}
