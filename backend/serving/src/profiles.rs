//! The profiles that requests of one model can name.
//!
//! The built-in ones, and the file that the model's options name. Requests never name files: what a
//! server reads is its owner's choice.

use std::collections::BTreeMap;
use std::path::Path;

use rewind_monitor::Profile;

use crate::error::RequestError;
use crate::load_error::LoadError;
use crate::nearest::nearest;
use crate::value::shortened;

/// Profiles by name, one of them the default.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    by_name: BTreeMap<String, Profile>,
    default: String,
}

impl Profiles {
    /// All built-in profiles, with `default` the one of requests that name none: a built-in name, or
    /// the path of a `.toml` file, whose profile replaces a built-in one of the same name.
    pub(crate) fn load(default: &str) -> Result<Self, LoadError> {
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| LoadError::Profile { name, source }
        };
        let mut by_name = BTreeMap::new();
        for name in Profile::builtin_names() {
            by_name.insert(name.to_owned(), Profile::builtin(name).map_err(failed(name))?);
        }
        let default = if default.ends_with(".toml") {
            let path = Path::new(default);
            let text = std::fs::read_to_string(path)
                .map_err(|source| LoadError::ProfileFile { path: path.to_owned(), source })?;
            let profile = Profile::parse(&text).map_err(failed(default))?;
            let name = profile.name.clone();
            by_name.insert(name.clone(), profile);
            name
        } else {
            Profile::builtin(default).map_err(failed(default))?.name
        };
        Ok(Self { by_name, default })
    }

    /// The profile of this name; of no name, the default.
    pub(crate) fn get(&self, name: Option<&str>) -> Result<&Profile, RequestError> {
        let name = name.unwrap_or(&self.default);
        self.by_name.get(name).ok_or_else(|| RequestError::UnknownProfile {
            name: shortened(name),
            known: self.by_name.keys().cloned().collect(),
            nearest: nearest(name, self.by_name.keys().map(String::as_str)).map(str::to_owned),
        })
    }

    /// Every profile.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_the_default_beside_the_built_in_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("medical.toml");
        let text = Profile::builtin("default").unwrap().to_toml();
        std::fs::write(&path, text.replace("\"default\"", "\"medicine\"")).unwrap();
        let profiles = Profiles::load(path.to_str().unwrap()).unwrap();
        assert_eq!(profiles.get(None).unwrap().name, "medicine");
        assert_eq!(profiles.get(Some("default")).unwrap().name, "default");
        let long = profiles.get(Some(&"x".repeat(1 << 20))).unwrap_err().to_string();
        assert!(long.len() < 300, "{} bytes", long.len());
        let error = profiles.get(Some("defualt")).unwrap_err().to_string();
        assert!(error.contains("default, medicine") && error.contains("did you mean"), "{error}");
    }

    #[test]
    fn load_errors_name_the_profile() {
        let unknown = Profiles::load("nope").unwrap_err().to_string();
        assert!(unknown.contains("nope") && unknown.contains("default"), "{unknown}");
        let missing = Profiles::load("/nowhere/p.toml").unwrap_err().to_string();
        assert!(missing.contains("/nowhere/p.toml"), "{missing}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.toml");
        std::fs::write(&path, "version = 1\nname = 3").unwrap();
        let bad = Profiles::load(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(bad.contains("bad.toml") && bad.contains("name"), "{bad}");
    }
}
