//! A real tritonserver: the machine's own, or the one inside the pinned wheel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::stamp::Stamp;
use super::venv::Python;
use super::wheel;
use crate::progress::Steps;
use crate::project::Project;

const PIN: &str = include_str!("../../pins/tritonserver.txt");

/// Where NVIDIA's containers keep the server.
const INSTALLED: &str = "/opt/tritonserver";

/// The folder of the wheel that holds the server, kept because the binary's run path points from it to its libraries.
const BINARY: &str = "pytriton/tritonserver/bin";
const LIBRARIES: &str = "nvidia_pytriton.libs";

/// A server that can be started.
#[derive(Debug, Clone)]
pub(crate) struct TritonServer {
    binary: PathBuf,
}

impl TritonServer {
    /// A server of the tests' own.
    #[cfg(test)]
    pub(crate) fn at(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// The executable.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// The server's command, without any option yet.
    pub(crate) fn command(&self) -> Command {
        Command::new(&self.binary)
    }
}

pub(super) fn set_up(
    project: &Project,
    python: &Python,
    steps: &mut Steps,
) -> Result<TritonServer> {
    let installed = Path::new(INSTALLED).join("bin/tritonserver");
    if installed.exists() {
        return Ok(TritonServer { binary: installed });
    }
    let home = project.state("tritonserver");
    let binary = home.join(BINARY).join("tritonserver");
    let stamp = Stamp::new(project, "tritonserver", &[PIN]);
    if !stamp.holds(&binary) {
        steps.run("Triton Inference Server (53 MB)", |activity| {
            stamp.lift()?;
            wheel::unpack(project, python, "tritonserver", &home, activity, |entry| {
                let kept = entry.starts_with(BINARY) || entry.starts_with(LIBRARIES);
                kept.then(|| entry.into())
            })?;
            stamp.set()
        })?;
    }
    Ok(TritonServer { binary })
}
