// The emulator as Rust sees it; src/bridge.rs has the other side.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "emulator/block.h"
#include "emulator/memory.h"
#include "rust/cxx.h"

namespace emulator {

struct Failure;     // defined by src/bridge.rs
struct Signature;
struct Size;

// A device: memory, and a block that runs on it. What is thrown arrives in Rust as an error.
class Machine {
  public:
    Machine(Order order, uint64_t seed, bool checks);

    uint64_t allocate(size_t bytes, bool zeros);
    void release(uint64_t address);
    void upload(rust::Slice<const uint8_t> bytes, uint64_t to);
    void copy(uint64_t from, uint64_t to, size_t bytes);
    void download(uint64_t from, rust::Slice<uint8_t> into);
    // A point of the stream.
    uint64_t mark();
    // Copies beside the stream, once `after` is reached. Until arrive(), the bytes must be left alone.
    void prefetch(rust::Slice<const uint8_t> bytes, uint64_t to, uint64_t after);
    void arrive(uint64_t to, size_t bytes);
    Failure launch(rust::Str kernel, std::array<uint32_t, 3> grid, uint32_t threads, uint32_t shared,
                   rust::Slice<const uint8_t> arguments);

  private:
    Memory memory_;
    Block block_;
};

std::unique_ptr<Machine> new_machine(Order order, uint64_t seed, bool checks);
// Every kernel that was compiled in.
rust::Vec<Signature> signatures();
// sizeof each struct of arguments.h.
rust::Vec<Size> sizes();

} // namespace emulator
