// Fibers: stacks of their own that one OS thread switches between by hand.
//
// A block of 1024 threads meets at a barrier thousands of times in a test, so a switch must cost what a
// function call costs: it saves the registers that a callee must keep and exchanges the stack pointer.
// Rejected: OS threads (microseconds for each switch, and an order that no seed repeats) and ucontext, which
// asks the kernel for the signal mask each time; it stands in where this file knows no registers.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emulator {

// A suspended flow of control: a fiber, or the flow that started them.
class Flow {
  public:
    // Suspends the running flow in `from` and resumes `to`. The one that is resumed returns from its own
    // call of this function, or enters the function it was prepared for.
    static void exchange(Flow &from, Flow &to);

    // Makes the flow enter `entry`, which must never return, on the stack that ends at `top`.
    void prepare(unsigned char *bottom, size_t bytes, void (*entry)());

  private:
#if defined(__x86_64__) || defined(__aarch64__)
    void *stack_pointer_ = nullptr;
#else
    ucontext_t context_;
#endif
};

// Memory for a fiber to run on. The page below is not accessible: a stack that overflows kills the process
// there and then instead of changing its neighbour.
class Stack {
  public:
    static constexpr size_t BYTES = 128 << 10;

    Stack();
    ~Stack();
    Stack(Stack &&other) noexcept;
    Stack(const Stack &) = delete;
    Stack &operator=(const Stack &) = delete;

    unsigned char *bottom() const;

  private:
    unsigned char *mapping_;
    size_t guard_;
};

} // namespace emulator
