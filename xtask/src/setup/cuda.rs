//! nvcc, which compiles the GPU kernels.
//!
//! It is fetched for what cannot do without (`test`, `gpu-check`, `bench gpu`), and otherwise only where
//! there is a GPU to run the kernels on: the demo on a laptop needs no compiler for a chip it has not.
//! A machine's own CUDA is used if it is new enough.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rewind_kernels_build::Nvcc;

use super::stamp::Stamp;
use super::venv::Python;
use super::wheel;
use crate::process;
use crate::progress::Steps;
use crate::project::Project;

const PIN: &str = include_str!("../../pins/cuda.txt");

/// Where the wheels keep CUDA.
const HOME: &str = "nvidia/cu13";

/// Who needs the kernels compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// A chore that is about them.
    Needed,
    /// A chore that runs without them where there is no GPU.
    ForAGpu,
}

pub(super) fn set_up(
    project: &Project,
    python: &Python,
    kernels: Kernels,
    steps: &mut Steps,
) -> Result<()> {
    let home = project.state("cuda");
    let nvcc = home.join("bin/nvcc");
    let stamp = Stamp::new(project, "cuda", &[PIN]);
    let have = match Nvcc::find(&home) {
        Ok(found) => found.path != nvcc || stamp.holds(&nvcc),
        Err(_) => false,
    };
    if have || kernels == Kernels::ForAGpu && !gpu_present() {
        return Ok(());
    }
    steps.run("CUDA's compiler, for the GPU kernels (104 MB)", |activity| {
        stamp.lift()?;
        wheel::unpack(project, python, "cuda", &home, activity, wanted)?;
        // The kernels' build script looks for this folder when it runs, and cargo cannot be told to watch
        // what does not exist yet.
        let script = project.path("kernels/build.rs");
        File::options()
            .append(true)
            .open(&script)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .with_context(|| format!("cannot touch {}", script.display()))?;
        stamp.set()
    })
}

/// True where a driver shows a GPU. Its library alone proves nothing: containers have it without one.
pub(crate) fn gpu_present() -> bool {
    // The first two are Linux's, the third is that of Windows' subsystem.
    ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"].iter().any(|device| Path::new(device).exists())
        || process::works("nvidia-smi", &["--list-gpus"])
}

/// What nvcc needs to make device code: no libraries, no linker, no C++ library of CUDA's own.
fn wanted(entry: &str) -> Option<PathBuf> {
    let path = Path::new(entry).strip_prefix(HOME).ok()?;
    let folder = ["bin", "nvvm", "include"].iter().any(|folder| path.starts_with(folder));
    let unused =
        ["include/cccl", "bin/nvlink", "bin/bin2c"].iter().any(|name| path.starts_with(name));
    (folder && !unused).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_kept_and_what_only_linking_needs_is_not() {
        for (entry, kept) in [
            ("nvidia/cu13/bin/nvcc", Some("bin/nvcc")),
            ("nvidia/cu13/nvvm/bin/cicc", Some("nvvm/bin/cicc")),
            ("nvidia/cu13/include/nv/target", Some("include/nv/target")),
            ("nvidia/cu13/include/cccl/cub/cub.cuh", None),
            ("nvidia/cu13/bin/nvlink", None),
            ("nvidia/cu13/lib/libcudart.so.13", None),
            ("nvidia_nvvm-13.0.88.dist-info/METADATA", None),
        ] {
            assert_eq!(wanted(entry), kept.map(PathBuf::from), "{entry}");
        }
    }

    #[test]
    fn every_pin_has_hashes_for_both_processors() {
        let packages = PIN.lines().filter(|line| line.contains("==")).count();
        assert_eq!((packages, PIN.matches("--hash=sha256:").count()), (5, 10));
    }
}
