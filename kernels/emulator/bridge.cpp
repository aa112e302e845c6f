#include "emulator/bridge.h"

#include <cstring>
#include <stdexcept>

#include "rewind-kernels-emulator/src/bridge.rs.h"

namespace emulator {

// Keeps the kernel files from being left out; build.rs writes it.
void link_kernels();

Machine::Machine(Order order, uint64_t seed, bool checks) : block_(memory_, order, seed, checks) {
    link_kernels();
}

uint64_t Machine::allocate(size_t bytes, bool zeros) { return memory_.allocate(bytes, zeros); }

void Machine::release(uint64_t address) { memory_.release(address); }

void Machine::upload(rust::Slice<const uint8_t> bytes, uint64_t to) {
    memory_.upload(to, bytes.data(), bytes.size());
}

void Machine::copy(uint64_t from, uint64_t to, size_t bytes) { memory_.copy(from, to, bytes); }

void Machine::download(uint64_t from, rust::Slice<uint8_t> into) {
    memory_.download(from, into.data(), into.size());
}

uint64_t Machine::mark() { return block_.mark(); }

void Machine::prefetch(rust::Slice<const uint8_t> bytes, uint64_t to, uint64_t after) {
    if (bytes.empty()) {
        return;
    }
    Allocation &target = memory_.holding(to, bytes.size(), "the destination");
    const Watch *watch = target.watch_if_any();
    if (watch && watch->touched_since(after, to - target.begin(), bytes.size())) {
        throw std::invalid_argument("a kernel that was launched behind the point it waits for uses the destination");
    }
    memory_.upload(to, bytes.data(), bytes.size(), Allocation::ARRIVING);
}

void Machine::arrive(uint64_t to, size_t bytes) {
    if (bytes != 0) {
        Allocation &target = memory_.holding(to, bytes, "the destination");
        target.set_state(to - target.begin(), bytes, Allocation::WRITTEN);
    }
}

Failure Machine::launch(rust::Str name, std::array<uint32_t, 3> size, uint32_t threads, uint32_t shared,
                        rust::Slice<const uint8_t> arguments) {
    const Kernel *kernel = find_kernel(std::string(name));
    if (!kernel || kernel->arguments != arguments.size()) {
        throw std::invalid_argument("no such kernel, or arguments of another size");
    }
    // Copied, because Rust's bytes need not be aligned for the struct.
    alignas(std::max_align_t) unsigned char copy[4096];
    if (arguments.size() > sizeof(copy)) {
        throw std::invalid_argument("more arguments than a launch can pass");
    }
    std::memcpy(copy, arguments.data(), arguments.size());
    Grid grid{{size[0], size[1], size[2]}, threads, shared};
    Fault fault = block_.launch(*kernel, grid, copy);
    return {fault.wrong, {fault.block[0], fault.block[1], fault.block[2]}, fault.thread, fault.other,
            rust::String(fault.message)};
}

std::unique_ptr<Machine> new_machine(Order order, uint64_t seed, bool checks) {
    return std::make_unique<Machine>(order, seed, checks);
}

rust::Vec<Signature> signatures() {
    rust::Vec<Signature> signatures;
    for (const Kernel *kernel : all_kernels()) {
        signatures.push_back({rust::String(kernel->name), kernel->arguments, kernel->threads});
    }
    return signatures;
}

} // namespace emulator
