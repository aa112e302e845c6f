//! The compiler: where it may be, and which are new enough.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Major version of the oldest CUDA whose nvcc is used. Earlier ones lack targets, and the bits of the
/// kernels were only ever looked at as this one and later ones compile them.
pub const OLDEST: u32 = 13;

/// An nvcc that can build the kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvcc {
    /// The executable.
    pub path: PathBuf,
    /// Full version, such as `13.0.88`.
    pub version: String,
}

/// No usable compiler; says where was looked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NoNvcc {
    /// What each place had instead; none where nothing names a place.
    pub passed_over: Vec<String>,
}

impl fmt::Display for NoNvcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no nvcc of CUDA {OLDEST} or later: ")?;
        if self.passed_over.is_empty() {
            let named = Nvcc::VARIABLES.join(" nor ");
            return write!(f, "neither {named} is set, and PATH has none");
        }
        f.write_str(&self.passed_over.join(", "))
    }
}

/// A place where nvcc may be.
#[derive(Clone, Debug)]
struct Place {
    /// As a person knows it.
    name: String,
    executable: PathBuf,
}

impl Nvcc {
    /// The environment variables that name a CUDA, in the order in which they are looked at.
    pub const VARIABLES: [&'static str; 2] = ["CUDA_HOME", "CUDA_PATH"];

    /// The first that is new enough, of: `$CUDA_HOME`, `$CUDA_PATH`, the CUDA that `cargo xtask` fetched
    /// (`set_up`, a folder), `PATH`. An older one is passed over, whoever named it: a machine's CUDA 12
    /// serves other programs and is no reason to fail.
    ///
    /// # Errors
    /// There is none.
    pub fn find(set_up: &Path) -> Result<Self, NoNvcc> {
        let named = Self::VARIABLES.iter().filter_map(|name| Some((*name, env::var_os(name)?)));
        let path = env::var_os("PATH").unwrap_or_default();
        Self::first(&places(named, set_up, &path))
    }

    fn first(places: &[Place]) -> Result<Self, NoNvcc> {
        let mut passed_over = Vec::new();
        for place in places {
            match Self::at(&place.executable) {
                Ok(nvcc) => return Ok(nvcc),
                Err(why) => passed_over.push(format!("{} {why}", place.name)),
            }
        }
        Err(NoNvcc { passed_over })
    }

    fn at(executable: &Path) -> Result<Self, String> {
        let output = Command::new(executable)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("has none that starts ({error})"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = version(&text).ok_or("has one that tells no version")?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < OLDEST) {
            return Err(format!("has {version}"));
        }
        Ok(Self { path: executable.to_owned(), version: version.to_owned() })
    }
}

fn places(
    named: impl Iterator<Item = (&'static str, OsString)>,
    set_up: &Path,
    path: &OsString,
) -> Vec<Place> {
    let within = |name: &str, home: &Path| Place {
        name: name.to_owned(),
        executable: home.join("bin/nvcc"),
    };
    let mut places: Vec<Place> = named
        .filter(|(_, home)| !home.is_empty())
        .map(|(name, home)| within(name, Path::new(&home)))
        .collect();
    if set_up.is_dir() {
        places.push(within(&set_up.to_string_lossy(), set_up));
    }
    let on_path = env::split_paths(path).map(|folder| folder.join("nvcc"));
    places.extend(
        on_path.filter(|file| file.is_file()).map(|executable| Place {
            name: format!("PATH ({})", executable.display()),
            executable,
        }),
    );
    places
}

/// `13.0.88` out of "Cuda compilation tools, release 13.0, V13.0.88".
fn version(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.contains("release "))?;
    let version = line.rsplit_once(", V")?.1.trim();
    version.starts_with(|first: char| first.is_ascii_digit()).then_some(version)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pretend(home: &Path, version: &str) {
        fs::create_dir_all(home.join("bin")).unwrap();
        let nvcc = home.join("bin/nvcc");
        let script = format!("#!/bin/sh\necho 'Cuda compilation tools, release 1.2, V{version}'\n");
        fs::write(&nvcc, script).unwrap();
        fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_version_is_the_one_behind_the_v() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n\
                    Build cuda_13.0.r13.0/compiler.36424714_0\n";
        assert_eq!(version(text), Some("13.0.88"));
        assert_eq!(version("g++ (Debian) 12.2.0"), None);
    }

    #[test]
    fn the_first_that_is_new_enough_wins() {
        let folder = tempfile::tempdir().unwrap();
        let home = |name: &str| folder.path().join(name);
        pretend(&home("old"), "12.4.131");
        pretend(&home("set-up"), "13.0.88");
        pretend(&home("new"), "14.1.2");
        let path: OsString = home("new/bin").into();
        let old = || [("CUDA_HOME", home("old").into_os_string())].into_iter();

        let found = Nvcc::first(&places(old(), &home("set-up"), &path)).unwrap();
        assert_eq!(found.path, home("set-up/bin/nvcc"));
        assert_eq!(found.version, "13.0.88");
        let found = Nvcc::first(&places(old(), &home("missing"), &path)).unwrap();
        assert_eq!(found.version, "14.1.2");
        let error = Nvcc::first(&places(old(), &home("missing"), &OsString::new())).unwrap_err();
        assert_eq!(error.to_string(), "no nvcc of CUDA 13 or later: CUDA_HOME has 12.4.131");
    }

    #[test]
    fn a_place_without_nvcc_is_told_from_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let named = [("CUDA_PATH", folder.path().as_os_str().to_owned())].into_iter();
        let missing = folder.path().join("missing");
        let error = Nvcc::first(&places(named, &missing, &OsString::new())).unwrap_err();
        assert!(error.to_string().contains("CUDA_PATH has none that starts"), "{error}");
        let nowhere = places(std::iter::empty(), &missing, &OsString::new());
        let error = Nvcc::first(&nowhere).unwrap_err();
        assert!(error.to_string().ends_with("and PATH has none"), "{error}");
    }
}
