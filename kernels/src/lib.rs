//! The GPU kernels as the host sees them: their names, their arguments, how weights are packed for
//! them, and what a machine that runs them must offer.
//!
//! The kernels are the `.cu` files beside this crate, one operation a file. They run on an NVIDIA
//! GPU from the embedded fat binary, or, in tests, on an emulator that compiles the same files for the
//! host. [`Device`] is the seam between the two: the executor and the operation suite are written
//! against it and do not know which one they have.
#![forbid(unsafe_code)]

pub mod arguments;
mod binary;
mod device;
pub mod geometry;
pub mod packing;
pub mod product;
pub mod sampling;

pub use binary::{Kernel, Module, NotBuilt, binary};
pub use device::{
    Description, Device, DeviceError, Download, Fill, Graph, HostMemory, Launch, Mark, Memory,
};
