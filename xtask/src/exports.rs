//! What the backend's library lets the world see: Triton's entry points and nothing else.
//!
//! A server loads many libraries into one process. Any other exported symbol could be taken for another library's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSymbol};

const PREFIX: &str = "TRITONBACKEND_";

/// Entry points without which the library is no backend, or not the one that was meant.
const EXPECTED: [&str; 9] = [
    "TRITONBACKEND_Initialize",
    "TRITONBACKEND_Finalize",
    "TRITONBACKEND_GetBackendAttribute",
    "TRITONBACKEND_ModelInitialize",
    "TRITONBACKEND_ModelFinalize",
    "TRITONBACKEND_ModelInstanceInitialize",
    "TRITONBACKEND_ModelInstanceFinalize",
    "TRITONBACKEND_ModelInstanceExecute",
    "TRITONBACKEND_ModelInstanceReady",
];

/// Checks the dynamic symbol table of `library` and returns how many entry points it exports.
///
/// # Errors
/// The file cannot be read as a library, exports a foreign symbol, or lacks an entry point: all of them are named.
pub(crate) fn check(library: &Path) -> Result<usize> {
    let read = || -> Result<Vec<String>> {
        let data = fs::read(library)?;
        let file = object::File::parse(&*data)?;
        let symbols = file.dynamic_symbols().filter(|symbol| symbol.is_definition());
        Ok(symbols.map(|symbol| symbol.name().map(str::to_owned)).collect::<Result<_, _>>()?)
    };
    let exported = read().with_context(|| format!("cannot read {}", library.display()))?;
    judge(&exported)
}

fn judge(exported: &[String]) -> Result<usize> {
    let foreign: Vec<&str> =
        exported.iter().map(String::as_str).filter(|name| !name.starts_with(PREFIX)).collect();
    if !foreign.is_empty() {
        bail!("exported besides {PREFIX}*: {}", foreign.join(", "));
    }
    let missing: Vec<&str> = EXPECTED
        .into_iter()
        .filter(|expected| !exported.iter().any(|name| name == expected))
        .collect();
    ensure!(missing.is_empty(), "not exported: {}", missing.join(", "));
    Ok(exported.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Vec<String> {
        EXPECTED.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_entry_points_alone_are_right() {
        assert_eq!(judge(&expected()).unwrap(), EXPECTED.len());
    }

    #[test]
    fn a_foreign_symbol_is_named() {
        let mut exported = expected();
        exported.push("rust_eh_personality".into());
        assert!(judge(&exported).unwrap_err().to_string().contains("rust_eh_personality"));
    }

    #[test]
    fn a_missing_entry_point_is_named() {
        let error = judge(&expected()[1..]).unwrap_err().to_string();
        assert!(error.contains("TRITONBACKEND_Initialize"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        let error = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap_err();
        assert!(error.to_string().contains("Cargo.toml"), "{error}");
    }
}
