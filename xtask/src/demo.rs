//! `cargo xtask demo`: from nothing to a streamed answer whose suspect steps can be seen being rewound.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use console::style;

use crate::answer::{Event, Measured, Totals};
use crate::generate::{self, Prompt};
use crate::interrupt;
use crate::marks::{self, Held};
use crate::project::Project;
use crate::server::{Launch, Ports, Server};
use crate::setup::{self, Assembly, Kernels, Tools};

/// The iterative model is shown to work, not to be read.
const SECOND_RUN_TOKENS: u32 = 32;

/// Options of `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to ask the model
    #[arg(long, default_value = "Tell me a short story about a fox and a lighthouse.")]
    prompt: String,
    /// Length limit of the answer, in tokens
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Policy of the request: off, observe, step, window, lossless or shadow; default: the model's own
    #[arg(long)]
    policy: Option<String>,
    /// Show the iterative model only
    #[arg(long)]
    iterative: bool,
    /// List every token with its entropy, score, threshold and decision
    #[arg(long)]
    tokens: bool,
}

/// Runs the demo.
pub(crate) fn run(project: &Project, options: Options) -> Result<()> {
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    interrupt::listen()?;
    let prompt =
        Prompt { text: options.prompt, max_tokens: options.max_tokens, policy: options.policy };
    let show =
        |model, prompt: &Prompt| answer(project, &tools, &assembly, model, prompt, options.tokens);
    if !options.iterative {
        show(Model::InFlight, &prompt)?;
        eprintln!();
    }
    let max_tokens = if options.iterative {
        prompt.max_tokens
    } else {
        prompt.max_tokens.min(SECOND_RUN_TOKENS)
    };
    show(Model::Iterative, &Prompt { max_tokens, ..prompt })
}

/// The two models of the repository.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Model {
    /// Batched by the engine's own loop.
    InFlight,
    /// Batched by Triton's scheduler, an iteration at a time.
    Iterative,
}

impl Model {
    /// Its name on the server.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InFlight => "smollm2",
            Self::Iterative => "smollm2_iterative",
        }
    }

    /// The repository that holds it alone.
    pub(crate) fn repository(self, assembly: &Assembly) -> &PathBuf {
        match self {
            Self::InFlight => &assembly.models,
            Self::Iterative => &assembly.models_iterative,
        }
    }

    fn explained(self) -> &'static str {
        match self {
            Self::InFlight => "the engine batches in flight",
            Self::Iterative => "Triton's sequence scheduler batches, one iteration at a time",
        }
    }
}

fn answer(
    project: &Project,
    tools: &Tools,
    assembly: &Assembly,
    model: Model,
    prompt: &Prompt,
    list: bool,
) -> Result<()> {
    let name = model.name();
    eprintln!("Starting tritonserver with {name} ({}) …", model.explained());
    let mut server = Server::start(Launch {
        program: &tools.server,
        backends: &assembly.backends,
        models: model.repository(assembly),
        ports: Ports::free()?,
        log: project.state("logs").join(format!("demo-{name}.log")),
    })?;
    server.wait_ready()?;

    let colours = console::colors_enabled();
    let mut out = io::stdout().lock();
    let mut say = |text: &str| {
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("cannot write to the terminal")
    };
    say(&format!("\n{} {}\n{}\n\n", style("❯").cyan(), prompt.text, marks::legend(colours)))?;
    let mut totals = Totals::default();
    let mut held = Held::default();
    let mut rows = String::new();
    let mut text = String::new();
    generate::stream(&mut server, name, prompt, |event, when| {
        totals.add(event, when);
        if list {
            rows.push_str(&table_rows(event));
        }
        text.push_str(&event.text());
        say(&marks::marked(event, &mut held, colours))
    })?;
    // One empty line below the answer, however many the answer ends with.
    let below = 2_usize.saturating_sub(text.len() - text.trim_end_matches('\n').len());
    say(&"\n".repeat(below))?;
    if list {
        say(&format!("{TABLE_HEAD}\n{rows}\n"))?;
    }
    say(&format!("{}\n", style(totals.line()).bold()))?;
    ensure!(totals.tokens() > 0, "the answer has no tokens.\n{}", server.last_words());
    Ok(())
}

const TABLE_HEAD: &str = "   token  entropy    score  threshold  decision  text";

fn table_rows(event: &Event) -> String {
    let text = format!("{:?}", event.text());
    let last = event.tokens().count().saturating_sub(1);
    event
        .tokens()
        .enumerate()
        .map(|(index, token)| {
            // The text belongs to the event as a whole and stands beside its last token.
            let text = if index == last { text.as_str() } else { "" };
            let measured = match token.measured {
                Some(Measured { entropy, score, threshold }) => {
                    format!("{entropy:>7.3}  {score:>7.3}  {threshold:>9.3}")
                }
                None => format!("{:>7}  {:>7}  {:>9}", "–", "–", "–"),
            };
            format!("{:>8}  {measured}  {:<8}  {text}\n", token.id, token.decision)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_a_row_and_the_text_stands_at_the_last() {
        let event = Event::read(
            r#"{"text_output":" blue\n","token_ids":[8,9],"entropy":[0.5,4],"score":[0.5,4.0],
                "threshold":[2,2],"decision":["verified","rewound"]}"#,
        )
        .unwrap();
        let rows = table_rows(&event);
        let lines: Vec<&str> = rows.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("verified  "), "{rows}");
        assert!(lines[1].ends_with(r#"rewound   " blue\n""#), "{rows}");
        assert_eq!(lines[0].find("0.500"), Some(TABLE_HEAD.find("entropy").unwrap() + 2));
    }
}
