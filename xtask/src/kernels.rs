//! The GPU kernels: compiled for every target, and held to the registers they declare.
//!
//! cargo compiles them, in the build script of `rewind-kernels`; what ptxas said about each is in that
//! script's output folder. A spill is a warning there, since a build with another nvcc is slow and not
//! wrong. Here, with the pinned one, it is an error.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use rewind_kernels_build::{SASS, Usage, read_table};
use serde::Deserialize;

use crate::process;
use crate::project::Project;

/// Compiles the kernels, prints what registers they take, and returns a line about them.
pub(crate) fn check(project: &Project) -> Result<String> {
    let mut cargo = project.cargo(&["build", "--package", "rewind-kernels"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let messages = process::printed(cargo).context("the kernels do not compile")?;
    let out = out_folder(&messages, "rewind-kernels")
        .ok_or_else(|| anyhow!("cargo does not say where it built the kernels"))?;
    let usages = read(&out.join("registers.tsv"))?;
    println!("{}", table(&usages));
    verdict(&usages)
}

fn read(file: &Path) -> Result<Vec<Usage>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    read_table(&text).ok_or_else(|| anyhow!("{} is no table of registers", file.display()))
}

/// The output folder of a package's build script, by cargo's messages.
fn out_folder(messages: &str, package: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(default)]
        package_id: String,
        out_dir: Option<PathBuf>,
    }

    let of_package = format!("#{package}@");
    messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()).find_map(
        |message| {
            let script = message.reason == "build-script-executed";
            (script && message.package_id.contains(&of_package)).then_some(message.out_dir)?
        },
    )
}

/// Registers of every kernel, a line each.
fn table(usages: &[Usage]) -> String {
    let mut kernels: Vec<&str> = usages.iter().map(|usage| usage.kernel.as_str()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let width = kernels.iter().map(|name| name.len()).max().unwrap_or(0).max("registers".len());
    let targets: String = SASS.iter().map(|target| format!("{target:>8}")).collect();
    let mut lines = vec![format!("{:<width$}  threads  limit{targets}", "registers")];
    for kernel in kernels {
        let of = |target: &str| {
            usages.iter().find(|usage| usage.kernel == kernel && usage.target == target)
        };
        let cells: String = SASS
            .iter()
            .map(|target| format!("{:>8}", of(target).map_or_else(String::new, cell)))
            .collect();
        // The declaration is the same for every target.
        let declared = SASS.iter().find_map(|target| of(target));
        let bounds = declared.map_or_else(String::new, |usage| {
            let threads = format!("{}×{}", usage.threads, usage.blocks);
            format!("{threads:>7}  {:>5}", usage.limit())
        });
        lines.push(format!("{kernel:<width$}  {bounds}{cells}"));
    }
    lines.join("\n")
}

/// Registers, marked where memory stands in for them.
fn cell(usage: &Usage) -> String {
    let mark = match (usage.fault(), usage.stack) {
        (Some(_), _) => "!",
        // Not wrong: an array that is indexed by a variable. But it is worth a look.
        (None, 1..) => "*",
        (None, 0) => "",
    };
    format!("{}{mark}", usage.registers)
}

fn verdict(usages: &[Usage]) -> Result<String> {
    ensure!(!usages.is_empty(), "built without kernels: no compiler was found");
    for target in SASS {
        ensure!(
            usages.iter().any(|usage| usage.target == target),
            "no kernel is built for {target}"
        );
    }
    let faults: Vec<String> = usages.iter().filter_map(Usage::fault).collect();
    ensure!(faults.is_empty(), "{} faults: {}", faults.len(), faults.join("; "));
    let kernels = usages.iter().filter(|usage| usage.target == SASS[0]).count();
    Ok(format!("{kernels} kernels for {} targets, no spills", SASS.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(kernel: &str, target: &str, registers: u32) -> Usage {
        Usage {
            kernel: kernel.into(),
            target: target.into(),
            threads: 256,
            blocks: 2,
            registers,
            spilled: 0,
            stack: 0,
            shared: 0,
        }
    }

    fn everywhere(kernel: &str, registers: u32) -> Vec<Usage> {
        SASS.iter().map(|target| usage(kernel, target, registers)).collect()
    }

    #[test]
    fn the_folder_is_that_of_the_right_package_and_message() {
        let messages = r#"
not json
{"reason":"compiler-artifact","package_id":"path+file:///x/kernels#rewind-kernels@0.1.0"}
{"reason":"build-script-executed","package_id":"path+file:///x/build#rewind-kernels-build@0.1.0","out_dir":"/wrong"}
{"reason":"build-script-executed","package_id":"path+file:///x/kernels#rewind-kernels@0.1.0","out_dir":"/right"}"#;
        assert_eq!(out_folder(messages, "rewind-kernels"), Some("/right".into()));
        assert_eq!(out_folder(messages, "another"), None);
    }

    #[test]
    fn a_kernel_has_a_line_with_its_targets_in_columns() {
        let mut usages = [everywhere("rotate", 40), everywhere("embed", 128)].concat();
        usages[0].stack = 8;
        usages[5].spilled = 4;
        let table = table(&usages);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "registers  threads  limit   sm_80   sm_86   sm_89  sm_90a  sm_100");
        assert_eq!(lines[1], "embed        256×2    128    128!     128     128     128     128");
        assert_eq!(lines[2], "rotate       256×2    128     40*      40      40      40      40");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn spills_excess_and_missing_targets_fail() {
        let mut usages = everywhere("embed", 128);
        assert_eq!(verdict(&usages).unwrap(), "1 kernels for 5 targets, no spills");
        usages[3].spilled = 12;
        usages[4].registers = 136;
        let error = verdict(&usages).unwrap_err().to_string();
        assert!(error.contains("2 faults: embed spills 12 bytes a thread on sm_90a"), "{error}");
        assert!(error.contains("takes 136 registers on sm_100, declared are 128"), "{error}");
        let error = verdict(&usages[..4]).unwrap_err().to_string();
        assert_eq!(error, "no kernel is built for sm_100");
        assert!(verdict(&[]).is_err());
    }
}
