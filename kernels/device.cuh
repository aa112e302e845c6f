// What a kernel may ask of the machine, by name.
//
// A kernel file includes this header and nothing of CUDA's. On a GPU the names below are thin, inlined
// functions over intrinsics and PTX (nvidia.cuh); in tests they are the emulator's (emulator/machine.h),
// which runs a block's threads as fibers and checks every access. So one source serves both, and what the
// emulator can check is what the kernels are made of. Rejected: raw pointers, `__shared__` arrays and CUDA's
// spellings in the kernels, which no test could look into without a GPU.
//
// Rules for kernels:
//  * One parameter, a struct of arguments.h. All shared memory is dynamic, reached by shared_array().
//  * Every f32 operation is rounded once: nvcc runs with -fmad=false, fused multiply-add is written fma().
//    So a kernel's bits do not depend on what a compiler likes, and equal those of the host for everything
//    but matrix products and f64 functions.
//  * No float atomics, no order that depends on the number of rows, blocks or neighbours.
//  * Collectives (barrier, shuffles, ballot, matrix products) are reached by all threads of the block or
//    of the warp, never inside a branch that splits it.
//
// | name | meaning |
// | --- | --- |
// | KERNEL(name, Arguments, THREADS, BLOCKS) { ... } | a kernel; reads `arguments`; BLOCKS resident blocks bound its registers |
// | thread(), lane(), warp() | index in the block, in the warp, of the warp |
// | block_x(), block_y(), block_z() | index in the grid |
// | threads() | threads of the block |
// | shared_array<T>(offset, count) | Shared<T> over dynamic shared memory from a byte offset |
// | barrier(), warp_barrier() | all threads of the block; of the warp |
// | shuffle(v, from), shuffle_xor(v, mask), ballot(p) | of a full warp; v is 4 or 8 bytes |
// | atomic_add(memory, i, v), atomic_max(memory, i, v) | u32 in Global or Shared |
// | fma(a, b, c), square_root(x), absolute(x), larger(a, b), smaller(a, b) | f32, IEEE; larger/smaller as `b > a ? b : a` |
// | round_even(x) | f32 to the nearest integer, ties to even |
// | bits_of(x), from_bits(u) | f32 and its bits |
// | logarithm(x), exponential_f64(x) | f64, the platform's |
// | to_f32(F16), to_f32(Bf16), to_f16(x), to_bf16(x) | conversions; to nearest even; to_f16 saturates at ±65504, NaN stays |
// | to_tf32(x) | f32 rounded to 11 significant bits, nearest, ties away (cvt.rna) |
// | subtract_f16x2(a, b), fma_f16x2(a, b, c) | two f16 in a u32, each rounded once |
// | permute_bytes(a, b, selector), select_bits<LUT>(a, b, c) | prmt, lop3 |
// | leading_zeros(u), multiply_high(a, b) | u32 |
// | mma_f16(d, a, b) | warp: d[16×8] += a[16×16] · b[16×8], f16 operands, f32 sums; fragments as PTX's mma.m16n8k16 |
// | mma_tf32(d, a, b) | warp: d[16×8] += a[16×8] · b[8×8], tf32 operands, f32 sums; fragments as PTX's mma.m16n8k8 |
#pragma once

#ifdef REWIND_EMULATOR
#include "emulator/machine.h"
#else
#include "nvidia.cuh"
#endif

#include "arguments.h"
