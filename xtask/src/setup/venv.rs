//! Python environments: pinned, hashed, inside the project.
//!
//! The end-to-end tests have one, and llama.cpp, which the benches compare with, another.
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
use crate::progress::{Activity, Steps};
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

    /// A pip command that installs what the file `requirements` pins.
    pub(super) fn install(&self, requirements: &Path) -> Command {
        let mut install = self.pip("install");
        install.arg("--requirement").arg(requirements);
        if let Some(packages) = &self.packages {
            install.arg("--target").arg(packages);
        }
        install
    }
}

/// The environment of the end-to-end tests.
pub(super) fn set_up(project: &Project, steps: &mut Steps) -> Result<Python> {
    let environment = Environment {
        name: "venv",
        heading: "Python environment for the end-to-end tests",
        requirements: "tests/requirements.txt",
        recipe: &[],
    };
    environment.set_up(project, steps, |_, _| Ok(()))
}

/// An environment below `.rewind/`, and what it is made from.
#[derive(Debug)]
pub(super) struct Environment<'a> {
    /// Of its folder and its stamp.
    pub(super) name: &'a str,
    /// What a person sees while it is made.
    pub(super) heading: &'a str,
    /// The file that pins its packages, relative to the checkout.
    pub(super) requirements: &'a str,
    /// All that `finish` depends on besides.
    pub(super) recipe: &'a [&'a str],
}

impl Environment<'_> {
    /// The environment, made anew where what it is made from or the interpreter changed; `finish` adds what pins alone
    /// cannot.
    pub(super) fn set_up(
        &self,
        project: &Project,
        steps: &mut Steps,
        finish: impl FnOnce(&Python, &Activity) -> Result<()>,
    ) -> Result<Python> {
        let requirements = project.path(self.requirements);
        let pins = fs::read_to_string(&requirements)
            .with_context(|| format!("cannot read {}", requirements.display()))?;
        let (system, version) = system_python()?;
        let home = project.state(self.name);
        let stamp =
            Stamp::new(project, self.name, &[&[&pins, version.as_str()], self.recipe].concat());
        if let Some(python) = existing(&home, &system)
            && stamp.holds(&home)
        {
            return Ok(python);
        }
        steps.run(self.heading, |activity| {
            stamp.lift()?;
            super::clear(&home)?;
            activity.says("creating");
            let python = create(&system, &home)?;
            activity.says("installing packages");
            process::capture(python.install(&requirements))
                .with_context(|| format!("cannot install the packages of {}", self.requirements))?;
            finish(&python, activity)?;
            stamp.set()?;
            Ok(python)
        })
    }
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
