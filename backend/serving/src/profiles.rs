//! The profiles that requests of one model can name.
//!
//! The built-in ones, those of the folder that the model's options name, and the file that they name.
//! Requests never name files: what a server reads is its owner's choice.

use std::collections::BTreeMap;
use std::path::Path;

use rewind_monitor::profile::AUTO;
use rewind_monitor::{DetectorName, Profile};

use crate::error::RequestError;
use crate::load_error::LoadError;
use crate::nearest::nearest;
use crate::value::shortened;

/// Profiles by name, one of them, or [`AUTO`], the default.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    by_name: BTreeMap<String, Profile>,
    default: String,
}

impl Profiles {
    /// The built-in profiles and those of the `.toml` files in `folder`, with `default` the one of
    /// requests that name none: the name of one of them, [`AUTO`], or the path of a `.toml` file. A file's
    /// profile replaces a built-in one of the same name, and the default file's any other.
    pub(crate) fn load(default: &str, folder: Option<&Path>) -> Result<Self, LoadError> {
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| LoadError::Profile { name, source }
        };
        let mut by_name = BTreeMap::new();
        for name in Profile::builtin_names() {
            by_name.insert(name.to_owned(), Profile::builtin(name).map_err(failed(name))?);
        }
        if let Some(folder) = folder {
            by_name.extend(read_folder(folder)?);
        }
        let default = if default.ends_with(".toml") {
            let profile = read(Path::new(default))?;
            let name = profile.name.clone();
            by_name.insert(name.clone(), profile);
            name
        } else {
            default.to_owned()
        };
        let profiles = Self { by_name, default };
        profiles.select(None).map_err(LoadError::DefaultProfile)?;
        Ok(profiles)
    }

    /// Checks that the default can judge by this detector.
    ///
    /// # Errors
    /// It has no weights for it.
    pub(crate) fn check(&self, detector: DetectorName) -> Result<(), LoadError> {
        let default = self.select(None).map_err(LoadError::DefaultProfile)?;
        for profile in default.all() {
            let name = profile.name.clone();
            profile.gate(detector, 1.0).map_err(|source| LoadError::Profile { name, source })?;
        }
        Ok(())
    }

    /// The profile of this name, or those that [`AUTO`] chooses from; of no name, the default.
    pub(crate) fn select(&self, name: Option<&str>) -> Result<Selected<'_>, RequestError> {
        let name = name.unwrap_or(&self.default);
        if name == AUTO {
            let candidates: Vec<_> = self.candidates().collect();
            return match candidates.is_empty() {
                true => Err(RequestError::NothingToChoose),
                false => Ok(Selected::Auto(candidates)),
            };
        }
        let known = || {
            let auto = self.candidates().next().map(|_| AUTO);
            auto.into_iter().chain(self.by_name.keys().map(String::as_str))
        };
        self.by_name.get(name).map(Selected::One).ok_or_else(|| RequestError::UnknownProfile {
            name: shortened(name),
            known: known().map(str::to_owned).collect(),
            nearest: nearest(name, known()).map(str::to_owned),
        })
    }

    /// Every profile.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.by_name.values()
    }

    /// Profiles that say what their prompts look like, by name.
    fn candidates(&self) -> impl Iterator<Item = &Profile> {
        self.iter().filter(|profile| profile.prompt.is_some())
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Selected<'a> {
    /// One profile.
    One(&'a Profile),
    /// Those that a prompt chooses from, by name; at least one.
    Auto(Vec<&'a Profile>),
}

impl<'a> Selected<'a> {
    /// All of them, at least one.
    pub(crate) fn all(&self) -> &[&'a Profile] {
        match self {
            Self::One(profile) => std::slice::from_ref(profile),
            Self::Auto(profiles) => profiles,
        }
    }
}

fn read(path: &Path) -> Result<Profile, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::ProfileFile { path: path.to_owned(), source })?;
    let failed = |source| LoadError::Profile { name: path.display().to_string(), source };
    Profile::parse(&text).map_err(failed)
}

/// The profiles of a folder's `.toml` files, in order of the files' names.
fn read_folder(folder: &Path) -> Result<BTreeMap<String, Profile>, LoadError> {
    let failed = |source| LoadError::ProfileFile { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(LoadError::NoProfiles { folder: folder.to_owned() });
    }
    let mut by_name = BTreeMap::new();
    for path in paths {
        let profile = read(&path)?;
        let name = profile.name.clone();
        if by_name.insert(name.clone(), profile).is_some() {
            return Err(LoadError::SameProfile { name, path });
        }
    }
    Ok(by_name)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A profile file's text; `mean` is that of the prompts it is for.
    fn text(name: &str, mean: Option<f64>) -> String {
        let mut text = Profile::builtin("default").unwrap().to_toml();
        text = text.replace("\"default\"", &format!("{name:?}"));
        if let Some(mean) = mean {
            text.push_str(&format!(
                "[prompt]\nmean = {mean:?}\nmean_deviation = 0.5\nspread = 1.0\nspread_deviation = 0.5\n"
            ));
        }
        text
    }

    fn folder(files: &[(&str, String)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn name(selected: Result<Selected<'_>, RequestError>) -> String {
        match selected.unwrap() {
            Selected::One(profile) => profile.name.clone(),
            Selected::Auto(profiles) => {
                profiles.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>().join("|")
            }
        }
    }

    #[test]
    fn a_file_becomes_the_default_beside_the_built_in_ones() {
        let folder = folder(&[("medical.toml", text("medicine", None))]);
        let path = folder.path().join("medical.toml");
        let profiles = Profiles::load(path.to_str().unwrap(), None).unwrap();
        assert_eq!(name(profiles.select(None)), "medicine");
        assert_eq!(name(profiles.select(Some("default"))), "default");
        let long = profiles.select(Some(&"x".repeat(1 << 20))).unwrap_err().to_string();
        assert!(long.len() < 300, "{} bytes", long.len());
        let error = profiles.select(Some("defualt")).unwrap_err().to_string();
        assert!(error.contains("default, medicine") && error.contains("did you mean"), "{error}");
        assert!(!error.contains("auto"), "{error}");
    }

    #[test]
    fn a_folder_gives_all_its_profiles() {
        let folder = folder(&[
            ("b.toml", text("code", Some(1.0))),
            ("a.toml", text("prose", Some(3.0))),
            ("c.toml", text("default", None)),
            ("notes.txt", "not a profile".into()),
        ]);
        let load = |default: &str| Profiles::load(default, Some(folder.path()));
        let profiles = load("code").unwrap();
        assert_eq!(name(profiles.select(None)), "code");
        assert_eq!(name(profiles.select(Some("prose"))), "prose");
        // By name, and only those that say what their prompts look like.
        assert_eq!(name(profiles.select(Some("auto"))), "code|prose");
        assert_eq!(name(load("auto").unwrap().select(None)), "code|prose");
        let error = profiles.select(Some("pros")).unwrap_err().to_string();
        assert!(error.contains("auto, code, default, prose"), "{error}");
    }

    #[test]
    fn load_errors_name_the_profile() {
        let told = |default: &str, folder: Option<&Path>| {
            Profiles::load(default, folder).unwrap_err().to_string()
        };
        let unknown = told("nope", None);
        assert!(unknown.contains("nope") && unknown.contains("default"), "{unknown}");
        let missing = told("/nowhere/p.toml", None);
        assert!(missing.contains("/nowhere/p.toml"), "{missing}");
        let missing = told("default", Some(Path::new("/nowhere/profiles")));
        assert!(missing.contains("/nowhere/profiles"), "{missing}");
        let bad = folder(&[("bad.toml", "version = 1\nname = 3".into())]);
        let bad = told(bad.path().join("bad.toml").to_str().unwrap(), None);
        assert!(bad.contains("bad.toml") && bad.contains("name"), "{bad}");
        let empty = folder(&[("readme.md", String::new())]);
        let empty = told("default", Some(empty.path()));
        assert!(empty.contains("no .toml file"), "{empty}");
        let twice = folder(&[("a.toml", text("x", None)), ("b.toml", text("x", None))]);
        let twice = told("default", Some(twice.path()));
        assert!(twice.contains("b.toml") && twice.contains("\"x\""), "{twice}");
    }

    #[test]
    fn auto_needs_profiles_that_say_what_their_prompts_look_like() {
        let error = Profiles::load("auto", None).unwrap_err().to_string();
        assert!(error.contains("[prompt]") && error.contains("profiles"), "{error}");
        let profiles = Profiles::load("default", None).unwrap();
        assert_eq!(profiles.select(Some("auto")).unwrap_err(), RequestError::NothingToChoose);
    }

    #[test]
    fn the_default_must_have_the_detector() {
        let profiles = Profiles::load("default", None).unwrap();
        profiles.check(DetectorName::Margin).unwrap();
        let error = profiles.check(DetectorName::Fused).unwrap_err().to_string();
        assert!(error.contains("\"default\"") && error.contains("rewind calibrate"), "{error}");
    }
}
