//! The engine without a server: `rewind bench-engine` in a process of its own, asked for one round after the other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::cores;
use super::profile::Profile;
use super::sides::{Load, Round};

/// A process with the model loaded. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Bare {
    child: Child,
    /// `None` only while dropping.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Of Rewind.
    pub(super) version: String,
    /// What it says of the machine.
    pub(super) machine: Map<String, Value>,
}

/// What belongs to a round besides its log.
#[derive(Debug, Deserialize)]
struct Times {
    pass_seconds: f64,
    active_seconds: f64,
}

impl Bare {
    /// Loads `model`, with `threads` compute threads, on `core` if one is given.
    pub(super) fn start(
        cli: &Path,
        model: &Path,
        threads: usize,
        requests: &Path,
        core: Option<usize>,
    ) -> Result<Self> {
        let mut command = Command::new(cli);
        command.args(["bench-engine", "--device", "cpu", "--threads", &threads.to_string()]);
        command.arg("--model").arg(model).arg("--requests").arg(requests);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            cores::on(core, || command.spawn().context("cannot start `rewind bench-engine`"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("`rewind bench-engine` has no standard input or output")
        };
        let mut bare = Self {
            child,
            input: Some(input),
            output: BufReader::new(output),
            version: String::new(),
            machine: Map::new(),
        };

        #[derive(Deserialize)]
        struct First {
            version: String,
            machine: Map<String, Value>,
        }
        let line = bare.line()?;
        let First { version, machine } = serde_json::from_str(&line)
            .with_context(|| format!("`rewind bench-engine` printed {line}"))?;
        (bare.version, bare.machine) = (version, machine);
        Ok(bare)
    }

    /// Its process id.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Runs one round.
    pub(super) fn round(&mut self, load: Load) -> Result<Round> {
        let round = json!({ "concurrency": load.concurrency, "requests": load.requests });
        let Some(input) = &mut self.input else { bail!("`rewind bench-engine` is ending") };
        writeln!(input, "{round}").context("`rewind bench-engine` takes no more rounds")?;
        let line = self.line()?;
        let figures = Profile::read(&line)?.figures(load.concurrency)?;
        let Times { pass_seconds, active_seconds } =
            serde_json::from_str(&line).context("`rewind bench-engine` printed no times")?;
        Ok(Round { figures, idle: 1.0 - pass_seconds / active_seconds, rows: None })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).context("lost `rewind bench-engine`")?;
        if read == 0 {
            bail!("`rewind bench-engine` ended early; its reason stands above");
        }
        Ok(line)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The end of its input is the end of its work; in the middle of a round it would go on, so it is killed.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A command line that is really a shell script.
    fn pretend(script: &str) -> Result<(tempfile::TempDir, Bare)> {
        let folder = tempfile::tempdir()?;
        let cli = folder.path().join("rewind");
        // Run by the shell, so that nobody holds it open for writing when it starts.
        let body = folder.path().join("body.sh");
        fs::write(&body, script)?;
        fs::write(&cli, format!("#!/bin/sh\n. {}\n", body.display()))?;
        fs::set_permissions(&cli, fs::Permissions::from_mode(0o755))?;
        let bare = Bare::start(&cli, Path::new("m"), 1, Path::new("r"), None);
        bare.map(|bare| (folder, bare))
    }

    #[test]
    fn a_round_is_a_line_in_and_a_line_out() {
        let script = r#"
            echo '{"version": "1", "machine": {"cpu": "A chip"}}'
            while read line; do
              case "$line" in *'"requests":2'*) ;; *) exit 1;; esac
              echo '{"experiments":[{"requests":[{"timestamp":0,"response_timestamps":[1000000000]},
                     {"timestamp":1000000000,"response_timestamps":[2000000000]}]}],
                     "pass_seconds":1.9,"active_seconds":2.0}' | tr -d '\n'
              echo
            done"#;
        let (_folder, mut bare) = pretend(script).unwrap();
        assert_eq!((bare.version.as_str(), &bare.machine["cpu"]), ("1", &json!("A chip")));
        for _ in 0..2 {
            let round = bare.round(Load { concurrency: 1, requests: 2 }).unwrap();
            assert!((round.figures.rate - 1.0).abs() < 1e-9);
            assert!((round.idle - 0.05).abs() < 1e-9);
        }
    }

    #[test]
    fn one_that_ends_early_is_an_error() {
        let error = pretend("exit 1").unwrap_err();
        assert!(error.to_string().contains("ended early"), "{error:#}");
    }
}
