// Device memory: allocations of the host, what of them has been written, and who touches them.
//
// A kernel's access is checked against the allocation that its Global points into, not against all there
// are: an index that runs far out of one array and lands in another is a mistake too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "emulator/watch.h"

namespace emulator {

// One allocation.
class Allocation {
  public:
    // What a byte is. Bytes that nobody wrote hold a pattern that no kernel mistakes for data.
    enum State : uint8_t { UNWRITTEN, WRITTEN, ARRIVING };
    static constexpr unsigned char POISON = 0x7f; // f16: NaN; f32: 3.4e38

    Allocation(size_t bytes, bool zeros);

    uintptr_t begin() const { return begin_; }
    uintptr_t end() const { return begin_ + bytes_; }
    size_t bytes() const { return bytes_; }
    unsigned char *data() const { return reinterpret_cast<unsigned char *>(begin_); }

    // The first byte of a range that is not WRITTEN; the range's length if all are.
    size_t first_unwritten(size_t first, size_t bytes) const;
    State state(size_t byte) const { return State(states_[byte]); }
    void set_state(size_t first, size_t bytes, State state);
    // As the bytes of another allocation are.
    void copy_states(size_t first, const Allocation &from, size_t from_first, size_t bytes);

    // Made when a kernel first comes by.
    Watch &watch();
    const Watch *watch_if_any() const { return watch_.get(); }

  private:
    struct Free {
        void operator()(unsigned char *memory) const;
    };

    std::unique_ptr<unsigned char, Free> memory_;
    uintptr_t begin_;
    size_t bytes_;
    std::vector<uint8_t> states_;
    std::unique_ptr<Watch> watch_;
};

// All of them. Errors are std::invalid_argument: the host asked for what is not there.
class Memory {
  public:
    static constexpr size_t ALIGNMENT = 256;

    uintptr_t allocate(size_t bytes, bool zeros);
    void release(uintptr_t begin);

    void upload(uintptr_t to, const unsigned char *from, size_t bytes, Allocation::State state = Allocation::WRITTEN);
    void copy(uintptr_t from, uintptr_t to, size_t bytes);
    void download(uintptr_t from, unsigned char *to, size_t bytes);

    // The allocation that holds the whole range.
    Allocation &holding(uintptr_t first, size_t bytes, const char *what);
    // The allocation that an address points into; null: none does.
    Allocation *at(uintptr_t address);
    // Was the address freed not long ago?
    bool was_freed(uintptr_t address) const;

  private:
    static constexpr size_t QUARANTINE = 64 << 20;

    std::map<uintptr_t, Allocation> allocations_;
    // Freed memory is kept for a while, so that its addresses are not given out again at once and a late
    // access is seen.
    std::deque<Allocation> freed_;
    size_t freed_bytes_ = 0;
    // Kernels go back and forth between few arrays.
    static constexpr size_t RECENT = 4;
    Allocation *recent_[RECENT] = {};
    size_t next_recent_ = 0;
};

} // namespace emulator
