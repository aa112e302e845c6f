// One block at a time: its threads, where they meet, and the memory they touch.
//
// Every thread is a fiber. It runs until it must wait at a collective; then the next fiber that is ready goes
// on. The one that completes a collective does its work for all and wakes the others. So a launch is one
// sequence of steps, which an Order picks and repeats exactly.
//
// A mistake of a kernel ends the launch on the spot: the fiber that made it leaves for the host and no fiber
// of the block is ever resumed. (Kernels hold nothing that a destructor would have to give back.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/fault.h"
#include "emulator/fiber.h"
#include "emulator/kernels.h"
#include "emulator/memory.h"
#include "emulator/watch.h"

namespace emulator {

// In which order the blocks of a grid run and the threads of a block are resumed.
enum class Order : uint8_t { ascending, descending, shuffled };

// Where lanes of a warp, or all threads of the block, meet.
enum class Meeting : uint8_t { barrier, warp_barrier, shuffle, shuffle_xor, ballot, mma_f16, mma_tf32 };

struct Grid {
    uint32_t size[3];
    uint32_t threads;
    uint32_t shared; // bytes
};

class Block {
  public:
    static constexpr uint32_t MOST_SHARED = 227 << 10; // what a block may have on sm_90

    // `checks`: races and reads of what nobody wrote; bounds are always checked.
    Block(Memory &memory, Order order, uint64_t seed, bool checks);

    // Runs a grid, and says what went wrong.
    Fault launch(const Kernel &kernel, const Grid &grid, const void *arguments);
    const Clock &clock() const { return clock_; }
    // A point in time between launches.
    uint64_t mark() { return clock_.tick(); }

    // What follows is for the running fiber.
    uint32_t thread() const { return thread_; }
    uint32_t threads() const { return grid_.threads; }
    uint32_t index(int axis) const { return index_[axis]; }

    // Checks an access to device memory through a Global that stands at `handle`.
    void touch_global(const void *handle, const void *at, size_t bytes, size_t alignment, Access access, Site site);
    // Checks an access to the bytes of shared memory from `at`, through an array [begin, end); the address.
    unsigned char *touch_shared(size_t at, size_t begin, size_t end, size_t bytes, size_t alignment, Access access,
                                Site site);
    // Checks that an array lies in the block's shared memory.
    void take_shared(size_t offset, size_t bytes, size_t alignment, Site site);

    void barrier(Site site);
    void warp_barrier(Site site);
    uint64_t shuffle(uint64_t value, uint32_t from, Meeting meeting, Site site);
    uint32_t ballot(bool predicate, Site site);
    void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Meeting meeting, Site site);

  private:
    static constexpr uint32_t ALL_LANES = ~0u;

    struct Warp {
        uint32_t arrived = 0; // a bit a lane
        uint32_t ended = 0;
        Meeting meeting{};
        Site site{};
        uint32_t first = 0;       // the thread that came first
        void *brought[LANES] = {}; // what each lane brought, on its own stack
    };

    static void enter() noexcept;
    void run_block();
    void end();
    void sleep();
    void wake(uint32_t warp);
    uint32_t next_ready() const;

    // Waits for the other lanes of the warp; true for the one that came last, which then does the work and
    // wakes the others.
    bool meet(Meeting meeting, void *brought, Site site);

    [[noreturn]] void fail(Wrong wrong, uint32_t other, Site site, const std::string &what);
    [[noreturn]] void fail_race(const char *where, size_t byte, Record past, Access access, size_t bytes, Site site);

    Memory &memory_;
    Order order_;
    uint64_t random_;
    bool checks_;

    // The launch.
    const Kernel *kernel_ = nullptr;
    const void *arguments_ = nullptr;
    Grid grid_{};
    Fault fault_;
    Clock clock_;
    std::vector<uint64_t> started_; // ticks at which blocks started, and which they were
    std::vector<uint32_t> ran_;

    // The block.
    uint32_t index_[3] = {};
    std::vector<Warp> warps_;
    uint32_t waiting_warps_ = 0; // at the barrier
    uint32_t waiting_warp_ = 0;  // the first of them
    uint32_t ended_ = 0;         // threads
    uint32_t last_ended_ = 0;
    std::vector<unsigned char> shared_memory_;
    unsigned char *shared_;
    std::vector<uint8_t> shared_written_;
    Watch shared_watch_;

    // The fibers, and who is next.
    uint32_t thread_ = 0;
    Flow host_;
    std::vector<Flow> flows_;
    std::vector<Stack> stacks_;
    std::vector<uint32_t> thread_at_;   // position → thread
    std::vector<uint32_t> position_of_; // thread → position
    uint64_t ready_[MOST_THREADS / 64] = {}; // a bit a position
};

// The block whose kernel this OS thread runs.
inline thread_local Block *running = nullptr;

const char *name_of(Meeting meeting);

} // namespace emulator
