//! libclang, with which bindgen reads Triton's headers.
//!
//! A machine's own is left to bindgen, which finds it as we do here. Where there is none, the pinned wheel has the
//! library. It comes without the compiler's own headers (`stddef.h` and its like); the build script of the Triton crate
//! takes the C compiler's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::BuildEnvironment;
use super::stamp::Stamp;
use super::venv::{self, Python};
use super::wheel;
use crate::progress::Steps;
use crate::project::Project;

const PIN: &str = include_str!("../../pins/libclang.txt");

/// Sets up libclang if the machine has none. Without a `python` to download with, makes one only if it is needed.
pub(super) fn set_up(
    project: &Project,
    python: Option<&Python>,
    steps: &mut Steps,
) -> Result<BuildEnvironment> {
    if env::var_os("LIBCLANG_PATH").is_some() || installed(&system_folders()) {
        return Ok(BuildEnvironment::default());
    }
    let home = project.state("libclang");
    let stamp = Stamp::new(project, "libclang", &[PIN]);
    if !stamp.holds(&home) {
        let made;
        let python = match python {
            Some(python) => python,
            None => {
                made = venv::set_up(project, steps)?;
                &made
            }
        };
        steps.run("libclang, for bindgen (23 MB)", |activity| {
            stamp.lift()?;
            wheel::unpack(project, python, "libclang", &home, activity, |entry| {
                let file = Path::new(entry).file_name()?;
                is_libclang(file.to_str()?).then(|| file.into())
            })?;
            stamp.set()
        })?;
    }
    Ok(BuildEnvironment(vec![("LIBCLANG_PATH", home.into_os_string())]))
}

/// The folders in which distributions put libclang.
fn system_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"]
            .iter()
            .map(PathBuf::from)
            .collect();
    let inside = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in inside("/usr/lib") {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("llvm") {
            folders.push(entry.path().join("lib"));
        } else if name.ends_with("-linux-gnu") {
            folders.push(entry.path());
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        folders.extend(env::split_paths(&paths));
    }
    folders
}

fn installed(folders: &[PathBuf]) -> bool {
    folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .any(|entry| entry.file_name().to_str().is_some_and(is_libclang))
}

/// `libclang.so`, `libclang.so.1`, `libclang-14.so`, `libclang-14.so.1`; not `libclang-cpp.so`, which is another library.
fn is_libclang(file: &str) -> bool {
    let Some(rest) = file.strip_prefix("libclang") else { return false };
    let Some((version, _)) = rest.split_once(".so") else { return false };
    version.is_empty()
        || version
            .strip_prefix('-')
            .is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_known_by_its_name() {
        for file in ["libclang.so", "libclang.so.1", "libclang-14.so", "libclang-14.so.14.0.6"] {
            assert!(is_libclang(file), "{file}");
        }
        for file in ["libclang-cpp.so.14", "libclang_rt.so", "libclang.a", "clang.so", "libLLVM.so"]
        {
            assert!(!is_libclang(file), "{file}");
        }
    }

    #[test]
    fn a_folder_with_libclang_is_found_among_others() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let folders = [missing, folder.path().to_owned()];
        assert!(!installed(&folders));
        fs::write(folder.path().join("libclang-20.so.1"), "").unwrap();
        assert!(installed(&folders));
    }
}
