//! The note that says what a part of the set-up was made from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::project::Project;

/// A digest of a recipe, and the file that holds the digest of the recipe last followed.
#[derive(Debug)]
pub(super) struct Stamp {
    file: PathBuf,
    digest: String,
}

impl Stamp {
    /// The stamp of the part `name`, made from `recipe`.
    pub(super) fn new(project: &Project, name: &str, recipe: &[&str]) -> Self {
        Self::at(project.state("stamps").join(name), recipe)
    }

    fn at(file: PathBuf, recipe: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in recipe {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self { file, digest: hex(&digest.finalize()) }
    }

    /// True if this very recipe was followed to the end and its result, `witness`, is still there.
    pub(super) fn holds(&self, witness: &Path) -> bool {
        witness.exists() && fs::read_to_string(&self.file).is_ok_and(|found| found == self.digest)
    }

    /// Notes that the recipe was followed to the end.
    pub(super) fn set(&self) -> Result<()> {
        super::make_parent(&self.file)?;
        fs::write(&self.file, &self.digest)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Forgets the last recipe, before anything made from it is touched.
    pub(super) fn lift(&self) -> Result<()> {
        super::clear(&self.file)
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_for_its_own_recipe_while_the_witness_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let witness = folder.path().join("made");
        let file = folder.path().join("stamps/part");
        let stamp = Stamp::at(file.clone(), &["one", "two"]);

        assert!(!stamp.holds(&witness));
        fs::write(&witness, "").unwrap();
        assert!(!stamp.holds(&witness), "made, but nothing says from what");
        stamp.set().unwrap();
        assert!(stamp.holds(&witness));

        assert!(!Stamp::at(file.clone(), &["one", "three"]).holds(&witness));
        assert!(!Stamp::at(file, &["onet", "wo"]).holds(&witness));
        stamp.lift().unwrap();
        assert!(!stamp.holds(&witness));
        stamp.set().unwrap();
        fs::remove_file(&witness).unwrap();
        assert!(!stamp.holds(&witness));
    }

    #[test]
    fn hex_has_two_digits_a_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
