#include "emulator/block.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "emulator/multiply.h"

namespace emulator {

namespace {

// splitmix64: any seed will do.
uint64_t draw(uint64_t &state) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void arrange_by(Order order, uint64_t &random, std::vector<uint32_t> &items) {
    std::iota(items.begin(), items.end(), 0u);
    if (order == Order::descending) {
        std::reverse(items.begin(), items.end());
    } else if (order == Order::shuffled) {
        for (size_t i = items.size(); i > 1; --i) {
            std::swap(items[i - 1], items[draw(random) % i]);
        }
    }
}

std::string place(const uint32_t (&index)[3]) {
    return "(" + std::to_string(index[0]) + ", " + std::to_string(index[1]) + ", " + std::to_string(index[2]) + ")";
}

std::string thread_name(uint32_t thread) { return "thread " + std::to_string(thread); }

std::string count_of(size_t bytes) { return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes"); }

const char *verb(Access access) {
    switch (access) {
    case Access::load:
    case Access::stream:
        return "reads ";
    case Access::store:
        return "writes ";
    case Access::atomic:
        return "changes atomically ";
    }
    return "";
}

} // namespace

const char *name_of(Meeting meeting) {
    switch (meeting) {
    case Meeting::barrier:
        return "barrier";
    case Meeting::warp_barrier:
        return "warp_barrier";
    case Meeting::shuffle:
        return "shuffle";
    case Meeting::shuffle_xor:
        return "shuffle_xor";
    case Meeting::ballot:
        return "ballot";
    case Meeting::mma_f16:
        return "mma_f16";
    case Meeting::mma_tf32:
        return "mma_tf32";
    }
    return "";
}

Block::Block(Memory &memory, Order order, uint64_t seed, bool checks)
    : memory_(memory), order_(order), random_(seed), checks_(checks), shared_memory_(MOST_SHARED + 16),
      shared_written_(MOST_SHARED), shared_watch_(MOST_SHARED, Watch::Owner::block) {
    auto begin = reinterpret_cast<uintptr_t>(shared_memory_.data());
    shared_ = shared_memory_.data() + (16 - begin % 16) % 16;
}

Fault Block::launch(const Kernel &kernel, const Grid &grid, const void *arguments) {
    kernel_ = &kernel;
    arguments_ = arguments;
    grid_ = grid;
    fault_ = {};
    clock_.launch = clock_.tick();
    started_.clear();
    while (stacks_.size() < grid.threads) {
        stacks_.emplace_back();
    }
    flows_.resize(stacks_.size());
    thread_at_.resize(grid.threads);
    position_of_.resize(grid.threads);

    ran_.resize(size_t(grid.size[0]) * grid.size[1] * grid.size[2]);
    arrange_by(order_, random_, ran_);
    Block *outer = running;
    running = this;
    for (uint32_t block : ran_) {
        index_[0] = block % grid.size[0];
        index_[1] = block / grid.size[0] % grid.size[1];
        index_[2] = block / grid.size[0] / grid.size[1];
        run_block();
        if (fault_.wrong != Wrong::nothing) {
            break;
        }
    }
    running = outer;
    clock_.launch = clock_.tick();
    return fault_;
}

void Block::run_block() {
    clock_.block = clock_.tick();
    clock_.barrier = clock_.block;
    std::fill(std::begin(clock_.warp_barrier), std::end(clock_.warp_barrier), clock_.block);
    started_.push_back(clock_.block);
    warps_.assign(grid_.threads / LANES, Warp());
    waiting_warps_ = 0;
    ended_ = 0;
    std::memset(shared_, Allocation::POISON, grid_.shared);
    std::memset(shared_written_.data(), 0, grid_.shared);

    arrange_by(order_, random_, thread_at_);
    std::fill(std::begin(ready_), std::end(ready_), 0);
    for (uint32_t position = 0; position < grid_.threads; ++position) {
        uint32_t thread = thread_at_[position];
        position_of_[thread] = position;
        ready_[position / 64] |= uint64_t(1) << position % 64;
        // Stacks are whole pages, so what fibers do alike would meet in the same few sets of the cache.
        size_t bytes = Stack::BYTES - thread % 64 * 64;
        flows_[thread].prepare(stacks_[thread].bottom(), bytes, &Block::enter);
    }
    thread_ = thread_at_[0];
    Flow::exchange(host_, flows_[thread_]);
}

void Block::enter() noexcept {
    running->kernel_->run(running->arguments_);
    running->end();
}

void Block::end() {
    Warp &warp = warps_[thread_ / LANES];
    if (warp.arrived != 0) {
        fail(Wrong::unreached, warp.first, warp.site,
             "ends, but " + thread_name(warp.first) + " waits for it at " + name_of(warp.meeting));
    }
    if (waiting_warps_ != 0) {
        const Warp &other = warps_[waiting_warp_];
        fail(Wrong::unreached, other.first, other.site,
             "ends, but " + thread_name(other.first) + " waits for it at barrier");
    }
    warp.ended |= 1u << thread_ % LANES;
    last_ended_ = thread_;
    if (++ended_ == grid_.threads) {
        Flow::exchange(flows_[thread_], host_);
    }
    sleep();
}

// Leaves the fiber, which must have been noted somewhere to be woken.
void Block::sleep() {
    uint32_t position = position_of_[thread_];
    ready_[position / 64] &= ~(uint64_t(1) << position % 64);
    uint32_t next = next_ready();
    uint32_t sleeper = thread_;
    thread_ = thread_at_[next];
    Flow::exchange(flows_[sleeper], flows_[thread_]);
}

// The first ready position. So a warp goes as far as it can before the next one starts, which keeps its stacks
// in the nearest cache. There is always one: a thread only waits for a meeting that is not complete, and one
// that can no longer be completed is a fault.
uint32_t Block::next_ready() const {
    for (uint32_t word = 0; word < MOST_THREADS / 64; ++word) {
        if (ready_[word] != 0) {
            return word * 64 + uint32_t(__builtin_ctzll(ready_[word]));
        }
    }
    __builtin_trap();
}

void Block::wake(uint32_t warp) {
    for (uint32_t thread = warp * LANES; thread < (warp + 1) * LANES; ++thread) {
        uint32_t position = position_of_[thread];
        ready_[position / 64] |= uint64_t(1) << position % 64;
    }
}

bool Block::meet(Meeting meeting, void *brought, Site site) {
    Warp &warp = warps_[thread_ / LANES];
    if (warp.ended != 0) {
        uint32_t other = thread_ / LANES * LANES + uint32_t(__builtin_ctz(warp.ended));
        fail(Wrong::unreached, other, site,
             std::string("waits at ") + name_of(meeting) + ", but " + thread_name(other) + " of its warp has ended");
    }
    if (warp.arrived == 0) {
        warp.meeting = meeting;
        warp.site = site;
        warp.first = thread_;
    } else if (warp.meeting != meeting || !(warp.site == site)) {
        fail(Wrong::divergence, warp.first, site,
             std::string("is at ") + name_of(meeting) + ", but " + thread_name(warp.first) + " of its warp is at " +
                 name_of(warp.meeting) + " (" + name_of(warp.site) + ")");
    }
    warp.brought[thread_ % LANES] = brought;
    warp.arrived |= 1u << thread_ % LANES;
    if (warp.arrived != ALL_LANES) {
        sleep();
        return false;
    }
    warp.arrived = 0;
    return true;
}

void Block::barrier(Site site) {
    if (!meet(Meeting::barrier, nullptr, site)) {
        return;
    }
    uint32_t warp = thread_ / LANES;
    if (ended_ != 0) {
        fail(Wrong::unreached, last_ended_, site, "waits at barrier, but " + thread_name(last_ended_) + " has ended");
    }
    if (waiting_warps_ == 0) {
        waiting_warp_ = warp;
    }
    const Warp &first = warps_[waiting_warp_];
    if (!(first.site == site)) {
        fail(Wrong::divergence, first.first, site,
             "is at barrier, but " + thread_name(first.first) + " is at another barrier (" + name_of(first.site) + ")");
    }
    if (++waiting_warps_ < warps_.size()) {
        sleep();
        return;
    }
    waiting_warps_ = 0;
    clock_.barrier = clock_.tick();
    for (uint32_t one = 0; one < warps_.size(); ++one) {
        wake(one);
    }
}

void Block::warp_barrier(Site site) {
    if (meet(Meeting::warp_barrier, nullptr, site)) {
        clock_.warp_barrier[thread_ / LANES] = clock_.tick();
        wake(thread_ / LANES);
    }
}

uint64_t Block::shuffle(uint64_t value, uint32_t from, Meeting meeting, Site site) {
    struct Brought {
        uint64_t value;
        uint64_t taken;
        uint32_t from;
    } mine{value, 0, from};
    if (meet(meeting, &mine, site)) {
        Warp &warp = warps_[thread_ / LANES];
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            auto *to = static_cast<Brought *>(warp.brought[lane]);
            uint32_t source = (meeting == Meeting::shuffle ? to->from : lane ^ to->from) % LANES;
            to->taken = static_cast<Brought *>(warp.brought[source])->value;
        }
        wake(thread_ / LANES);
    }
    return mine.taken;
}

uint32_t Block::ballot(bool predicate, Site site) {
    struct Brought {
        bool predicate;
        uint32_t votes;
    } mine{predicate, 0};
    if (meet(Meeting::ballot, &mine, site)) {
        Warp &warp = warps_[thread_ / LANES];
        uint32_t votes = 0;
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            votes |= uint32_t(static_cast<Brought *>(warp.brought[lane])->predicate) << lane;
        }
        for (void *brought : warp.brought) {
            static_cast<Brought *>(brought)->votes = votes;
        }
        wake(thread_ / LANES);
    }
    return mine.votes;
}

void Block::multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Meeting meeting, Site site) {
    Fragments mine{&d, &a, &b};
    if (meet(meeting, &mine, site)) {
        Warp &warp = warps_[thread_ / LANES];
        const Fragments *lanes[LANES];
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            lanes[lane] = static_cast<Fragments *>(warp.brought[lane]);
        }
        meeting == Meeting::mma_f16 ? multiply_f16(lanes) : multiply_tf32(lanes);
        wake(thread_ / LANES);
    }
}

void Block::touch_global(const void *handle, const void *at, size_t bytes, size_t alignment, Access access,
                         Site site) {
    auto address = reinterpret_cast<uintptr_t>(at);
    Allocation *allocation = memory_.at(reinterpret_cast<uintptr_t>(handle));
    if (!allocation) {
        std::string where = !handle                            ? "through a null Global"
                            : memory_.was_freed(uintptr_t(handle)) ? "of memory that was freed"
                                                               : "through a Global that points at no allocation";
        fail(Wrong::bounds, Fault::NOBODY, site, verb(access) + count_of(bytes) + " " + where);
    }
    size_t first = address - allocation->begin();
    if (address < allocation->begin() || first > allocation->bytes() || bytes > allocation->bytes() - first) {
        fail(Wrong::bounds, Fault::NOBODY, site,
             verb(access) + count_of(bytes) + " at byte " + std::to_string(intptr_t(first)) +
                 " of an allocation of " + std::to_string(allocation->bytes()));
    }
    if (address % alignment != 0) {
        fail(Wrong::alignment, Fault::NOBODY, site,
             verb(access) + count_of(bytes) + " at byte " + std::to_string(first) +
                 " of an allocation, which is not aligned to " + std::to_string(alignment));
    }
    if (!checks_) {
        return;
    }
    size_t written = access == Access::store ? bytes : allocation->first_unwritten(first, bytes);
    if (written != bytes) {
        bool arriving = allocation->state(first + written) == Allocation::ARRIVING;
        fail(arriving ? Wrong::stale : Wrong::unwritten, Fault::NOBODY, site,
             verb(access) + count_of(bytes) + " at byte " + std::to_string(first) +
                 " of an allocation, of which byte " + std::to_string(first + written) +
                 (arriving ? " is still being copied from the host" : " was never written"));
    }
    if (Record past = allocation->watch().note(first, bytes, access, thread_, site.line, clock_)) {
        fail_race("device", first, past, access, bytes, site);
    }
    if (access == Access::store) {
        allocation->set_state(first, bytes, Allocation::WRITTEN);
    }
}

unsigned char *Block::touch_shared(size_t at, size_t begin, size_t end, size_t bytes, size_t alignment, Access access,
                                   Site site) {
    if (at < begin || at > end || bytes > end - at) {
        fail(Wrong::bounds, Fault::NOBODY, site,
             verb(access) + count_of(bytes) + " at byte " + std::to_string(intptr_t(at - begin)) +
                 " of a shared array of " + std::to_string(end - begin));
    }
    if (at % alignment != 0) {
        fail(Wrong::alignment, Fault::NOBODY, site,
             verb(access) + count_of(bytes) + " at byte " + std::to_string(at) +
                 " of shared memory, which is not aligned to " + std::to_string(alignment));
    }
    if (checks_) {
        uint8_t *written = shared_written_.data() + at;
        if (access == Access::store) {
            std::memset(written, 1, bytes);
        } else if (const void *hole = std::memchr(written, 0, bytes)) {
            fail(Wrong::unwritten, Fault::NOBODY, site,
                 verb(access) + count_of(bytes) + " at byte " + std::to_string(at) +
                     " of shared memory, of which byte " +
                     std::to_string(static_cast<const uint8_t *>(hole) - shared_written_.data()) +
                     " has not been written by this block");
        }
        if (Record past = shared_watch_.note(at, bytes, access, thread_, site.line, clock_)) {
            fail_race("shared", at, past, access, bytes, site);
        }
    }
    return shared_ + at;
}

void Block::take_shared(size_t offset, size_t bytes, size_t alignment, Site site) {
    if (offset > grid_.shared || bytes > grid_.shared - offset) {
        fail(Wrong::bounds, Fault::NOBODY, site,
             "takes a shared array of " + count_of(bytes) + " from byte " + std::to_string(offset) +
                 "; the block has " + std::to_string(grid_.shared));
    }
    if (offset % alignment != 0) {
        fail(Wrong::alignment, Fault::NOBODY, site,
             "takes a shared array from byte " + std::to_string(offset) + ", which is not aligned to " +
                 std::to_string(alignment));
    }
}

void Block::fail(Wrong wrong, uint32_t other, Site site, const std::string &what) {
    fault_.wrong = wrong;
    std::copy(std::begin(index_), std::end(index_), fault_.block);
    fault_.thread = thread_;
    fault_.other = other;
    fault_.message = std::string("kernel ") + kernel_->name + ", block " + place(index_) + ": " +
                     thread_name(thread_) + " " + what + " (" + name_of(site) + ")";
    Flow::exchange(flows_[thread_], host_);
    __builtin_trap();
}

void Block::fail_race(const char *where, size_t byte, Record past, Access access, size_t bytes, Site site) {
    bool same_block = past.tick >= clock_.block;
    std::string other = thread_name(uint32_t(past.thread));
    if (!same_block) {
        auto started = std::upper_bound(started_.begin(), started_.end(), uint64_t(past.tick));
        uint32_t block = ran_[size_t(started - started_.begin()) - 1];
        other += " of block " + place({block % grid_.size[0], block / grid_.size[0] % grid_.size[1],
                                       block / grid_.size[0] / grid_.size[1]});
    }
    bool ordered = same_block && (past.thread == thread_ || past.tick < clock_.barrier);
    fail(access == Access::stream && ordered ? Wrong::stale : Wrong::race, uint32_t(past.thread), site,
         verb(access) + count_of(bytes) + " at byte " + std::to_string(byte) + " of " + where + " memory, and " +
             other + " used it at line " + std::to_string(past.line) +
             (ordered ? "; a streaming load sees only what was written before the launch"
                      : (same_block ? " with no barrier between" : " in the same launch")));
}

} // namespace emulator
