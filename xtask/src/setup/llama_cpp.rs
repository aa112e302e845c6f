//! llama.cpp, which `cargo xtask bench cpu` measures Rewind against.
//!
//! It is built from the sources that its Python binding carries, for this very processor: a wheel built for any would
//! lose the comparison before it began. Its weights are made from the demo model by its own quantizer. Both are kept, and
//! made again where the pins, the processor or the model changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

use super::model;
use super::stamp::Stamp;
use super::venv::{Environment, Python};
use crate::process;
use crate::progress::Steps;
use crate::project::Project;

const PIN: &str = include_str!("../../pins/llama-cpp.txt");
const QUANTIZE: &str = "tests/peer/quantize.py";

/// How it is built; the bench's document repeats it. Release is what its build takes by itself, and OpenMP what it takes
/// where the compiler has it; both are said so that they are the same on every machine. What is off is not needed.
pub(crate) const CMAKE_ARGUMENTS: &str = "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON \
                                          -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF";

/// A llama.cpp that can be asked by Python, and weights for it.
#[derive(Debug)]
pub(crate) struct LlamaCpp {
    /// Has the package `llama_cpp`.
    pub(crate) python: Python,
    models: PathBuf,
}

impl LlamaCpp {
    /// The demo model's shadow weights in a format of llama.cpp, by its name there.
    pub(crate) fn model(&self, format: &str) -> PathBuf {
        self.models.join(format).with_added_extension("gguf")
    }

    /// What the models hold, JSON.
    pub(crate) fn contents(&self) -> PathBuf {
        self.models.join("files.json")
    }
}

pub(super) fn set_up(project: &Project, model: &Path, steps: &mut Steps) -> Result<LlamaCpp> {
    let processor = fs::read_to_string("/proc/cpuinfo").map(|told| processor(&told));
    let environment = Environment {
        name: "llama-cpp",
        heading: "llama.cpp, built from its sources (minutes)",
        requirements: "tests/peer/requirements.txt",
        recipe: &[PIN, CMAKE_ARGUMENTS, &processor.unwrap_or_default()],
    };
    let python = environment.set_up(project, steps, |python, activity| {
        activity.says("compiling");
        let mut build = python.install(&project.path("xtask/pins/llama-cpp.txt"));
        // What it needs to be built is among the pinned packages; pip would fetch whatever is newest.
        build.args(["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]);
        // A wheel that pip kept may be of another processor.
        build.arg("--no-cache-dir");
        build.env("CMAKE_ARGS", CMAKE_ARGUMENTS);
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        build.env("CMAKE_BUILD_PARALLEL_LEVEL", jobs.to_string());
        process::capture(build)
            .context("cannot build llama.cpp (it needs a C and a C++ compiler)")?;
        Ok(())
    })?;
    let models = quantize(project, &python, model, steps)?;
    Ok(LlamaCpp { python, models })
}

/// The demo model in llama.cpp's formats.
fn quantize(
    project: &Project,
    python: &Python,
    model: &Path,
    steps: &mut Steps,
) -> Result<PathBuf> {
    let script = project.path(QUANTIZE);
    let recipe =
        fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
    let home = project.state("llama-cpp-models");
    let stamp = Stamp::new(project, "llama-cpp-models", &[&recipe, PIN, model::SHA256]);
    if stamp.holds(&home) {
        return Ok(home);
    }
    steps.run("The demo model in llama.cpp's formats", |_| {
        stamp.lift()?;
        super::clear(&home)?;
        let mut command = python.command([&script]);
        command.arg("--model").arg(model).arg("--folder").arg(&home);
        process::capture(command).context("llama.cpp cannot quantize the demo model")?;
        stamp.set()?;
        Ok(home)
    })
}

/// What tells one kind of processor from another, of the text of `/proc/cpuinfo`. Clock rates change by the second, and
/// the cores are alike.
fn processor(told: &str) -> String {
    const LASTING: [&str; 5] = ["model name", "flags", "CPU part", "Features", "isa"];
    let core = told.split("\n\n").next().unwrap_or_default();
    let lasting = |line: &&str| LASTING.iter().any(|key| line.starts_with(key));
    core.lines().filter(lasting).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_its_name_and_its_features() {
        let core =
            "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2445.4\nflags\t\t: avx2 fma\n";
        let cores = format!("{core}\n{}", core.replace("0", "1"));
        assert_eq!(processor(&cores), "model name\t: Some CPU\nflags\t\t: avx2 fma");
        assert_eq!(processor(&core.replace("2445", "3500")), processor(core));
        assert_ne!(processor(&core.replace("avx2", "avx512f")), processor(core));
        assert_eq!(processor(""), "");
    }
}
