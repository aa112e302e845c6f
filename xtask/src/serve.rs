//! `cargo xtask serve`: a server that stays up, and lines to paste.

use anyhow::Result;
use clap::Args;

use crate::demo::Model;
use crate::interrupt;
use crate::project::Project;
use crate::server::{Launch, Ports, Server};
use crate::setup::{self, Kernels};

/// Options of `cargo xtask serve`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Serve the iterative model
    #[arg(long)]
    iterative: bool,
    /// Port of HTTP on 127.0.0.1
    #[arg(long, default_value_t = 8000)]
    http_port: u16,
    /// Port of gRPC on 127.0.0.1
    #[arg(long, default_value_t = 8001)]
    grpc_port: u16,
    /// Port of the metrics on 127.0.0.1
    #[arg(long, default_value_t = 8002)]
    metrics_port: u16,
}

/// Serves until Ctrl-C.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let ports =
        Ports { http: options.http_port, grpc: options.grpc_port, metrics: options.metrics_port };
    ports.check()?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    interrupt::listen()?;
    let model = if options.iterative { Model::Iterative } else { Model::InFlight };
    eprintln!("Starting tritonserver with {} …", model.name());
    let mut server = Server::start(Launch {
        program: &tools.server,
        backends: &assembly.backends,
        models: model.repository(&assembly),
        ports,
        log: project.state("logs").join("serve.log"),
    })?;
    server.wait_ready()?;
    println!("{}", invitation(&server, model));
    server.run_until_interrupted()?;
    eprintln!("Stopping …");
    Ok(())
}

fn invitation(server: &Server, model: Model) -> String {
    let url = |verb| server.url(&format!("/v2/models/{}/{verb}", model.name()));
    let Ports { grpc, metrics, .. } = server.ports();
    format!(
        r#"Ready. gRPC listens on 127.0.0.1:{grpc}, the log is {log}. Ctrl-C stops the server.

The whole answer at once:

  curl -s {generate} \
    -d '{{"text_input": "Why is the sky blue?", "max_tokens": 48, "temperature": 0, "chat": true, "exclude_input_in_output": true}}'

Token by token, with entropy, threshold and decision:

  curl -sN {stream} \
    -d '{{"text_input": "Why is the sky blue?", "max_tokens": 48, "temperature": 0, "chat": true, "stream": true, "return_rewind": true}}'

The same with the shadow's own words guaranteed:

  curl -sN {stream} \
    -d '{{"text_input": "Why is the sky blue?", "max_tokens": 48, "temperature": 0, "chat": true, "stream": true, "policy": "lossless"}}'

Metrics:

  curl -s http://127.0.0.1:{metrics}/metrics | grep ^rewind_
"#,
        log = server.log().display(),
        generate = url("generate"),
        stream = url("generate_stream"),
    )
}
