// What a kernel can do wrong, and where in its source it did.
#pragma once

#include <cstdint>
#include <string>

namespace emulator {

// A place in a kernel's source. As a default argument it is the place of the caller, which is how a fault
// knows its line although kernels say nothing about it.
struct Site {
    const char *file;
    unsigned line;

    static constexpr Site here(const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
        return {file, line};
    }
};

bool operator==(Site a, Site b);

// `file.cu:12`, without folders.
std::string name_of(Site site);

enum class Wrong : uint8_t {
    nothing,
    bounds,      // an access outside of the memory it was meant for
    alignment,   // an address that is no multiple of what moves at once
    unwritten,   // a read of what nobody has written
    race,        // two accesses, one of them a write, that nothing orders
    divergence,  // threads that should meet are at different places
    unreached,   // a thread has ended where others wait for it
    stale,       // a read past the caches of what this launch, or a copy beside it, writes
};

// `other` is the second thread, where the mistake takes two.
struct Fault {
    static constexpr uint32_t NOBODY = ~0u;

    Wrong wrong = Wrong::nothing;
    uint32_t block[3] = {};
    uint32_t thread = NOBODY;
    uint32_t other = NOBODY;
    std::string message;
};

} // namespace emulator
