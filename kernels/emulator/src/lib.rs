//! Rewind's GPU kernels without a GPU.
//!
//! The `.cu` files are compiled a second time, as host C++ against `machine.h`: the threads of a block are
//! fibers, barriers and shuffles are places where fibers wait for each other, and every access to memory is
//! checked on its way. [`Emulator`] is a [`Device`](rewind_kernels::Device), so the operation suite, and the executor of
//! `backend/cuda` with a whole model, run on it as they do on a GPU.
//!
//! # What it proves
//!
//! For the launches that were run, and whatever order threads and blocks took:
//!
//! - **Indexing.** Every access lay within the allocation, or the shared array, that it was meant for, and
//!   was aligned; nothing was read that nobody had written.
//! - **Order.** No two accesses that could meet on a GPU conflicted: what the fibers' own order hides
//!   is found by asking what barriers ordered (`watch.h`).
//! - **Collectives.** All threads of a warp or block arrived at each, at the same one.
//! - **Invariance.** A row has the same bits in any company. The kernels' order of operations is theirs, so
//!   what holds here for every sum outside of a matrix product holds on a GPU.
//!
//! # What it does not
//!
//! - **Bits of matrix products.** How tensor cores round and order their sums is not documented. Here it is
//!   f32, one product after the other (`multiply.cpp`); elsewhere it is close to that.
//! - **f64 functions**, which are those of the host's library.
//! - **Time**, registers, bank conflicts, and what a compiler makes of the source.
//! - Anything about threads of different blocks that wait for each other: blocks run one after the other.

mod bridge;
mod emulator;

pub use bridge::{Order, Wrong};
pub use emulator::{Emulator, Fault, Settings, struct_sizes};
