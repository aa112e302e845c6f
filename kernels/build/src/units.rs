//! The `.cu` files of a folder, each compiled to a fat binary of its own.
//!
//! One fat binary for all would need every kernel in one compilation (slow, one name space) or a device
//! linker (which costs registers); a driver loads ten small ones as well as one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use crate::cache::{self, Key};
use crate::registers::{self, Bounds};
use crate::{BuildError, Nvcc, Usage, read_table, write_table};

/// Targets with machine code of their own.
///
/// sm_80 also runs on sm_87, sm_100 on sm_103. What is newer, sm_110 and sm_120, takes the PTX of
/// compute_80, which its driver compiles at load; code for sm_90a runs on sm_90 alone, but that is all of
/// Hopper.
pub const SASS: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100"];

/// Three front-end passes serve the five targets: sm_86 and sm_89 have nothing over sm_80 that a kernel
/// here could use.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=[sm_80,sm_86,sm_89,compute_80]",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100,code=sm_100",
];

/// Never any of the fast-math family: the kernels' bits are part of their contract, and f32 operations
/// are rounded one by one.
const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-ftz=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "-Werror",
    "all-warnings",
    // Nothing is compiled for the host, so its compiler only has to preprocess.
    "-allow-unsupported-compiler",
    "-compress-mode=size",
    "-Xptxas=-v",
    "-fatbin",
];

const BINARY: &str = "kernels.fatbin";
const TABLE: &str = "registers.tsv";

/// A compiled `.cu` file.
#[derive(Clone, Debug)]
pub struct Module {
    /// The file's name.
    pub file: String,
    /// The fat binary.
    pub binary: PathBuf,
    /// Every kernel on every target of [`SASS`].
    pub usages: Vec<Usage>,
}

/// The `.cu` files of a folder.
#[derive(Debug)]
pub struct Units {
    folder: PathBuf,
    /// Contents of all sources and headers, by name.
    texts: BTreeMap<String, String>,
}

impl Units {
    /// Reads the sources, and the headers beside them.
    ///
    /// # Errors
    /// There is no `.cu` file, or one cannot be read.
    pub fn read(folder: &Path) -> Result<Self, BuildError> {
        let mut texts = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(BuildError::io("list", folder))? {
            let path = entry.map_err(BuildError::io("list", folder))?.path();
            let source = path
                .extension()
                .and_then(OsStr::to_str)
                .is_some_and(|e| matches!(e, "cu" | "cuh" | "h"));
            if source && let Some(name) = path.file_name().and_then(OsStr::to_str) {
                let text = fs::read_to_string(&path).map_err(BuildError::io("read", &path))?;
                texts.insert(name.to_owned(), text);
            }
        }
        let units = Self { folder: folder.to_owned(), texts };
        if units.names().next().is_none() {
            return Err(BuildError::NoKernels(folder.to_owned()));
        }
        Ok(units)
    }

    /// Every file that the result depends on.
    pub fn inputs(&self) -> impl Iterator<Item = PathBuf> {
        self.texts.keys().map(|name| self.folder.join(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str).filter(|name| name.ends_with(".cu"))
    }

    /// Compiles what `cache` does not hold yet, several files at a time, and gives all in the order of
    /// their names.
    ///
    /// # Errors
    /// The first file, by name, that nvcc refuses or whose report cannot be read; the cache cannot be written.
    pub fn compile(&self, nvcc: &Nvcc, cache: &Path) -> Result<Vec<Module>, BuildError> {
        // The largest first: they take longest.
        let mut queue: Vec<&str> = self.names().collect();
        queue.sort_by_key(|name| self.texts[*name].len());
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(queue.len());
        let queue = Mutex::new(queue);
        let done = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(name) = locked(&queue).pop() {
                        let module = self.module(name, nvcc, cache);
                        locked(&done).insert(name, module);
                    }
                });
            }
        });
        done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).into_values().collect()
    }

    fn module(&self, file: &str, nvcc: &Nvcc, cache: &Path) -> Result<Module, BuildError> {
        let folder = self.key(file, nvcc).folder(cache, file.trim_end_matches(".cu"));
        cache::filled(&folder, |part| {
            let usages = self.run(nvcc, file, part)?;
            let table = part.join(TABLE);
            fs::write(&table, write_table(&usages)).map_err(BuildError::io("write", &table))
        })?;
        let table = folder.join(TABLE);
        let text = fs::read_to_string(&table).map_err(BuildError::io("read", &table))?;
        let usages = read_table(&text).ok_or_else(|| BuildError::Report {
            file: table.display().to_string(),
            message: "is no table of registers; remove its folder".to_owned(),
        })?;
        Ok(Module { file: file.to_owned(), binary: folder.join(BINARY), usages })
    }

    /// Compiler, flags, the file and all it includes.
    fn key(&self, file: &str, nvcc: &Nvcc) -> Key {
        let mut key = Key::default();
        key.add(nvcc.version.as_bytes());
        TARGETS.iter().chain(&FLAGS).for_each(|flag| key.add(flag.as_bytes()));
        for name in self.closure(file) {
            key.add(name.as_bytes());
            key.add(self.texts[name].as_bytes());
        }
        key
    }

    /// A file and those beside it that it includes, directly or not. What lies in another folder is the
    /// emulator's.
    fn closure<'a>(&'a self, file: &'a str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut open = vec![file];
        while let Some(name) = open.pop() {
            let Some((name, text)) = self.texts.get_key_value(name) else { continue };
            if found.insert(name.as_str()) {
                open.extend(text.lines().filter_map(included));
            }
        }
        found
    }

    /// Compiles a file into `part` and reads what the compiler says about it.
    fn run(&self, nvcc: &Nvcc, file: &str, part: &Path) -> Result<Vec<Usage>, BuildError> {
        let refused = |message: String| BuildError::Refused { file: file.to_owned(), message };
        // From copies, so that what is compiled is what the key was made of, and nothing else is found.
        let work = part.join("work");
        fs::create_dir(&work).map_err(BuildError::io("create", &work))?;
        for name in self.closure(file) {
            let copy = work.join(name);
            fs::write(&copy, &self.texts[name]).map_err(BuildError::io("write", &copy))?;
        }
        let mut command = Command::new(&nvcc.path);
        command.args(FLAGS);
        for target in TARGETS {
            command.args(["-gencode", target]);
        }
        // Intermediate code is kept for the launch bounds that are written in it.
        command.args(["--keep", "--keep-dir", ".", "-o"]).arg(part.join(BINARY)).arg(file);
        command.current_dir(&work);
        // nvcc takes further flags from these, which no key would know of.
        command.env_remove("NVCC_PREPEND_FLAGS").env_remove("NVCC_APPEND_FLAGS");
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|error| refused(format!("it does not start: {error}")))?;
        let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
        printed.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(refused(printed));
        }

        let unreadable = |message: String| BuildError::Report { file: file.to_owned(), message };
        let mut bounds = Bounds::new();
        for ptx in intermediates(&work)? {
            registers::read_bounds(&ptx, &mut bounds).map_err(unreadable)?;
        }
        let usages = registers::read_report(&printed, &bounds).map_err(unreadable)?;
        if usages.is_empty() {
            return Err(unreadable("holds no kernel".to_owned()));
        }
        fs::remove_dir_all(&work).map_err(BuildError::io("remove", &work))?;
        Ok(usages)
    }
}

/// The PTX files of a folder.
fn intermediates(folder: &Path) -> Result<Vec<String>, BuildError> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).map_err(BuildError::io("list", folder))? {
        let path = entry.map_err(BuildError::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            texts.push(fs::read_to_string(&path).map_err(BuildError::io("read", &path))?);
        }
    }
    Ok(texts)
}

/// The name in `#include "name"`.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

/// A lock whose holders cannot leave a half-made state behind.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    /// A compiler that counts its runs, prints what ptxas would, and refuses files that say `refuse`.
    fn pretend(home: &Path) -> Nvcc {
        let path = home.join("nvcc");
        let script = r#"#!/bin/sh
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 1 ]; do
    case $1 in -o) out=$2 ;; --keep-dir) kept=$2 ;; esac
    shift
done
if grep -q refuse "$1"; then echo "$1(1): error: refused" >&2; exit 2; fi
cp "$1" "$out"
[ -s "$1" ] || exit 0
printf '.visible .entry %s(\n)\n.maxntid 128, 1, 1\n{\n}\n' "${1%.cu}" > "$kept/it.ptx"
cat >&2 <<END
ptxas info    : Compiling entry function '${1%.cu}' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 17 registers, used 0 barriers
END
"#;
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Nvcc { path, version: "13.0.88".into() }
    }

    fn runs(home: &Path) -> usize {
        fs::read_to_string(home.join("runs")).map_or(0, |runs| runs.lines().count())
    }

    #[test]
    fn only_what_changed_is_compiled_again() {
        let files = [
            ("a.cu", "#include \"deep.cuh\"\n"),
            ("b.cu", "//\n"),
            ("deep.cuh", "#include \"far.h\"\n"),
            ("far.h", "1"),
        ];
        let sources = folder(&files);
        let home = tempfile::tempdir().unwrap();
        let (nvcc, cache) = (pretend(home.path()), home.path().join("cache"));
        let compile = || Units::read(sources.path()).unwrap().compile(&nvcc, &cache).unwrap();

        let modules = compile();
        let names: Vec<&str> = modules.iter().map(|module| module.file.as_str()).collect();
        assert_eq!((names, runs(home.path())), (vec!["a.cu", "b.cu"], 2));
        assert_eq!(fs::read_to_string(&modules[1].binary).unwrap(), "//\n");
        assert_eq!((modules[0].usages[0].registers, modules[0].usages[0].limit()), (17, 255));

        assert_eq!(compile()[0].usages, modules[0].usages);
        assert_eq!(runs(home.path()), 2, "nothing changed");
        fs::write(sources.path().join("far.h"), "2").unwrap();
        compile();
        assert_eq!(runs(home.path()), 3, "a.cu includes it through deep.cuh");
    }

    #[test]
    fn a_refused_file_is_named_with_the_message() {
        let sources = folder(&[("a.cu", "//"), ("b.cu", "refuse")]);
        let home = tempfile::tempdir().unwrap();
        let units = Units::read(sources.path()).unwrap();
        let error = units.compile(&pretend(home.path()), &home.path().join("cache")).unwrap_err();
        assert_eq!(error.to_string(), "nvcc refused b.cu:\nb.cu(1): error: refused\n");
    }

    #[test]
    fn a_file_without_a_kernel_is_an_error() {
        let sources = folder(&[("empty.cu", "")]);
        let home = tempfile::tempdir().unwrap();
        let units = Units::read(sources.path()).unwrap();
        let error = units.compile(&pretend(home.path()), &home.path().join("cache")).unwrap_err();
        assert_eq!(error.to_string(), "empty.cu: holds no kernel");
    }

    #[test]
    fn a_folder_without_kernels_is_an_error() {
        let sources = folder(&[("a.cuh", "")]);
        let error = Units::read(sources.path()).unwrap_err().to_string();
        assert!(error.starts_with("there is no .cu file in "), "{error}");
    }

    #[test]
    fn includes_are_known_however_they_are_spaced() {
        assert_eq!(included("#include \"device.cuh\""), Some("device.cuh"));
        assert_eq!(included("  #  include \"a.h\" // why"), Some("a.h"));
        assert_eq!(included("#include <cstdint>"), None);
        assert_eq!(included("// #include \"a.h\""), None);
    }
}
