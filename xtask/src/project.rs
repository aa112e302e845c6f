//! Where everything is.
//!
//! All that set-up makes lives in one git-ignored folder, `.rewind/`, so that removing it undoes everything:
//!
//! ```text
//! .rewind/
//!   venv/           Python environment of the end-to-end tests
//!   tritonserver/   the server, unpacked from a wheel (unused where /opt/tritonserver exists)
//!   libclang/       what bindgen needs, on a machine without libclang
//!   perf_analyzer/, perf_analyzer_libraries/  the load generator of `cargo xtask bench triton`
//!   cuda/           nvcc, where the kernels are compiled and the machine has none of its own
//!   models/         checkpoints
//!   llama-cpp/      llama.cpp in a Python environment of its own, built for this processor (only for `bench cpu`)
//!   llama-cpp-models/   the demo model in llama.cpp's formats
//!   server/         backends/, models/, models_iterative/: what a server is pointed at
//!   logs/           one file per server run
//!   stamps/         what each of the above was made from
//! ```

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The checkout, its build folder, and the cargo that runs us.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    root: PathBuf,
    target: PathBuf,
    cargo: OsString,
}

impl Project {
    /// Finds the workspace of the running xtask, and asks cargo where it builds.
    pub(crate) fn locate() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
        }

        // `cargo run` sets both; the fallbacks serve an xtask that is started by hand.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());

        let mut metadata = Command::new(&cargo);
        metadata.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(&manifest);
        let json = process::capture(metadata)?;
        let Metadata { workspace_root: root, target_directory: target } =
            serde_json::from_str(&json).context("cannot read what `cargo metadata` printed")?;
        Ok(Self { root, target, cargo })
    }

    /// A path inside the checkout.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path inside `.rewind/`.
    pub(crate) fn state(&self, relative: &str) -> PathBuf {
        self.root.join(".rewind").join(relative)
    }

    /// A file of the release build.
    pub(crate) fn release(&self, file: &str) -> PathBuf {
        self.target.join("release").join(file)
    }

    /// A path inside cargo's build folder.
    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// A cargo command in the workspace root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(arguments).current_dir(&self.root);
        command
    }
}
