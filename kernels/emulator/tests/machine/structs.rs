//! The argument structs are the same in C++ and in Rust: size by size, and field by field as their texts say.

use std::collections::BTreeMap;
use std::mem::size_of;

use rewind_kernels::arguments::*;

use super::*;

#[test]
fn sizes_agree() {
    macro_rules! sizes {
        ($($name:ident)*) => { BTreeMap::from([$((stringify!($name), size_of::<$name>())),*]) };
    }
    let rust = sizes!(
        Matrix Row Cache EmbedArguments NormArguments ProductArguments RotateArguments AttendArguments
        CopyPagesArguments Choice LogitTile HeadArguments Answer LogprobEntry FinishArguments
        ChooseArguments LogprobsArguments
    );
    let cpp = rewind_kernels_emulator::struct_sizes();
    let cpp: BTreeMap<_, _> = cpp.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    assert_eq!(rust, cpp);
    assert!(structs(CPP).keys().eq(rust.keys()), "a struct is missing here or in sizes.cpp");
}

#[test]
fn fields_agree() {
    let rust = structs(RUST);
    for (name, fields) in structs(CPP) {
        assert_eq!(rust.get(name), Some(&fields), "{name}");
    }
}

#[test]
fn the_kernels_take_them() {
    let mut emulator = emulator(Order::Ascending);
    let names: Vec<_> = emulator.kernels().into_iter().map(String::from).collect();
    assert!(names.iter().any(|name| !name.starts_with("test_")), "{names:?}");
    let refused = emulator.launch(Launch {
        kernel: "norm_f32",
        grid: [1, 1, 1],
        threads: 32,
        shared: 0,
        arguments: &[0; size_of::<NormArguments>() + 8],
    });
    assert!(matches!(refused, Err(DeviceError::Refused { .. })), "{refused:?}");
}

const CPP: &str = include_str!("../../../arguments.h");
const RUST: &str = include_str!("../../../src/arguments.rs");

/// The structs of a file with the names and kinds of their fields, in order, as C++ or Rust writes them.
fn structs(text: &str) -> BTreeMap<&str, Vec<(&str, &str)>> {
    let mut structs: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        if let Some(name) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {")) {
            // Behind `alignas(16)`, perhaps.
            current = name.rsplit(' ').next();
        } else if line.starts_with('}') {
            current = None;
        } else if let (Some(name), false) = (current, line.is_empty()) {
            structs.entry(name).or_default().push(field(line));
        }
    }
    structs
}

fn field(line: &str) -> (&str, &str) {
    // `float epsilon;` or `epsilon: f32,`
    let (name, kind) = match line.strip_suffix(';') {
        Some(cpp) => cpp.rsplit_once(' ').map(|(kind, name)| (name, kind)).unwrap(),
        None => line.trim_end_matches(',').split_once(": ").unwrap(),
    };
    let kind = match kind {
        kind if kind.starts_with("Global<") => "Address",
        "uint32_t" => "u32",
        "uint64_t" => "u64",
        "float" => "f32",
        "double" => "f64",
        kind => kind,
    };
    (name, kind)
}
