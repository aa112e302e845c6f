//! One run of a real tritonserver on loopback ports, from start to a stop that cannot be forgotten.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use ureq::Agent;

use crate::interrupt;
use crate::process;
use crate::setup::TritonServer;

/// Packing the demo model's draft takes seconds; a big model on a slow disk takes minutes.
const READY_WITHIN: Duration = Duration::from_secs(600);

/// After SIGTERM the server finishes what is in flight. The kill comes after its own time limit.
const EXIT_TIMEOUT_SECONDS: u64 = 10;
const STOPPED_WITHIN: Duration = Duration::from_secs(EXIT_TIMEOUT_SECONDS + 5);

const POLL: Duration = Duration::from_millis(50);

/// The three ports of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) grpc: u16,
    pub(crate) metrics: u16,
}

impl Ports {
    /// Three ports that are free now.
    pub(crate) fn free() -> Result<Self> {
        // All three are held at once, or the system may give the same one again.
        let held = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let mut ports = held.iter().map(|listener| match listener {
            Ok(listener) => listener.local_addr().map(|address| address.port()),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        });
        let mut next = || match ports.next() {
            Some(port) => port.context("cannot find a free port on 127.0.0.1"),
            None => bail!("fewer ports than were asked for"),
        };
        Ok(Self { http: next()?, grpc: next()?, metrics: next()? })
    }

    /// An error that names the first port that is taken, or asked for twice.
    pub(crate) fn check(self) -> Result<()> {
        let ports = [
            ("--http-port", self.http),
            ("--grpc-port", self.grpc),
            ("--metrics-port", self.metrics),
        ];
        let hold = |(option, port)| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!("port {port} of 127.0.0.1 cannot be used; choose another with {option}")
            })
        };
        let _held: Vec<TcpListener> = ports.into_iter().map(hold).collect::<Result<_>>()?;
        Ok(())
    }
}

/// What a server is started with.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The server's program.
    pub(crate) program: &'a TritonServer,
    /// For `--backend-directory`.
    pub(crate) backends: &'a Path,
    /// For `--model-repository`: every model in it is loaded.
    pub(crate) models: &'a Path,
    /// Where it listens, on 127.0.0.1.
    pub(crate) ports: Ports,
    /// Takes all the server prints; replaced.
    pub(crate) log: PathBuf,
}

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    ports: Ports,
    log: PathBuf,
}

impl Server {
    /// Starts a server; it is not ready yet. The caller listens for Ctrl-C, or the server outlives us.
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self> {
        let Launch { program, backends, models, ports, log } = launch;
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        let output =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = program.command();
        command
            .arg("--model-repository")
            .arg(models)
            .arg("--backend-directory")
            .arg(backends)
            .args(["--http-address", "127.0.0.1", "--http-port", &ports.http.to_string()])
            .args(["--grpc-address", "127.0.0.1", "--grpc-port", &ports.grpc.to_string()])
            .args(["--metrics-address", "127.0.0.1", "--metrics-port", &ports.metrics.to_string()])
            .args(["--exit-timeout-secs", &EXIT_TIMEOUT_SECONDS.to_string()])
            // A group of its own: the terminal's Ctrl-C comes to us, and we stop the server in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log file")?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.binary().display()))?;
        Ok(Self { child, ports, log })
    }

    /// Waits until the server is up and all its models are loaded.
    ///
    /// # Errors
    /// The server exits or does not become ready in time: the error ends with the last lines of its log. Ctrl-C.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let agent = agent(Some(Duration::from_secs(5)));
        let url = self.url("/v2/health/ready");
        let started = Instant::now();
        loop {
            interrupt::check()?;
            if let Some(status) = self.exited()? {
                bail!("the server stopped ({status}) before it was ready.\n{}", self.last_words());
            }
            if agent.get(&url).call().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                let seconds = READY_WITHIN.as_secs();
                bail!("the server was not ready after {seconds} s.\n{}", self.last_words());
            }
            thread::sleep(POLL);
        }
    }

    /// Keeps the server up until Ctrl-C, or until it stops by itself, which is an error.
    pub(crate) fn run_until_interrupted(&mut self) -> Result<()> {
        while !interrupt::asked() {
            if let Some(status) = self.exited()? {
                bail!("the server stopped by itself ({status}).\n{}", self.last_words());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its exit status, if it is not running any more.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("lost the server")
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    /// The address of `path` at its HTTP port.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.http)
    }

    /// The file with all it prints.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log, with a heading.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = process::tail(&String::from_utf8_lossy(&log));
        format!("The last lines of {}:\n{tail}", self.log.display())
    }

    /// A server that is really a shell script.
    #[cfg(test)]
    pub(crate) fn pretend(folder: &Path, script: &str, ports: Ports) -> Self {
        use std::os::unix::fs::PermissionsExt;

        let binary = folder.join("tritonserver");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let program = TritonServer::at(binary);
        loop {
            let started = Self::start(Launch {
                program: &program,
                backends: folder,
                models: folder,
                ports,
                log: folder.join("logs/server.log"),
            });
            // A test beside this one that forks just now holds our script open for writing, until it execs.
            let busy = |error: &anyhow::Error| {
                let cause = error.downcast_ref::<std::io::Error>();
                cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::ExecutableFileBusy)
            };
            match started {
                Err(error) if busy(&error) => thread::sleep(POLL),
                other => return other.unwrap(),
            }
        }
    }

    fn stop(&mut self) {
        let Ok(None) = self.child.try_wait() else { return };
        if kill_process(Pid::from_child(&self.child), Signal::TERM).is_ok() {
            let asked = Instant::now();
            while asked.elapsed() < STOPPED_WITHIN {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                thread::sleep(POLL);
            }
            eprintln!("The server did not stop when asked to, and is killed.");
        }
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client for a server on this machine: proxies of the environment do not apply, and an HTTP error status is an answer
/// like any other.
pub(crate) fn agent(within: Option<Duration>) -> Agent {
    Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(within)
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretend(folder: &Path, script: &str) -> Server {
        Server::pretend(folder, script, Ports::free().unwrap())
    }

    #[test]
    fn a_server_that_cannot_load_its_model_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = pretend(folder.path(), "echo failed to load smollm2 >&2; exit 7");
        let error = server.wait_ready().unwrap_err().to_string();
        assert!(error.contains("status: 7") && error.contains("failed to load smollm2"), "{error}");
    }

    #[test]
    fn the_server_is_told_where_to_listen_and_what_to_load() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = pretend(folder.path(), "echo \"$@\"; exit 1");
        let told = server.wait_ready().unwrap_err().to_string();
        let Ports { http, grpc, metrics } = server.ports();
        for expected in [
            format!("--http-address 127.0.0.1 --http-port {http} "),
            format!("--grpc-address 127.0.0.1 --grpc-port {grpc} "),
            format!("--metrics-address 127.0.0.1 --metrics-port {metrics} "),
            format!("--model-repository {} ", folder.path().display()),
            format!("--backend-directory {} ", folder.path().display()),
        ] {
            assert!(told.contains(&expected), "{expected} is not in {told}");
        }
    }

    #[test]
    fn dropping_a_server_asks_it_to_stop_and_waits() {
        let folder = tempfile::tempdir().unwrap();
        let script =
            "trap 'echo stopped in order; exit 0' TERM; echo up; while :; do sleep 0.02; done";
        let server = pretend(folder.path(), script);
        let log = server.log().to_owned();
        while !fs::read_to_string(&log).unwrap().contains("up") {
            thread::sleep(Duration::from_millis(5));
        }
        drop(server);
        assert!(fs::read_to_string(&log).unwrap().contains("stopped in order"));
    }

    #[test]
    fn free_ports_differ_and_are_free() {
        let ports = Ports::free().unwrap();
        assert!(
            ports.http != ports.grpc && ports.grpc != ports.metrics && ports.metrics != ports.http
        );
        ports.check().unwrap();
    }

    #[test]
    fn a_taken_port_is_named_with_its_option() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let grpc = taken.local_addr().unwrap().port();
        let ports = Ports { grpc, ..Ports::free().unwrap() };
        let error = ports.check().unwrap_err().to_string();
        assert!(error.contains(&grpc.to_string()) && error.contains("--grpc-port"), "{error}");

        let free = Ports::free().unwrap();
        let error = Ports { metrics: free.http, ..free }.check().unwrap_err().to_string();
        assert!(error.contains("--metrics-port"), "{error}");
    }
}
