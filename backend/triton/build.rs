//! Rust declarations of Triton's C API, from NVIDIA's own headers.
//!
//! The headers come from `TRITON_INCLUDE_DIR` (the folder that holds `triton/core/tritonbackend.h`;
//! `/opt/tritonserver/include` in NGC images), else from the registry package named in
//! `headers/Cargo.toml`. They declare C functions but name structs without `struct`, so they only
//! parse as C++.

use std::env;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Package with the headers, and where in it they lie.
const PACKAGE: &str = "tritonserver-rs";
const PACKAGE_INCLUDE: &str = "core/include";
const HEADER: &str = "triton/core/tritonbackend.h";

fn main() {
    println!("cargo::rerun-if-env-changed=TRITON_INCLUDE_DIR");
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=headers");
    // The server that loads the library provides Triton's functions. A shared library may leave them
    // open; the unit tests, an executable, need to be told (they bring a stand-in for those they call).
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-in-object-files");
    if let Err(error) = generate() {
        println!("cargo::error={}", error.to_string().replace('\n', " "));
    }
}

fn generate() -> Result<(), Box<dyn Error>> {
    let include = match env::var_os("TRITON_INCLUDE_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => packaged_include()?,
    };
    let header = include.join(HEADER);
    if !header.is_file() {
        return Err(format!(
            "{} does not exist: set TRITON_INCLUDE_DIR to the folder that holds {HEADER}",
            header.display()
        )
        .into());
    }
    println!("cargo::rerun-if-changed={}", header.display());

    let mut builder = bindgen::Builder::default()
        .header(path_text(&header)?)
        .clang_args(["-x", "c++", "-std=c++17", "-I"])
        .clang_arg(path_text(&include)?)
        .allowlist_item("TRITON(BACKEND|SERVER)_.*")
        // What a backend exports; defined, not declared, in src/ffi/entry.rs.
        .blocklist_function("TRITONBACKEND_(Initialize|Finalize|GetBackendAttribute)")
        .blocklist_function("TRITONBACKEND_Model(Instance)?(Initialize|Finalize|Execute)")
        .blocklist_function("TRITONBACKEND_ModelBatch.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false);
    // libclang from a package index comes without the compiler's own headers (stddef.h); the C
    // compiler's serve as well. Searched last, so they never shadow clang's own.
    if let Some(folder) = compiler_include() {
        builder = builder.clang_arg("-idirafter").clang_arg(folder);
    }

    // bindgen panics when it finds no libclang.
    let bindings = catch_unwind(AssertUnwindSafe(|| builder.generate())).map_err(|_| {
        "libclang could not be loaded: install it (Debian: libclang-dev; anywhere: the PyPI wheel \
         `libclang`) and set LIBCLANG_PATH to the folder of libclang.so, or build with `cargo xtask`, \
         which does both"
    })??;
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?;
    bindings.write_to_file(Path::new(&out).join("triton.rs"))?;
    Ok(())
}

/// Asks cargo for the package that ships the headers.
fn packaged_include() -> Result<PathBuf, Box<dyn Error>> {
    let manifest = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("headers/Cargo.toml");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(&manifest)
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "Triton's headers could not be fetched ({}): set TRITON_INCLUDE_DIR to a folder that holds \
             {HEADER}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let package = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == PACKAGE))
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or_else(|| {
            format!("cargo metadata of {} does not list {PACKAGE}", manifest.display())
        })?;
    let folder = Path::new(package).parent().ok_or("a manifest without a folder")?;
    Ok(folder.join(PACKAGE_INCLUDE))
}

/// Folder of the C compiler's own headers.
fn compiler_include() -> Option<String> {
    let output = Command::new("cc").arg("-print-file-name=include").output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&folder).join("stddef.h").is_file().then_some(folder)
}

fn path_text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("the path {} is not UTF-8", path.display()))
}
