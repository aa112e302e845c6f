//! The build, and the folders a server is pointed at.
//!
//! ```text
//! .rewind/server/
//!   backends/rewind/libtriton_rewind.so
//!   models/smollm2/                        config.pbtxt, 1/model.gguf
//!   models_iterative/smollm2_iterative/    config.pbtxt, 1/model.gguf
//! ```
//!
//! The two models have a repository each because a server loads all it finds, and one demo needs one model.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::BuildEnvironment;
use crate::process;
use crate::project::Project;

/// The library, by the name under which Triton looks for it.
pub(crate) const LIBRARY: &str = "libtriton_rewind.so";

/// What a server needs to serve the demo model, in place.
#[derive(Debug, Clone)]
pub(crate) struct Assembly {
    /// For `--backend-directory`.
    pub(crate) backends: PathBuf,
    /// Repository of the in-flight model `smollm2`.
    pub(crate) models: PathBuf,
    /// Repository of the iterative model `smollm2_iterative`.
    pub(crate) models_iterative: PathBuf,
    /// The backend in `backends`.
    pub(crate) library: PathBuf,
    /// The `rewind` command.
    pub(crate) cli: PathBuf,
}

impl Assembly {
    /// Brings the folders up to date with the last build. What is up to date already is not written again, so that a
    /// server running from them is not disturbed.
    pub(crate) fn lay_out(project: &Project, model: &Path) -> Result<Self> {
        let home = project.state("server");
        let assembly = Self {
            backends: home.join("backends"),
            models: home.join("models"),
            models_iterative: home.join("models_iterative"),
            library: home.join("backends/rewind").join(LIBRARY),
            cli: project.release("rewind"),
        };
        place(&project.release(LIBRARY), &assembly.library)?;
        for (repository, name) in
            [(&assembly.models, "smollm2"), (&assembly.models_iterative, "smollm2_iterative")]
        {
            let config = project.path("model_repository").join(name).join("config.pbtxt");
            place(&config, &repository.join(name).join("config.pbtxt"))?;
            link(model, &repository.join(name).join("1/model.gguf"))?;
        }
        Ok(assembly)
    }
}

/// Builds the backend and the `rewind` command, release profile, with cargo's own progress in view.
pub(super) fn build(project: &Project, environment: &BuildEnvironment) -> Result<()> {
    let mut cargo = project.cargo(&[
        "build",
        "--release",
        "--package",
        "rewind-triton",
        "--package",
        "rewind-cli",
    ]);
    cargo.envs(environment.variables());
    process::visible(cargo).context("cannot build the backend")?;
    let library = project.release(LIBRARY);
    ensure!(library.exists(), "cargo built no {}", library.display());
    Ok(())
}

/// Copies `from` to `to` if they differ. The copy appears under its name all at once: a server that has the old file
/// mapped keeps the old file.
pub(crate) fn place(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> io::Result<()> {
        let source = fs::metadata(from)?;
        let modified = source.modified()?;
        let unchanged = fs::metadata(to).is_ok_and(|target| {
            target.len() == source.len() && target.modified().is_ok_and(|time| time == modified)
        });
        if unchanged {
            return Ok(());
        }
        let part = to.with_added_extension("part");
        fs::copy(from, &part)?;
        fs::File::options().write(true).open(&part)?.set_modified(modified)?;
        fs::rename(&part, to)
    };
    super::make_parent(to)?;
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Gives `file` a second name, by the cheapest means the file system has.
pub(crate) fn link(file: &Path, name: &Path) -> Result<()> {
    super::make_parent(name)?;
    if same_file(file, name) {
        return Ok(());
    }
    super::clear(name)?;
    match fs::hard_link(file, name) {
        Ok(()) => Ok(()),
        Err(_) => place(file, name),
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) else { return false };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
        || one.len() == other.len()
            && one.modified().ok().is_some_and(|time| other.modified().ok() == Some(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_its_source_and_is_left_alone_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("deep/to"));
        fs::write(&from, "one").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "one");

        // Same length and time: taken for the same, so a mark in the copy survives.
        let time = fs::metadata(&from).unwrap().modified().unwrap();
        fs::write(&to, "1ne").unwrap();
        fs::File::options().write(true).open(&to).unwrap().set_modified(time).unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "1ne");

        fs::write(&from, "three").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "three");
    }

    #[test]
    fn a_link_is_replaced_when_the_model_is() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let name = folder.path().join("1/model.gguf");
        fs::write(&first, "a").unwrap();
        fs::write(&second, "bb").unwrap();
        link(&first, &name).unwrap();
        link(&first, &name).unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), "a");
        link(&second, &name).unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), "bb");
    }
}
