#include "emulator/watch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace emulator {

namespace {

// How far an access of the past is from a thread now, as far as order is concerned.
enum Distance : int { ORDERED, THREAD, WARP, BLOCK };

// A thread now; the tick before which nothing matters to the memory; and the one before which nothing matters
// to the thread if there was nothing later.
struct Now {
    const Clock &clock;
    uint32_t thread;
    uint64_t start;
    uint64_t quiet;
};

Distance distance(Record past, const Now &now) {
    if (past.tick < now.start) {
        return ORDERED;
    }
    if (past.tick < now.clock.block) {
        return BLOCK;
    }
    if (past.tick < now.clock.barrier || past.thread == now.thread) {
        return ORDERED;
    }
    if (past.thread / LANES != now.thread / LANES) {
        return WARP;
    }
    return past.tick < now.clock.warp_barrier[now.thread / LANES] ? ORDERED : THREAD;
}

// Keeps the latest access, and the farthest from it of those before.
void remember(Record (&records)[2], Record latest, const Now &now) {
    auto &[first, second] = records;
    bool same_thread = first.thread == latest.thread && first.tick >= now.clock.block;
    if (!same_thread && distance(first, now) >= distance(second, now)) {
        second = first;
    }
    first = latest;
}

// The one of the records, latest first, that is not ordered before now; or none.
template <size_t N> Record conflict(const Record (&records)[N], const Now &now) {
    if (records[0].tick >= now.quiet) {
        for (Record past : records) {
            if (distance(past, now) != ORDERED) {
                return past;
            }
        }
    }
    return {};
}

} // namespace

Watch::Watch(size_t bytes, Owner owner)
    : owner_(owner), bytes_(bytes), entries_(entries_of((bytes >> shift_) + 1)) {}

Record Watch::note(size_t first, size_t bytes, Access access, uint32_t thread, unsigned line, const Clock &clock) {
    if (((first | bytes) & ((size_t(1) << shift_) - 1)) != 0) {
        refine(first, bytes);
    }
    Record latest = {};
    latest.tick = clock.now;
    latest.thread = thread;
    latest.line = std::min(line, (1u << 14) - 1);
    // A block's own memory has seen no other block, so its last barrier orders all before.
    bool own = owner_ == Owner::block;
    const Now now{clock, thread, own ? clock.block : clock.launch, own ? clock.barrier : clock.launch};
    bool loads = access == Access::load || access == Access::stream;
    for (size_t i = first >> shift_; i <= (first + bytes - 1) >> shift_; ++i) {
        Entry &entry = entries_[i];
        Record past = conflict(entry.stores, now);
        if (!past && access != Access::atomic) {
            past = conflict(entry.atomics, now);
        }
        if (!past && !loads) {
            past = conflict(entry.reads, now);
        }
        if (past) {
            return past;
        }
        switch (access) {
        case Access::stream:
            for (Record written : {entry.stores[0], entry.atomics[0]}) {
                if (written.tick >= now.start) {
                    return written;
                }
            }
            [[fallthrough]];
        case Access::load:
            remember(entry.reads, latest, now);
            break;
        case Access::atomic:
            remember(entry.atomics, latest, now);
            break;
        case Access::store:
            entry.stores[0] = latest;
            break;
        }
    }
    return {};
}

bool Watch::touched_since(uint64_t tick, size_t first, size_t bytes) const {
    for (size_t i = first >> shift_; i <= (first + bytes - 1) >> shift_; ++i) {
        if (entries_[i].last() >= tick) {
            return true;
        }
    }
    return false;
}

uint64_t Watch::Entry::last() const { return std::max<uint64_t>({reads[0].tick, atomics[0].tick, stores[0].tick}); }

void Watch::Free::operator()(Entry *entries) const { std::free(entries); }

// Zeroed by the system: pages that nobody touches cost nothing.
Watch::Entries Watch::entries_of(size_t count) {
    void *entries = std::calloc(count, sizeof(Entry));
    if (!entries) {
        throw std::bad_alloc();
    }
    return Entries(static_cast<Entry *>(entries));
}

void Watch::refine(size_t first, size_t bytes) {
    unsigned shift = shift_;
    while (((first | bytes) & ((size_t(1) << shift) - 1)) != 0) {
        --shift;
    }
    size_t count = (bytes_ >> shift) + 1;
    Entries finer = entries_of(count);
    for (size_t i = 0; i < count; ++i) {
        const Entry &coarse = entries_[i >> (shift_ - shift)];
        if (coarse.last() != 0) {
            finer[i] = coarse;
        }
    }
    entries_ = std::move(finer);
    shift_ = shift;
}

} // namespace emulator
