//! The Python of the end-to-end tests: pinned, hashed, inside the project.
//!
//! Distributions split Python up, so there are three ways in, tried in order: `venv`, `virtualenv`, and a plain
//! `pip install --target`, which needs nothing but pip.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::stamp::Stamp;
use crate::process;
use crate::progress::Steps;
use crate::project::Project;

/// An interpreter, and where it finds the packages if not in its own environment.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    interpreter: PathBuf,
    packages: Option<PathBuf>,
}

impl Python {
    /// A Python command that sees the pinned packages.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.args(arguments).env_remove("PYTHONHOME");
        match &self.packages {
            Some(packages) => command.env("PYTHONPATH", packages),
            None => command.env_remove("PYTHONPATH"),
        };
        command
    }

    /// The interpreter itself.
    pub(crate) fn interpreter(&self) -> &Path {
        &self.interpreter
    }

    /// A pip command, quiet and without questions.
    pub(super) fn pip(&self, subcommand: &str) -> Command {
        self.command([
            "-m",
            "pip",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            subcommand,
            "--require-hashes",
        ])
    }
}

/// The environment, made anew where the requirements or the interpreter changed.
pub(super) fn set_up(project: &Project, steps: &mut Steps) -> Result<Python> {
    let requirements = project.path("tests/requirements.txt");
    let pins = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let (system, version) = system_python()?;
    let home = project.state("venv");
    let stamp = Stamp::new(project, "venv", &[&pins, &version]);
    if let Some(python) = existing(&home, &system)
        && stamp.holds(&home)
    {
        return Ok(python);
    }
    steps.run("Python environment for the end-to-end tests", |activity| {
        stamp.lift()?;
        super::clear(&home)?;
        activity.says("creating");
        let python = create(&system, &home)?;
        activity.says("installing packages");
        let mut install = python.pip("install");
        install.arg("--requirement").arg(&requirements);
        if let Some(packages) = &python.packages {
            install.arg("--target").arg(packages);
        }
        process::capture(install)
            .context("cannot install the packages of tests/requirements.txt")?;
        stamp.set()?;
        Ok(python)
    })
}

/// The machine's Python 3 and what tells one from another.
fn system_python() -> Result<(PathBuf, String)> {
    let script = "import sys; assert sys.version_info >= (3, 10), 'Python 3.10 or newer is needed'; \
                  print(sys.executable); print(sys.version)";
    let mut command = Command::new("python3");
    command.args(["-c", script]);
    let printed = process::capture(command).context(
        "a working python3, 3.10 or newer, is needed (Debian, Ubuntu: apt install python3-venv)",
    )?;
    let (executable, version) =
        printed.split_once('\n').ok_or_else(|| anyhow!("python3 printed no version"))?;
    Ok((PathBuf::from(executable), format!("{executable} {version}")))
}

fn existing(home: &Path, system: &Path) -> Option<Python> {
    let interpreter = home.join("bin/python");
    if interpreter.exists() {
        return Some(Python { interpreter, packages: None });
    }
    let packages = home.join("packages");
    packages.exists().then(|| Python { interpreter: system.to_owned(), packages: Some(packages) })
}

fn create(system: &Path, home: &Path) -> Result<Python> {
    let mut refused = Vec::new();
    for module in ["venv", "virtualenv"] {
        let mut command = Command::new(system);
        command.args(["-m", module]).arg(home);
        match process::capture(command) {
            Ok(_) => {
                return Ok(Python { interpreter: home.join("bin/python"), packages: None });
            }
            Err(error) => refused.push(format!("{error:#}")),
        }
        super::clear(home)?;
    }
    if !process::works(&system.to_string_lossy(), &["-m", "pip", "--version"]) {
        bail!(
            "this Python can neither make an environment nor install packages.\n\
             On Debian or Ubuntu: apt install python3-venv\n\n{}",
            refused.join("\n\n")
        );
    }
    let packages = home.join("packages");
    fs::create_dir_all(&packages)
        .with_context(|| format!("cannot create the folder {}", packages.display()))?;
    Ok(Python { interpreter: system.to_owned(), packages: Some(packages) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_recognised_by_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let system = Path::new("/usr/bin/python3");
        assert!(existing(folder.path(), system).is_none());

        fs::create_dir(folder.path().join("packages")).unwrap();
        let target = existing(folder.path(), system).unwrap();
        assert_eq!(target.interpreter(), system);
        assert_eq!(target.packages, Some(folder.path().join("packages")));

        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/python"), "").unwrap();
        let own = existing(folder.path(), system).unwrap();
        assert_eq!(own.interpreter(), folder.path().join("bin/python"));
        assert_eq!(own.packages, None);
    }
}
