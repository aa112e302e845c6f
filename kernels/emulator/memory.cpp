#include "emulator/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace emulator {

Allocation::Allocation(size_t bytes, bool zeros)
    : memory_(static_cast<unsigned char *>(
          std::aligned_alloc(Memory::ALIGNMENT, (bytes / Memory::ALIGNMENT + 1) * Memory::ALIGNMENT))),
      bytes_(bytes), states_(bytes, zeros ? WRITTEN : UNWRITTEN) {
    if (!memory_) {
        throw std::bad_alloc();
    }
    begin_ = reinterpret_cast<uintptr_t>(memory_.get());
    std::memset(memory_.get(), zeros ? 0 : POISON, bytes);
}

size_t Allocation::first_unwritten(size_t first, size_t bytes) const {
    const uint8_t *states = states_.data() + first;
    // Nearly always all is well, and the widths of accesses are few.
    constexpr uint64_t ALL = 0x0101010101010101u * WRITTEN;
    uint64_t low = 0, high = ALL;
    switch (bytes) {
    case 16:
        std::memcpy(&high, states + 8, 8);
        [[fallthrough]];
    case 8:
        std::memcpy(&low, states, 8);
        if (low == ALL && high == ALL) {
            return bytes;
        }
        break;
    case 4:
        std::memcpy(&low, states, 4);
        if (low == (ALL & 0xffffffffu)) {
            return bytes;
        }
        break;
    default:
        break;
    }
    return size_t(std::find_if(states, states + bytes, [](uint8_t state) { return state != WRITTEN; }) - states);
}

void Allocation::set_state(size_t first, size_t bytes, State state) {
    std::memset(states_.data() + first, state, bytes);
}

void Allocation::copy_states(size_t first, const Allocation &from, size_t from_first, size_t bytes) {
    std::memmove(states_.data() + first, from.states_.data() + from_first, bytes);
}

Watch &Allocation::watch() {
    if (!watch_) {
        watch_ = std::make_unique<Watch>(bytes_, Watch::Owner::device);
    }
    return *watch_;
}

void Allocation::Free::operator()(unsigned char *memory) const { std::free(memory); }

uintptr_t Memory::allocate(size_t bytes, bool zeros) {
    Allocation allocation(bytes, zeros);
    uintptr_t begin = allocation.begin();
    allocations_.emplace(begin, std::move(allocation));
    return begin;
}

void Memory::release(uintptr_t begin) {
    auto found = allocations_.find(begin);
    if (found == allocations_.end()) {
        throw std::invalid_argument("nothing is allocated at this address");
    }
    std::fill(std::begin(recent_), std::end(recent_), nullptr);
    freed_bytes_ += found->second.bytes();
    freed_.push_back(std::move(found->second));
    allocations_.erase(found);
    while (freed_bytes_ > QUARANTINE) {
        freed_bytes_ -= freed_.front().bytes();
        freed_.pop_front();
    }
}

void Memory::upload(uintptr_t to, const unsigned char *from, size_t bytes, Allocation::State state) {
    if (bytes == 0) {
        return;
    }
    Allocation &target = holding(to, bytes, "the destination");
    std::memcpy(reinterpret_cast<unsigned char *>(to), from, bytes);
    target.set_state(to - target.begin(), bytes, state);
}

void Memory::copy(uintptr_t from, uintptr_t to, size_t bytes) {
    if (bytes == 0) {
        return;
    }
    Allocation &source = holding(from, bytes, "the source");
    Allocation &target = holding(to, bytes, "the destination");
    if (from < to + bytes && to < from + bytes) {
        throw std::invalid_argument("the ranges overlap");
    }
    std::memcpy(reinterpret_cast<unsigned char *>(to), reinterpret_cast<unsigned char *>(from), bytes);
    target.copy_states(to - target.begin(), source, from - source.begin(), bytes);
}

void Memory::download(uintptr_t from, unsigned char *to, size_t bytes) {
    if (bytes == 0) {
        return;
    }
    holding(from, bytes, "the source");
    std::memcpy(to, reinterpret_cast<unsigned char *>(from), bytes);
}

Allocation &Memory::holding(uintptr_t first, size_t bytes, const char *what) {
    Allocation *allocation = at(first);
    if (!allocation) {
        throw std::invalid_argument(std::string(what) + " is not allocated");
    }
    if (bytes > allocation->end() - first) {
        throw std::invalid_argument(std::string(what) + ", " + std::to_string(bytes) + " bytes from byte " +
                                    std::to_string(first - allocation->begin()) + ", leaves its allocation of " +
                                    std::to_string(allocation->bytes()));
    }
    return *allocation;
}

Allocation *Memory::at(uintptr_t address) {
    for (Allocation *allocation : recent_) {
        if (allocation && address - allocation->begin() < allocation->bytes()) {
            return allocation;
        }
    }
    auto after = allocations_.upper_bound(address);
    if (after == allocations_.begin()) {
        return nullptr;
    }
    Allocation &allocation = std::prev(after)->second;
    if (address - allocation.begin() >= allocation.bytes()) {
        return nullptr;
    }
    recent_[next_recent_++ % RECENT] = &allocation;
    return &allocation;
}

bool Memory::was_freed(uintptr_t address) const {
    return std::any_of(freed_.begin(), freed_.end(),
                       [=](const Allocation &one) { return address - one.begin() < one.bytes(); });
}

} // namespace emulator
