#include "emulator/fiber.h"

#include <cstdint>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)

// The assembler's name is given, because some systems put an underscore before C's.
extern "C" void rewind_exchange_stacks(void **from, void *to) __asm__("rewind_exchange_stacks");

#if defined(__x86_64__)
// System V: rbx, rbp and r12 to r15 belong to the caller. The rounding mode does too, but kernels leave it.
__asm__(R"(
    .text
    .p2align 4
    .globl rewind_exchange_stacks
rewind_exchange_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    retq
)");
constexpr size_t RETURN_WORD = 6;
// A function starts with the stack 8 bytes off a multiple of 16, as if a call had pushed its return address.
constexpr size_t FRAME_WORDS = 8;
#else
// AAPCS64: x19 to x30 and the low halves of v8 to v15.
__asm__(R"(
    .text
    .p2align 4
    .globl rewind_exchange_stacks
rewind_exchange_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr size_t RETURN_WORD = 11;
constexpr size_t FRAME_WORDS = 20;
#endif

void Flow::exchange(Flow &from, Flow &to) { rewind_exchange_stacks(&from.stack_pointer_, to.stack_pointer_); }

void Flow::prepare(unsigned char *bottom, size_t bytes, void (*entry)()) {
    // The frame that a suspended flow would have left, with the entry where it would return to.
    auto *frame = reinterpret_cast<uintptr_t *>(bottom + bytes) - FRAME_WORDS;
    for (size_t i = 0; i < FRAME_WORDS; ++i) {
        frame[i] = 0;
    }
    frame[RETURN_WORD] = reinterpret_cast<uintptr_t>(entry);
    stack_pointer_ = frame;
}

#else

void Flow::exchange(Flow &from, Flow &to) { swapcontext(&from.context_, &to.context_); }

void Flow::prepare(unsigned char *bottom, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
}

#endif

Stack::Stack() : guard_(size_t(sysconf(_SC_PAGESIZE))) {
    void *mapping = mmap(nullptr, guard_ + BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        throw std::bad_alloc();
    }
    mapping_ = static_cast<unsigned char *>(mapping);
    mprotect(mapping_, guard_, PROT_NONE);
}

Stack::~Stack() {
    if (mapping_) {
        munmap(mapping_, guard_ + BYTES);
    }
}

Stack::Stack(Stack &&other) noexcept : mapping_(other.mapping_), guard_(other.guard_) { other.mapping_ = nullptr; }

unsigned char *Stack::bottom() const { return mapping_ + guard_; }

} // namespace emulator
