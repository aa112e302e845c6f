//! From `.cu` files to what a GPU driver loads, on any machine that has nvcc; none needs a GPU.
//!
//! [`Nvcc::find`] looks for a compiler, [`Units::compile`] makes one fat binary of each `.cu` file for every
//! target and reads out of the compiler's report what registers and memory each kernel takes. Results are
//! kept by a digest of all that they depend on, so that profiles of one checkout (dev, release, clippy,
//! test) share them.
//!
//! A crate of its own, because the build script of `rewind-kernels` and the chores both need it, and a
//! build script cannot be tested.
#![forbid(unsafe_code)]

mod cache;
mod nvcc;
mod registers;
mod units;

use std::path::PathBuf;

pub use nvcc::{NoNvcc, Nvcc, OLDEST};
pub use registers::{Usage, read_table, write_table};
pub use units::{Module, SASS, Units};

/// Why kernels could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder holds no kernel.
    #[error("there is no .cu file in {}", .0.display())]
    NoKernels(PathBuf),
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// `read`, `create`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The compiler refused a file.
    #[error("nvcc refused {file}:\n{message}")]
    Refused {
        /// The `.cu` file.
        file: String,
        /// What nvcc printed.
        message: String,
    },
    /// The compiler's report, its intermediate code or a kept table reads differently than expected.
    #[error("{file}: {message}")]
    Report {
        /// The `.cu` file or the table.
        file: String,
        /// What is wrong.
        message: String,
    },
}

impl BuildError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { action, path, error }
    }
}
