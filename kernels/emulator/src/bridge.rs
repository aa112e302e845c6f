//! The C++ side, as cxx presents it. `bridge.h` has the other half.

pub(crate) use ffi::{Machine, new_machine, signatures, sizes};
pub use ffi::{Order, Wrong};

#[allow(
    unreachable_pub,
    unused_qualifications,
    clippy::undocumented_unsafe_blocks,
    reason = "the code that cxx makes of it is not ours"
)]
#[cxx::bridge(namespace = "emulator")]
mod ffi {
    /// In which order the blocks of a grid run, and the threads of a block are resumed.
    #[repr(u8)]
    #[derive(Debug)]
    enum Order {
        /// By index.
        #[cxx_name = "ascending"]
        Ascending,
        /// The last one first.
        #[cxx_name = "descending"]
        Descending,
        /// Another order for every launch and block, drawn from the seed.
        #[cxx_name = "shuffled"]
        Shuffled,
    }

    /// What a kernel can do wrong.
    #[repr(u8)]
    #[derive(Debug)]
    enum Wrong {
        /// Nothing at all.
        #[cxx_name = "nothing"]
        Nothing,
        /// An access outside of the memory it was meant for.
        #[cxx_name = "bounds"]
        Bounds,
        /// An address that is no multiple of what moves at once.
        #[cxx_name = "alignment"]
        Alignment,
        /// A read of what nobody has written.
        #[cxx_name = "unwritten"]
        Unwritten,
        /// Two accesses, one of them a write, that nothing orders.
        #[cxx_name = "race"]
        Race,
        /// Threads that should meet are at different places.
        #[cxx_name = "divergence"]
        Divergence,
        /// A thread has ended where others wait for it.
        #[cxx_name = "unreached"]
        Unreached,
        /// A read past the caches of what this launch, or a copy beside it, writes.
        #[cxx_name = "stale"]
        Stale,
    }

    /// How a launch ended.
    struct Failure {
        wrong: Wrong,
        block: [u32; 3],
        thread: u32,
        other: u32,
        message: String,
    }

    /// A kernel that was compiled in.
    struct Signature {
        name: String,
        arguments: usize,
        threads: u32,
    }

    /// `sizeof` a struct.
    struct Size {
        name: String,
        bytes: usize,
    }

    unsafe extern "C++" {
        include!("emulator/bridge.h");

        type Order;
        type Wrong;
        type Machine;

        fn new_machine(order: Order, seed: u64, checks: bool) -> Result<UniquePtr<Machine>>;
        fn allocate(self: Pin<&mut Machine>, bytes: usize, zeros: bool) -> Result<u64>;
        fn release(self: Pin<&mut Machine>, address: u64) -> Result<()>;
        fn upload(self: Pin<&mut Machine>, bytes: &[u8], to: u64) -> Result<()>;
        fn copy(self: Pin<&mut Machine>, from: u64, to: u64, bytes: usize) -> Result<()>;
        fn download(self: Pin<&mut Machine>, from: u64, into: &mut [u8]) -> Result<()>;
        fn mark(self: Pin<&mut Machine>) -> u64;
        fn prefetch(self: Pin<&mut Machine>, bytes: &[u8], to: u64, after: u64) -> Result<()>;
        fn arrive(self: Pin<&mut Machine>, to: u64, bytes: usize) -> Result<()>;
        fn launch(
            self: Pin<&mut Machine>,
            kernel: &str,
            grid: [u32; 3],
            threads: u32,
            shared: u32,
            arguments: &[u8],
        ) -> Result<Failure>;

        fn signatures() -> Vec<Signature>;
        fn sizes() -> Vec<Size>;
    }
}

// SAFETY: a Machine owns all it points to. What it has of its own on an OS thread, the pointer to the block
// that runs, is only set during `launch`, which stays on one.
unsafe impl Send for Machine {}
