//! `cargo xtask bench monitor`: what the monitor, a rewind and each policy cost, and a document of it.
//!
//! The figures are those that `rewind bench` prints, kept together, each with what the project asks.

use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use jiff::Zoned;

use super::options::{self, Options};
use super::{remarks, revision};
use crate::process;
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "monitor";

/// A part of the document: a `rewind bench` command and what is asked of its figures.
struct Part {
    title: &'static str,
    asked: &'static str,
    arguments: &'static [&'static str],
    /// Instead of `arguments`, if it is to be quick.
    quick: &'static [&'static str],
    /// Whether it takes the number of rounds.
    rounds: bool,
}

/// In the order of the document. The first takes half an hour, the last three quarters of one.
const PARTS: [Part; 3] = [
    Part {
        title: "The monitor, on and off",
        asked: "Asked: at most 0.2 % of a decode step of one sequence, and 0.4 % of one of 16 sequences.",
        arguments: &["overhead"],
        quick: &["overhead", "--batch", "1", "--pairs", "500"],
        rounds: false,
    },
    Part {
        title: "A rewind",
        asked: "Asked: a shadow pass over 4 rows costs at most 1.6 passes over one row, and over 8 rows 2.2 \
                passes.",
        arguments: &["rewind-cost"],
        quick: &["rewind-cost", "--turns", "3"],
        rounds: true,
    },
    Part {
        title: "Policies against trigger rate",
        asked: "Asked: nothing but the figures. The defaults of `verify_rows` and `verify_wait` come from the \
                last table.",
        arguments: &["throughput"],
        quick: &["throughput", "--batch", "1", "--rates", "0,0.2", "--tokens", "16", "--no-sweep"],
        rounds: true,
    },
];

/// A part as it was run.
struct Printed {
    part: &'static Part,
    command: String,
    text: String,
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let mut printed = Vec::new();
    for part in &PARTS {
        let arguments = part.arguments(options);
        let mut command = Command::new(&assembly.cli);
        command.arg("bench").args(&arguments).arg("--model").arg(&tools.model);
        let text = process::printed(command)?;
        println!("{text}");
        let command = format!("rewind bench {} --model MODEL", arguments.join(" "));
        printed.push(Printed { part, command, text });
    }
    let about = format!(
        "Written by `{}` on {}, {}; only the remarks are kept from one time to the next.\n\
         Model: SmolLM2-135M-Instruct, draft `int4-g32`, shadow `f16`, on the CPU.\n",
        options.command(NAME),
        Zoned::now().strftime("%Y-%m-%d"),
        revision::of(project),
    );
    options::write(&out, |remarks| document(&about, &printed, remarks))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

impl Part {
    fn arguments(&self, options: &Options) -> Vec<String> {
        let arguments = if options.quick { self.quick } else { self.arguments };
        let mut arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        if self.rounds {
            arguments.extend(["--rounds".to_owned(), options.rounds().to_string()]);
        }
        arguments
    }
}

fn document(about: &str, printed: &[Printed], remarks: &str) -> String {
    let mut text = format!("# What the monitor and rewinds cost\n\n{about}");
    for Printed { part: Part { title, asked, .. }, command, text: output } in printed {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n## {title}\n\n{asked}\n\n```console\n$ {command}\n{}\n```\n",
            output.trim_end()
        );
    }
    let _ = write!(text, "\n## Remarks\n\n{}", remarks::marked(remarks));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_part_and_keeps_its_remarks() {
        let printed = PARTS.each_ref().map(|part| Printed {
            part,
            command: format!("rewind bench {}", part.arguments[0]),
            text: "1.00 – 2.00\n\n".into(),
        });
        let text = document("About.\n", &printed, "Odd.");
        for part in &PARTS {
            let place = text.split_once(part.title).expect("every part has its title").1;
            let place = place.split_once(part.asked).expect("what is asked comes next").1;
            let command = format!("$ rewind bench {}\n1.00 – 2.00\n```\n", part.arguments[0]);
            assert!(place.starts_with(&format!("\n\n```console\n{command}")), "{text}");
        }
        assert_eq!(document("About.\n", &printed, remarks::of(&text)), text);
    }
}
