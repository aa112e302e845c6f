//! What takes turns: the engine alone, and the served models with a client each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cores::{self, Ticks};
use super::profile::{Figures, Profile};
use super::scrape::Scrape;
use crate::interrupt;
use crate::process;
use crate::project::Project;
use crate::server::Server;
use crate::setup::{PerfAnalyzer, Python};

/// How hard a side is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    /// Requests in flight at once.
    pub(super) concurrency: usize,
    /// Requests in all.
    pub(super) requests: usize,
}

/// One round of one side.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) figures: Figures,
    /// Share of the time with work in which no pass ran.
    pub(super) idle: f64,
    /// Mean number of tokens that a pass brought, where passes are counted.
    pub(super) rows: Option<f64>,
}

/// Who sends the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// Triton's own load generator.
    PerfAnalyzer,
    /// `tests/bench/iterative.py`.
    Own,
}

/// Programs and files of the clients.
#[derive(Debug)]
pub(super) struct Clients<'a> {
    pub(super) project: &'a Project,
    pub(super) analyzer: &'a PerfAnalyzer,
    pub(super) python: &'a Python,
    /// See [`super::requests`].
    pub(super) requests: &'a Path,
    /// Where they run, if that matters.
    pub(super) core: Option<usize>,
}

/// A round that takes longer than this has hung: perf_analyzer waits for ever.
const PATIENCE: Duration = Duration::from_secs(600);

impl Clients<'_> {
    /// Drives `model` once.
    pub(super) fn round(
        &self,
        server: &mut Server,
        model: &str,
        client: Client,
        load: Load,
    ) -> Result<Round> {
        let log = self.project.state("bench/triton/profile.json");
        // perf_analyzer does not overwrite.
        if log.exists() {
            fs::remove_file(&log).with_context(|| format!("cannot remove {}", log.display()))?;
        }
        let before = Scrape::of(server, model)?;
        let command = match client {
            Client::PerfAnalyzer => self.perf_analyzer(server, model, load, &log),
            Client::Own => self.own(server, model, load, &log),
        };
        self.run(command, server)?;
        let spent = Scrape::of(server, model)?.since(&before);
        let json = fs::read_to_string(&log)
            .with_context(|| format!("the client wrote no {}", log.display()))?;
        let figures = Profile::read(&json)?.figures(load.concurrency)?;
        ensure!(
            figures.tokens as f64 == spent.tokens,
            "the client got {} responses and the server committed {} tokens: is something else using it?",
            figures.tokens,
            spent.tokens
        );
        Ok(Round { figures, idle: spent.idle(), rows: Some(spent.rows()) })
    }

    fn perf_analyzer(&self, server: &Server, model: &str, load: Load, log: &Path) -> Command {
        let mut command = self.analyzer.command();
        command
            .args(["-m", model, "-u", &format!("127.0.0.1:{}", server.ports().grpc)])
            .args(["-i", "grpc", "--async", "--streaming"])
            .args(["--concurrency-range", &load.concurrency.to_string()])
            .args(["--request-count", &load.requests.to_string()])
            .arg("--input-data")
            .arg(self.requests)
            .arg("--profile-export-file")
            .arg(log);
        command
    }

    fn own(&self, server: &Server, model: &str, load: Load, log: &Path) -> Command {
        let mut command = self.python.command(["-m", "bench.iterative", "--model", model]);
        command
            .args(["--url", &format!("127.0.0.1:{}", server.ports().grpc)])
            .args(["--concurrency", &load.concurrency.to_string()])
            .args(["--count", &load.requests.to_string()])
            .arg("--requests")
            .arg(self.requests)
            .arg("--output")
            .arg(log)
            .current_dir(self.project.path("tests"));
        command
    }

    /// Runs a client to its end, while the server lives.
    fn run(&self, mut command: Command, server: &mut Server) -> Result<()> {
        let words = self.project.state("logs/bench-client.log");
        let output = fs::File::create(&words)
            .with_context(|| format!("cannot create {}", words.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log file")?)
            .stderr(output);
        let mut child =
            cores::on(self.core, || command.spawn().context("cannot start the client"))?;
        let started = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().context("lost the client")? {
                break Ok(status);
            }
            let stopped = match server.exited()? {
                Some(status) => Err(anyhow::anyhow!("the server stopped ({status})")),
                None if started.elapsed() > PATIENCE => {
                    Err(anyhow::anyhow!("the client did not end in {} s", PATIENCE.as_secs()))
                }
                None => interrupt::check(),
            };
            if let Err(error) = stopped {
                break Err(error);
            }
            thread::sleep(Duration::from_millis(50));
        };
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let words = fs::read_to_string(&words).unwrap_or_default();
                bail!("the client failed ({status}):\n{}", process::tail(&words))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(server.last_words()))
            }
        }
    }

    /// Warms `model` up, and finds the thread that computes for it.
    pub(super) fn compute_thread(
        &self,
        server: &mut Server,
        model: &str,
        warm: Load,
    ) -> Result<i32> {
        let before = Ticks::of(server.process())?;
        self.round(server, model, Client::Own, warm)?;
        Ticks::of(server.process())?
            .busiest_since(&before)
            .context("no thread of the server did anything for a request")
    }
}

/// A model of the repository with changes to its configuration.
#[derive(Debug, Clone)]
pub(super) struct Variant<'a> {
    /// A folder of `model_repository/`.
    pub(super) base: &'a str,
    /// What it is called on the server.
    pub(super) name: String,
    pub(super) threads: usize,
    /// Text that takes another's place.
    pub(super) replaced: Option<(&'a str, String)>,
}

impl Variant<'_> {
    /// Its config.pbtxt.
    ///
    /// # Errors
    /// The shipped configuration lacks what is to be replaced.
    fn config(&self, shipped: &str) -> Result<String> {
        let mut config = shipped.to_owned();
        let name = (format!("name: \"{}\"", self.base), format!("name: \"{}\"", self.name));
        let replaced = self.replaced.iter().map(|(old, new)| ((*old).to_owned(), new.clone()));
        for (old, new) in [name].into_iter().chain(replaced) {
            ensure!(config.contains(&old), "the configuration of {} lacks `{old}`", self.base);
            config = config.replacen(&old, &new, 1);
        }
        for (key, value) in [("threads", self.threads.to_string()), ("device", "cpu".into())] {
            config.push_str(&format!(
                "parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n"
            ));
        }
        Ok(config)
    }
}

/// Lays out a repository of these, with `weights` as the checkpoint of all. Returns its folder.
pub(super) fn lay_out(
    project: &Project,
    weights: &Path,
    variants: &[Variant<'_>],
) -> Result<PathBuf> {
    let folder = project.state("bench/triton/models");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for variant in variants {
        let shipped = project.path("model_repository").join(variant.base).join("config.pbtxt");
        let config = fs::read_to_string(&shipped)
            .with_context(|| format!("cannot read {}", shipped.display()))?;
        let home = folder.join(&variant.name);
        crate::setup::link(weights, &home.join("1/model.gguf"))?;
        let file = home.join("config.pbtxt");
        fs::write(&file, variant.config(&config)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_differs_in_what_was_asked_for() {
        let shipped = include_str!("../../../../model_repository/smollm2_iterative/config.pbtxt");
        let variant = Variant {
            base: "smollm2_iterative",
            name: "other".into(),
            threads: 1,
            replaced: Some(("direct { }", "oldest { }".into())),
        };
        let config = variant.config(shipped).unwrap();
        assert!(config.contains("name: \"other\"") && config.contains("  oldest { }"), "{config}");
        assert!(!config.contains("direct { }"));
        assert!(config.contains("key: \"threads\" value { string_value: \"1\" }"));
        assert!(config.starts_with(&shipped[..100]));
        let missing = Variant { replaced: Some(("no such text", String::new())), ..variant };
        assert!(missing.config(shipped).unwrap_err().to_string().contains("no such text"));
    }
}
