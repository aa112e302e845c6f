//! The environment variables by which tests learn where things are.
//!
//! | variable | value |
//! | --- | --- |
//! | `REWIND_DEMO_MODEL` | the demo checkpoint; for Rust tests, which print SKIP and the reason where it is not set |
//! | `REWIND_MODEL` | the same file, for the end-to-end tests |
//! | `REWIND_SERVER_BIN` | the tritonserver executable |
//! | `REWIND_BACKEND_DIR` | for `--backend-directory`: holds `rewind/libtriton_rewind.so` |
//! | `REWIND_MODEL_REPOSITORY` | the checkout's `model_repository/`, whose models lack their checkpoint |
//! | `REWIND_CLI` | the `rewind` executable |
//! | `REWIND_CARGO_TARGET` | cargo's build folder, so that CMake's build finds everything built |
//!
//! All are absolute paths.

use std::path::{Path, PathBuf};

use crate::project::Project;
use crate::setup::{Assembly, Tools};

/// For the Rust tests.
pub(crate) fn unit_tests(tools: &Tools) -> [(&'static str, &Path); 1] {
    [("REWIND_DEMO_MODEL", &tools.model)]
}

/// For the end-to-end tests and benches.
pub(crate) fn end_to_end(
    project: &Project,
    tools: &Tools,
    assembly: &Assembly,
) -> [(&'static str, PathBuf); 6] {
    [
        ("REWIND_MODEL", tools.model.clone()),
        ("REWIND_SERVER_BIN", tools.server.binary().to_owned()),
        ("REWIND_BACKEND_DIR", assembly.backends.clone()),
        ("REWIND_MODEL_REPOSITORY", project.path("model_repository")),
        ("REWIND_CLI", assembly.cli.clone()),
        ("REWIND_CARGO_TARGET", project.target("")),
    ]
}
