//! Compiles the emulator and every kernel against it.
//!
//! Each kernel file becomes a translation unit of its own, in an unnamed namespace: for nvcc every file is a
//! program, and two may use one name. The unit ends with a function that `link_kernels` calls, without
//! which the linker would leave out the file and the kernels that it registers.
//!
//! A kernel file takes seconds, so what has not changed, and includes nothing that has, is not compiled
//! again. One that the compiler refuses is left out and named in `REFUSED_KERNEL_FILES`: the tests of the
//! others still run, and one test fails because of it.

use std::collections::BTreeSet;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs, thread};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let kernels = here.parent().ok_or("the emulator stands in no folder")?;
    // The whole folder, so that a kernel file that is new is seen.
    println!("cargo::rerun-if-changed={}", kernels.display());

    let mut archive = cxx_build::bridge("src/bridge.rs");
    let roots = [kernels.to_path_buf(), out.join("cxxbridge/include")];
    configure(&mut archive, &roots);
    let mut compiler = cc::Build::new();
    configure(&mut compiler, &roots);

    let mut units = Vec::new();
    for file in files_in(&here, "cpp")? {
        units.push(Unit::new(file, None, &roots, &out)?);
    }
    for folder in [kernels, &here.join("tests/kernels")] {
        for file in files_in(folder, "cu")? {
            units.push(Unit::of_kernels(&file, &roots, &out)?);
        }
    }
    let (made, refused): (Vec<_>, Vec<_>) =
        compile(&compiler, units).into_iter().partition(|unit| unit.object.exists());
    if let Some(unit) = refused.iter().find(|unit| unit.kernels.is_none()) {
        return Err(format!("{} does not compile", unit.source.display()).into());
    }
    let names = |units: &[Unit]| -> Vec<String> {
        units.iter().filter_map(|unit| unit.kernels.clone()).collect()
    };
    println!("cargo::rustc-env=REFUSED_KERNEL_FILES={}", names(&refused).join(" "));

    let link = out.join("link.cpp");
    fs::write(&link, link_unit(&names(&made)))?;
    archive.file(link).objects(made.iter().map(|unit| &unit.object));
    archive.try_compile("rewind-kernels-emulator")?;
    Ok(())
}

fn configure(build: &mut cc::Build, roots: &[PathBuf]) {
    build
        .cpp(true)
        .std("c++17")
        // Whatever the profile: the emulator's time is in here.
        .opt_level(3)
        .define("REWIND_EMULATOR", None)
        .includes(roots)
        // What nvcc is told with -fmad=false.
        .flag("-ffp-contract=off")
        // Kernels are written for another compiler, and no file uses all of the headers.
        .flag("-Wno-unknown-pragmas")
        .flag("-Wno-unused-function")
        .flag("-Wno-unused-variable");
}

/// What is compiled by itself.
struct Unit {
    source: PathBuf,
    /// Named by all it depends on, so if it is there it is right.
    object: PathBuf,
    /// The kernel file's name without its end.
    kernels: Option<String>,
}

impl Unit {
    fn new(
        source: PathBuf,
        kernels: Option<String>,
        roots: &[PathBuf],
        out: &Path,
    ) -> Result<Self> {
        let name = source.file_name().and_then(|name| name.to_str()).ok_or("no file name")?;
        let object = out.join(format!("{name}.{:016x}.o", fingerprint(&source, roots)?));
        if !object.exists() {
            for older in files_in(out, "o")? {
                if older.with_extension("").with_extension("").file_name() == source.file_name() {
                    fs::remove_file(older)?;
                }
            }
        }
        Ok(Self { source, object, kernels })
    }

    /// Around a kernel file.
    fn of_kernels(file: &Path, roots: &[PathBuf], out: &Path) -> Result<Self> {
        let name = file.file_stem().and_then(|name| name.to_str()).ok_or("no file name")?;
        let text = format!(
            "#include \"device.cuh\"\n\
             namespace {{\n#include \"{}\"\n}} // namespace\n\
             namespace emulator {{\nvoid link_{name}() {{}}\n}} // namespace emulator\n",
            file.display()
        );
        let source = out.join(format!("{name}.kernel.cpp"));
        fs::write(&source, text)?;
        Self::new(source, Some(name.into()), roots, out)
    }
}

/// Calls a function of every kernel file.
fn link_unit(names: &[String]) -> String {
    let lines = |start: &str| -> String {
        names.iter().map(|name| format!("{start}link_{name}();\n")).collect()
    };
    let (declared, called) = (lines("void "), lines("    "));
    format!(
        "namespace emulator {{\n{declared}void link_kernels();\nvoid link_kernels() {{\n{called}}}\n}}\n"
    )
}

/// Compiles what is not there yet, several at a time. The compiler's words go to cargo.
fn compile(compiler: &cc::Build, units: Vec<Unit>) -> Vec<Unit> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let left = Mutex::new(units.iter().filter(|unit| !unit.object.exists()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = left.lock().map(|mut left| left.next());
                    let Ok(Some(unit)) = next else { break };
                    let made = compiler.clone().file(&unit.source).try_compile_intermediates();
                    if let Some(made) = made.ok().and_then(|made| made.into_iter().next()) {
                        // If this fails, the object is missing, which is what the caller looks at.
                        let _ = fs::rename(made, &unit.object);
                    }
                }
            });
        }
    });
    units
}

/// The files of a folder that end in `.extension`, sorted; none if there is no such folder.
fn files_in(folder: &Path, extension: &str) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == extension) {
                files.insert(path);
            }
        }
    }
    Ok(files)
}

/// A number for all that a unit's object depends on: its text and that of every file it includes in quotes,
/// and this script, which has the options.
fn fingerprint(unit: &Path, roots: &[PathBuf]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    include_str!("build.rs").hash(&mut hasher);
    for name in ["TARGET", "CXX", "CXXFLAGS"] {
        env::var(name).ok().hash(&mut hasher);
    }
    let mut seen = BTreeSet::new();
    let mut left = vec![unit.to_path_buf()];
    while let Some(file) = left.pop() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let text = fs::read_to_string(&file)?;
        text.hash(&mut hasher);
        for line in text.lines() {
            let Some(quoted) = line.strip_prefix("#include \"") else { continue };
            let name = quoted.trim_end().trim_end_matches('"');
            // What stands nowhere belongs to the other branch of an #ifdef, and is of no account here.
            left.extend(roots.iter().map(|root| root.join(name)).find(|path| path.is_file()));
        }
    }
    Ok(hasher.finish())
}
