// The kernels there are. A kernel file's KERNEL macro makes a static Kernel, which enters itself here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Kernel {
    Kernel(const char *name, size_t arguments, uint32_t threads, void (*run)(const void *));

    const char *name;
    size_t arguments; // bytes
    uint32_t threads; // most of a block
    void (*run)(const void *arguments);
};

const std::vector<const Kernel *> &all_kernels();
// Null: there is none of that name.
const Kernel *find_kernel(const std::string &name);

} // namespace emulator
