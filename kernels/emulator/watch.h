// Races: which accesses to a piece of memory does nothing order?
//
// The fibers of a block run one after another, so a race never shows in what they read; it is found by
// looking at time instead. A clock ticks at every barrier, and each granule of memory remembers when, and by
// whom, it was read and written. Two accesses are ordered if
//   * the same thread made both,
//   * a barrier() of their block lies between,
//   * a warp_barrier() of their warp lies between, or
//   * a launch ended between.
// Shuffles, votes and matrix products bring lanes together but order no memory: CUDA promises nothing there.
// What is not ordered must not conflict: any number of reads, or any number of atomics, or one plain write.
//
// Two records for the reads are enough, however many threads read, and two for the atomics. The first is the
// latest access. The second is, among those before, the one farthest from it: in another block, else in another
// warp, else in another thread, as long as it can still conflict with anything. If any access conflicts with a
// later one, then one of these two does: another block has ended for good, so it conflicts with everything; two
// accesses from different warps leave no warp that conflicts with neither; and likewise for two threads.
// (tests/machine/races.rs compares this with looking at every pair.)
// Rejected: vector clocks, which keep a word per thread and location to learn what barriers make
// so simple here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace emulator {

constexpr uint32_t LANES = 32;
constexpr uint32_t MOST_THREADS = 1024;

// Ticks at which things happened last.
struct Clock {
    uint64_t now = 1;
    uint64_t launch = 1;  // start of the launch
    uint64_t block = 1;   // start of the running block
    uint64_t barrier = 1; // of the block
    uint64_t warp_barrier[MOST_THREADS / LANES] = {};

    uint64_t tick() { return ++now; }
};

enum class Access : uint8_t {
    load,
    stream, // a load past the coherent caches: of memory that the whole launch leaves alone
    store,
    atomic,
};

// An access of the past; all zero is none.
struct Record {
    uint64_t tick : 40;
    uint64_t thread : 10;
    uint64_t line : 14; // of the source, for messages; the last one stands for all behind it

    explicit operator bool() const { return tick != 0; }
};
static_assert(sizeof(Record) == 8);

// Watches `bytes` bytes.
class Watch {
  public:
    // Whose memory it is.
    enum class Owner : uint8_t { device, block };

    Watch(size_t bytes, Owner owner);

    // Notes an access of a thread to the bytes [first, first + bytes). Answers an access of before that it
    // conflicts with, or none.
    Record note(size_t first, size_t bytes, Access access, uint32_t thread, unsigned line, const Clock &clock);

    // Has anyone touched the bytes since a tick?
    bool touched_since(uint64_t tick, size_t first, size_t bytes) const;

  private:
    // Of a granule. The latest comes first.
    struct Entry {
        Record reads[2];
        Record atomics[2];
        Record stores[1]; // what is ordered behind the last one is ordered behind all before it

        uint64_t last() const; // tick
    };
    struct Free {
        void operator()(Entry *entries) const;
    };
    using Entries = std::unique_ptr<Entry[], Free>;

    static Entries entries_of(size_t count);
    // Makes granules small enough for the bytes to be whole ones.
    void refine(size_t first, size_t bytes);

    // Most memory is only touched in words; granules get smaller when a narrower access comes by.
    unsigned shift_ = 2;
    Owner owner_;
    size_t bytes_;
    Entries entries_;
};

} // namespace emulator
