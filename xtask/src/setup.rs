//! Making a machine ready, once.
//!
//! Every part is stamped with a digest of what it was made from (pins, sources of the recipe), so that a second run finds
//! the stamps in place and touches nothing. A part is built beside its final place and renamed into it, so that an
//! interrupted set-up never leaves half a part behind.

mod assemble;
mod cuda;
mod libclang;
mod llama_cpp;
mod model;
mod perf_analyzer;
mod server;
mod stamp;
mod venv;
mod wheel;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use assemble::{Assembly, LIBRARY, link, place};
pub(crate) use cuda::{Kernels, gpu_present};
pub(crate) use llama_cpp::{CMAKE_ARGUMENTS, LlamaCpp};
pub(crate) use perf_analyzer::PerfAnalyzer;
pub(crate) use server::TritonServer;
pub(crate) use venv::Python;

use crate::progress::Steps;
use crate::project::Project;

/// Everything that has to be fetched before something can be built, served or tested.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Environment of the end-to-end tests.
    pub(crate) python: Python,
    /// The server that loads the backend.
    pub(crate) server: TritonServer,
    /// The demo checkpoint, a GGUF file.
    pub(crate) model: PathBuf,
    /// What cargo needs in its environment to build the Triton crate.
    pub(crate) build: BuildEnvironment,
}

/// Environment variables for a cargo that has to find libclang.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct BuildEnvironment(Vec<(&'static str, OsString)>);

impl BuildEnvironment {
    /// The variables, as `Command::envs` takes them.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }
}

/// Fetches whatever is missing.
pub(crate) fn tools(project: &Project, kernels: Kernels) -> Result<Tools> {
    let _lock = lock(project, LOCK)?;
    let mut steps = Steps::new();
    let python = venv::set_up(project, &mut steps)?;
    let server = server::set_up(project, &python, &mut steps)?;
    let model = model::set_up(project, &python, &mut steps)?;
    let build = libclang::set_up(project, Some(&python), &mut steps)?;
    cuda::set_up(project, &python, kernels, &mut steps)?;
    steps.finish();
    Ok(Tools { python, server, model, build })
}

/// Builds llama.cpp and makes its weights from the demo model, for the benches that compare with it.
pub(crate) fn llama_cpp(project: &Project, tools: &Tools) -> Result<LlamaCpp> {
    // A lock of its own: it takes many minutes, and touches nothing that another chore waits for.
    let _lock = lock(project, "llama-cpp.lock")?;
    let mut steps = Steps::new();
    let llama_cpp = llama_cpp::set_up(project, &tools.model, &mut steps)?;
    steps.finish();
    Ok(llama_cpp)
}

/// Fetches what drives a server under load, if it is missing.
pub(crate) fn perf_analyzer(project: &Project, tools: &Tools) -> Result<PerfAnalyzer> {
    let _lock = lock(project, LOCK)?;
    let mut steps = Steps::new();
    let analyzer = perf_analyzer::set_up(project, &tools.python, &mut steps)?;
    steps.finish();
    Ok(analyzer)
}

/// Fetches only what a cargo build of the whole workspace needs.
pub(crate) fn build_environment(project: &Project) -> Result<BuildEnvironment> {
    let _lock = lock(project, LOCK)?;
    let mut steps = Steps::new();
    let build = libclang::set_up(project, None, &mut steps)?;
    steps.finish();
    Ok(build)
}

/// Fetches whatever is missing, builds the backend, and lays out what a server is pointed at.
pub(crate) fn everything(project: &Project, kernels: Kernels) -> Result<(Tools, Assembly)> {
    let tools = tools(project, kernels)?;
    assemble::build(project, &tools.build)?;
    let assembly = Assembly::lay_out(project, &tools.model)?;
    Ok((tools, assembly))
}

/// Builds the backend and the command-line tool, release profile.
pub(crate) fn build(project: &Project, environment: &BuildEnvironment) -> Result<()> {
    assemble::build(project, environment)
}

/// Held by every set-up that has none of its own.
const LOCK: &str = "lock";

/// Two set-ups at once would write into the same folders; the second waits.
fn lock(project: &Project, name: &str) -> Result<File> {
    let path = project.state(name);
    make_parent(&path)?;
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("Waiting for another set-up of this checkout …");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the folder {}", parent.display())),
        None => Ok(()),
    }
}

/// Removes a file or folder, present or not.
fn clear(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
