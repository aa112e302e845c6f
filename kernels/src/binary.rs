//! The compiled kernels, embedded.

/// A compiled `.cu` file.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the file.
    pub file: &'static str,
    /// What can be launched.
    pub kernels: &'static [Kernel],
    /// A fat binary, aligned to 16 bytes: machine code for sm_80, sm_86, sm_89, sm_90a and sm_100, and PTX
    /// for later devices. For `cuModuleLoadData`, which picks and unpacks what fits the device.
    pub image: &'static [u8],
}

/// A kernel of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// Most threads of a block.
    pub threads: u32,
}

/// This program was built on a machine without a fitting nvcc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this program was built without GPU kernels ({why})")]
pub struct NotBuilt {
    /// Where was looked for one.
    pub why: &'static str,
}

/// The kernels, one module for each `.cu` file; a kernel's name is in one of them only.
///
/// # Errors
/// The program was built without them.
pub fn binary() -> Result<&'static [Module], NotBuilt> {
    BINARY
}

// From the build script.
const BINARY: Result<&[Module], NotBuilt> = include!(concat!(env!("OUT_DIR"), "/binary.rs"));

/// Bytes at an address as round as the widest field of a fat binary asks for.
#[repr(C, align(16))]
#[allow(dead_code, reason = "without a compiler there is nothing to align")]
struct Aligned<B: ?Sized>(B);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn modules() -> Option<&'static [Module]> {
        binary().inspect_err(|why| println!("SKIP: {why}")).ok()
    }

    #[test]
    fn every_kernel_file_is_embedded() {
        let Some(modules) = modules() else { return };
        let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let sources: BTreeSet<String> = files
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cu"))
            .collect();
        let embedded: BTreeSet<String> = modules.iter().map(|m| m.file.to_owned()).collect();
        assert_eq!(embedded, sources, "after a new .cu file, touch kernels/build.rs");
    }

    #[test]
    fn images_are_aligned_fat_binaries() {
        for Module { file, image, .. } in modules().unwrap_or_default() {
            // The magic number of fatbinary, little endian.
            assert_eq!(image[..4], [0x50, 0xED, 0x55, 0xBA], "{file}");
            assert_eq!(image.as_ptr().addr() % 16, 0, "{file}");
        }
    }

    #[test]
    fn a_kernel_has_one_module_and_whole_warps() {
        let mut names = BTreeSet::new();
        for kernel in modules().unwrap_or_default().iter().flat_map(|module| module.kernels) {
            assert!(names.insert(kernel.name), "{} is there twice", kernel.name);
            assert!(kernel.threads > 0 && kernel.threads % 32 == 0, "{kernel:?}");
        }
    }
}
