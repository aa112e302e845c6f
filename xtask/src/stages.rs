//! `cargo xtask test`: every check there is, one stage after the other, and a table of how they went.
//!
//! A stage that fails does not stop the ones after it: one run tells all that is wrong. Only stages that need the backend
//! built are skipped when its build fails, and count as failed.

mod report;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use console::style;

use self::report::{Listener, Outcome, Report, table};
use crate::environment;
use crate::exports;
use crate::gpu;
use crate::kernels;
use crate::process;
use crate::project::Project;
use crate::setup::{self, Assembly, BuildEnvironment, Kernels, Tools};

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run this stage only; may be repeated
    #[arg(long, value_name = "STAGE")]
    only: Vec<Stage>,
}

/// A part of the tests, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Formatting of the Rust sources
    Fmt,
    /// GPU kernels compiled for every target, none spills
    Kernels,
    /// Clippy over all targets, warnings are errors
    Clippy,
    /// Rust tests, by cargo-nextest where installed
    Unit,
    /// Examples in the documentation
    Doc,
    /// Release build of libtriton_rewind.so and rewind
    Build,
    /// Only Triton's entry points are exported
    Exports,
    /// Kernels on a GPU, where there is one
    Gpu,
    /// pytest against a real server
    E2e,
}

/// Runs the stages and fails if one of them does.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let tools = setup::tools(project, Kernels::Needed)?;
    let mut run = Run { project, tools: &tools, assembly: None };
    let reports: Vec<Report> = Stage::value_variants()
        .iter()
        .filter(|stage| options.only.is_empty() || options.only.contains(stage))
        .map(|&stage| run.report(stage))
        .collect();
    println!("\n{}", table(&reports, started.elapsed()));
    println!("Measurements take longer and are not part of this: cargo xtask bench");
    let failed = reports.iter().filter(|report| report.outcome.is_err()).count();
    ensure!(failed == 0, "{failed} of {} stages failed", reports.len());
    Ok(())
}

/// Formats the sources, or checks that they are formatted.
pub(crate) fn format(project: &Project, check: bool) -> Result<()> {
    let mut command = project.cargo(&["fmt", "--all"]);
    if check {
        command.arg("--check");
    }
    process::visible(command)
}

/// Formatting and clippy, the checks that need no model.
pub(crate) fn lint(project: &Project) -> Result<()> {
    let environment = setup::build_environment(project)?;
    let formatted = format(project, true);
    let linted = process::visible(clippy(project, &environment));
    formatted.and(linted)
}

fn clippy(project: &Project, environment: &BuildEnvironment) -> Command {
    let mut command =
        project.cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    command.envs(environment.variables());
    command
}

struct Run<'a> {
    project: &'a Project,
    tools: &'a Tools,
    /// Made by the first stage that needs it; the reason if it could not be made.
    assembly: Option<Result<Assembly, String>>,
}

impl Run<'_> {
    fn report(&mut self, stage: Stage) -> Report {
        let name = stage.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        println!("\n{}", style(format!("── {name} ──")).cyan().bold());
        let started = Instant::now();
        let mut listener = Listener::default();
        let result = self.perform(stage, &mut listener);
        if let Err(error) = &result {
            println!("{} {error:#}", style(format!("{name} failed:")).red().bold());
        }
        let outcome: Outcome = result.map_err(|error| {
            // The table has room for one line; the whole story stands above.
            error.to_string().lines().next().unwrap_or_default().to_owned()
        });
        Report { name, outcome, took: started.elapsed(), skips: listener.into_skips() }
    }

    fn perform(&mut self, stage: Stage, listener: &mut Listener) -> Result<String> {
        match stage {
            Stage::Fmt => format(self.project, true).map(|()| String::new()),
            Stage::Kernels => kernels::check(self.project),
            Stage::Clippy => {
                self.heard(clippy(self.project, &self.tools.build), listener)?;
                Ok(String::new())
            }
            Stage::Unit => self.unit(listener),
            Stage::Doc => {
                self.heard(self.test_command(&["test", "--workspace", "--doc"]), listener)?;
                Ok(listener.counted())
            }
            Stage::Build => self.assembly().map(|_| String::new()),
            Stage::Exports => {
                let count = exports::check(&self.assembly()?.library)?;
                Ok(format!("{count} entry points"))
            }
            Stage::Gpu => self.gpu(listener),
            Stage::E2e => self.end_to_end(listener),
        }
    }

    fn unit(&self, listener: &mut Listener) -> Result<String> {
        let mut nextest = self.project.cargo(&["nextest", "--version"]);
        if nextest.output().is_ok_and(|output| output.status.success()) {
            let junit = self.project.target("nextest/xtask/junit.xml");
            let mut command =
                self.test_command(&["nextest", "run", "--workspace", "--profile", "xtask"]);
            command.arg("--config-file").arg(self.project.path("xtask/nextest.toml"));
            let result = self.heard(command, listener);
            // nextest shows no output of tests that pass, where a SKIP would be; its report has it.
            if let Ok(report) = std::fs::read_to_string(junit) {
                report.lines().for_each(|line| listener.hear_skip(line));
            }
            result?;
        } else {
            let arguments = ["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
            let mut command = self.test_command(&arguments);
            command.args(["--", "--show-output"]);
            self.heard(command, listener)?;
        }
        ensure!(listener.count() > 0, "no test was run");
        Ok(listener.counted())
    }

    fn gpu(&self, listener: &mut Listener) -> Result<String> {
        if setup::gpu_present() {
            gpu::suite(self.project)?;
            return Ok("every kernel, three times".to_owned());
        }
        let skip = "SKIP: no GPU here; `cargo xtask gpu-check` makes a folder to carry to one";
        println!("{skip}");
        listener.hear_skip(skip);
        Ok(String::new())
    }

    fn end_to_end(&mut self, listener: &mut Listener) -> Result<String> {
        let (project, tools) = (self.project, self.tools);
        let assembly = self.assembly()?.clone();
        // tests/pytest.ini says which folders have tests.
        let mut command = tools.python.command(["-m", "pytest"]);
        command.current_dir(project.path("tests"));
        command.envs(environment::end_to_end(project, tools, &assembly));
        command.envs(tools.build.variables());
        self.heard(command, listener)?;
        ensure!(listener.count() > 0, "no test was run");
        Ok(listener.counted())
    }

    fn test_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.project.cargo(arguments);
        command.envs(self.tools.build.variables()).envs(environment::unit_tests(self.tools));
        command
    }

    fn heard(&self, command: Command, listener: &mut Listener) -> Result<()> {
        process::overheard(command, |line| listener.hear(line))
    }

    fn assembly(&mut self) -> Result<&Assembly> {
        let (project, tools) = (self.project, self.tools);
        self.assembly
            .get_or_insert_with(|| {
                setup::build(project, &tools.build)
                    .and_then(|()| Assembly::lay_out(project, &tools.model))
                    .map_err(|error| format!("{error:#}"))
            })
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
            .context("the backend is not built")
    }
}
