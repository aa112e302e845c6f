#include "emulator/kernels.h"

#include <algorithm>

namespace emulator {

namespace {

// Inside a function, because the order in which files' static objects are made is nobody's promise.
std::vector<const Kernel *> &table() {
    static std::vector<const Kernel *> kernels;
    return kernels;
}

} // namespace

Kernel::Kernel(const char *name, size_t arguments, uint32_t threads, void (*run)(const void *))
    : name(name), arguments(arguments), threads(threads), run(run) {
    table().push_back(this);
}

const std::vector<const Kernel *> &all_kernels() { return table(); }

const Kernel *find_kernel(const std::string &name) {
    auto found = std::find_if(table().begin(), table().end(), [&](const Kernel *one) { return one->name == name; });
    return found == table().end() ? nullptr : *found;
}

} // namespace emulator
