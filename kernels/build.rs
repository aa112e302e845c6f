//! Compiles the kernels and embeds them, where there is a compiler to do it with.
//!
//! Without an nvcc the crate builds all the same, holds no kernels and says so; with one, a `.cu` file
//! that it refuses is an error. `rewind-kernels-build` does the work.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use rewind_kernels_build::{Module, Nvcc, Units, write_table};

/// Where `cargo xtask` puts a CUDA that it fetched, relative to this package.
const SET_UP: &str = "../.rewind/cuda";

fn main() {
    if let Err(error) = run() {
        // cargo shows one line of each.
        error.to_string().lines().for_each(|line| println!("cargo::error={line}"));
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(required("OUT_DIR")?);
    for name in Nvcc::VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // Not the whole folder, which holds other packages. A new `.cu` file comes with a change in `src`.
    watch(&here.join("build.rs"));
    watch(&here.join("src"));
    let units = Units::read(&here)?;

    let set_up = here.join(SET_UP);
    if set_up.is_dir() {
        // Only where it exists: cargo takes a missing file for a changed one, every time. `cargo xtask`
        // touches this script after it has made the folder.
        watch(&set_up.join("bin/nvcc"));
    }
    let (code, table) = match Nvcc::find(&set_up) {
        Ok(nvcc) => {
            units.inputs().for_each(|file| watch(&file));
            let modules = units.compile(&nvcc, &cache(&out))?;
            let usages: Vec<_> =
                modules.iter().flat_map(|module| &module.usages).cloned().collect();
            // Slow, not wrong: `cargo xtask test` refuses it, a build with another nvcc goes on.
            for fault in usages.iter().filter_map(|usage| usage.fault()) {
                println!("cargo::warning={fault}");
            }
            (embedding(&modules, &out)?, write_table(&usages))
        }
        Err(why) => {
            println!(
                "cargo::warning=built without GPU kernels: {why}. Set CUDA_HOME, or let \
                 `cargo xtask gpu-check` fetch a compiler"
            );
            (format!("Err(NotBuilt {{ why: {:?} }})\n", why.to_string()), write_table(&[]))
        }
    };
    fs::write(out.join("binary.rs"), code)?;
    fs::write(out.join("registers.tsv"), table)?;
    Ok(())
}

/// Rust code: the modules, `src/binary.rs` has the types.
fn embedding(modules: &[Module], out: &Path) -> Result<String, Box<dyn Error>> {
    let mut code = String::from("Ok(&[\n");
    for Module { file, binary, usages } in modules {
        // A copy, so that an emptied cache breaks no build that cargo takes for fresh.
        let copy = out.join(file).with_extension("fatbin");
        fs::copy(binary, &copy)?;
        let mut kernels = String::new();
        // Every target has the same kernels.
        for usage in usages.iter().filter(|usage| usage.target == usages[0].target) {
            let (name, threads) = (&usage.kernel, usage.threads);
            write!(kernels, "Kernel {{ name: {name:?}, threads: {threads} }}, ")?;
        }
        writeln!(
            code,
            "Module {{ file: {file:?}, kernels: &[{kernels}], image: &Aligned(*include_bytes!({copy:?})).0 }},"
        )?;
    }
    code.push_str("])\n");
    Ok(code)
}

/// One cache for all profiles: `OUT_DIR` is `target/PROFILE/build/PACKAGE/out`.
fn cache(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).join("kernels")
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn required(variable: &str) -> Result<String, String> {
    env::var(variable).map_err(|error| format!("{variable}: {error}; run this through cargo"))
}
