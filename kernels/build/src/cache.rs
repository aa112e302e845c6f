//! What was compiled once is not compiled again.
//!
//! A folder for each `.cu` file and digest. It appears under its name all at once, so whatever has the
//! name is whole, and two builds at the same time do no harm: the first to finish wins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use sha2::{Digest, Sha256};

use crate::BuildError;

/// The digest of all that a result depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Adds a part. Lengths keep ("ab", "c") and ("a", "bc") apart.
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// The folder below `cache` of what is called `name`.
    pub(crate) fn folder(self, cache: &Path, name: &str) -> PathBuf {
        let digest: String = self.0.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        cache.join(format!("{name}-{digest}"))
    }
}

/// Has `make` fill the folder, unless it is there.
pub(crate) fn filled(
    folder: &Path,
    make: impl FnOnce(&Path) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    if folder.is_dir() {
        return Ok(());
    }
    let part = folder.with_extension(format!("part-{}", process::id()));
    // Left behind by a build that was killed.
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(BuildError::io("create", &part))?;
    let made = make(&part).and_then(|()| match fs::rename(&part, folder) {
        Ok(()) => Ok(()),
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(BuildError::io("create", folder)(error)),
    });
    // Still there if something failed, or another build was first.
    let _ = fs::remove_dir_all(&part);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[&str]) -> PathBuf {
        let mut key = Key::default();
        parts.iter().for_each(|part| key.add(part.as_bytes()));
        key.folder(Path::new("cache"), "norm")
    }

    #[test]
    fn a_folder_is_named_by_what_it_depends_on() {
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert!(key(&[]).to_string_lossy().starts_with("cache/norm-"), "{:?}", key(&[]));
    }

    #[test]
    fn a_folder_is_filled_once() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("deep/norm-1");
        let write = |text: &'static str| {
            move |part: &Path| {
                fs::write(part.join("file"), text).map_err(BuildError::io("write", part))
            }
        };
        filled(&folder, write("first")).unwrap();
        filled(&folder, write("second")).unwrap();
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "first");
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("norm-1");
        let refuse =
            |_: &Path| Err(BuildError::Refused { file: "norm.cu".into(), message: "no".into() });
        filled(&folder, refuse).unwrap_err();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
