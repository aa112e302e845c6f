//! `cargo xtask bench monitor`: what the monitor, a rewind and each policy cost, and a document of it.
//!
//! The figures are those that `rewind bench` prints, kept together, each with what the project asks. A part
//! can be measured alone; the others stay as they were written.

use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use jiff::Zoned;

use super::{options, remarks, revision};
use crate::process;
use crate::progress::brief;
use crate::project::Project;
use crate::setup::{self, Kernels};

/// Of the bench.
const NAME: &str = "monitor";

/// Options of `cargo xtask bench monitor`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    common: options::Options,
    /// Measure these parts only; all of them take over an hour
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Name>,
}

/// Names of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Overhead,
    RewindCost,
    Throughput,
}

/// A part of the document: a `rewind bench` command and what is asked of its figures.
struct Part {
    name: Name,
    title: &'static str,
    asked: &'static str,
    arguments: &'static [&'static str],
    /// Instead of `arguments`, if it is to be quick.
    quick: &'static [&'static str],
    /// Whether it takes the number of rounds.
    rounds: bool,
}

/// In the order of the document. The first and the last take about half an hour each.
const PARTS: [Part; 3] = [
    Part {
        name: Name::Overhead,
        title: "The monitor, on and off",
        asked: "Asked: at most 0.2 % of a decode step of one sequence, and 0.4 % of one of 16 sequences.",
        arguments: &["overhead"],
        quick: &["overhead", "--batch", "1", "--pairs", "500"],
        rounds: false,
    },
    Part {
        name: Name::RewindCost,
        title: "A rewind",
        asked: "Asked: a shadow pass over 4 rows costs at most 1.6 passes over one row, and over 8 rows 2.2 \
                passes.",
        arguments: &["rewind-cost"],
        quick: &["rewind-cost", "--turns", "3"],
        rounds: true,
    },
    Part {
        name: Name::Throughput,
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
    name: Name,
    /// On what day, and at what state of the project.
    when: String,
    command: String,
    text: String,
}

/// Measures, and writes the document.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let started = Instant::now();
    let out = options.common.place.document(project, NAME)?;
    let (tools, assembly) = setup::everything(project, Kernels::ForAGpu)?;
    let when = format!("{}, {}", Zoned::now().strftime("%Y-%m-%d"), revision::of(project));
    let mut printed = Vec::new();
    for part in
        PARTS.iter().filter(|part| options.only.is_empty() || options.only.contains(&part.name))
    {
        let arguments = part.arguments(&options.common);
        let mut command = Command::new(&assembly.cli);
        // Relative, since the output names it.
        let root = project.path("");
        let model = tools.model.strip_prefix(&root).unwrap_or(&tools.model);
        command.current_dir(&root).arg("bench").args(&arguments).arg("--model").arg(model);
        let text = process::printed(command)?;
        println!("{text}");
        let command = format!("rewind bench {} --model MODEL", arguments.join(" "));
        printed.push(Printed { name: part.name, when: when.clone(), command, text });
    }
    options::write(&out, |before| document(&printed, before))?;
    println!("{} is written ({}).", out.display(), brief(started.elapsed()));
    Ok(())
}

impl Part {
    fn arguments(&self, options: &options::Options) -> Vec<String> {
        let arguments = if options.place.quick { self.quick } else { self.arguments };
        let mut arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        if self.rounds {
            arguments.extend(["--rounds".to_owned(), options.rounds().to_string()]);
        }
        arguments
    }
}

/// The document: new parts as they were printed, the others and the remarks as `before` has them.
fn document(printed: &[Printed], before: &str) -> String {
    let mut text = "# What the monitor and rewinds cost\n\n\
                    Written by `cargo xtask bench monitor`, each part when it says; only the remarks are kept from one\n\
                    time to the next. Model: SmolLM2-135M-Instruct, draft `int4-g32`, shadow `f16`, on the CPU.\n"
        .to_owned();
    for Part { name, title, asked, .. } in &PARTS {
        // Writing to a string cannot fail.
        let _ = match printed.iter().find(|printed| printed.name == *name) {
            Some(Printed { when, command, text: output, .. }) => write!(
                text,
                "\n## {title}\n\n{asked} Measured on {when}.\n\n```console\n$ {command}\n{}\n```\n",
                output.trim_end()
            ),
            None => match section(before, title) {
                Some(body) => write!(text, "\n## {title}\n{body}"),
                None => write!(text, "\n## {title}\n\n{asked} Not measured yet.\n"),
            },
        };
    }
    let _ = write!(text, "\n## Remarks\n\n{}", remarks::marked(remarks::of(before)));
    text
}

/// What stands below a heading, up to the next one.
fn section<'a>(document: &'a str, title: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("\n## {title}\n"))?;
    let end = rest.find("\n## ").unwrap_or(rest.len());
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(part: &Part, when: &str) -> Printed {
        let command = format!("rewind bench {}", part.arguments[0]);
        Printed { name: part.name, when: when.into(), command, text: "1.00 – 2.00\n\n".into() }
    }

    #[test]
    fn the_document_has_every_part_and_keeps_its_remarks() {
        let all = PARTS.each_ref().map(|part| printed(part, "Monday"));
        let text = document(&all, &remarks::marked("Odd."));
        for part in &PARTS {
            let body = section(&text, part.title).expect("every part has its title");
            let command = format!("$ rewind bench {}\n1.00 – 2.00\n```\n", part.arguments[0]);
            let expected = format!("\n{} Measured on Monday.\n\n```console\n{command}", part.asked);
            assert_eq!(body, expected);
        }
        assert_eq!(remarks::of(&text), "Odd.");
        assert_eq!(document(&all, &text), text);
    }

    #[test]
    fn parts_that_were_not_measured_stay() {
        let text = document(&[printed(&PARTS[1], "Monday")], "");
        assert!(section(&text, PARTS[0].title).expect("a part").ends_with("Not measured yet.\n"));
        let text = document(&[printed(&PARTS[0], "Tuesday")], &text);
        let when = |part: &Part| section(&text, part.title).expect("a part").contains("Tuesday");
        assert_eq!(PARTS.each_ref().map(when), [true, false, false]);
        assert!(section(&text, PARTS[1].title).expect("a part").contains("Monday"));
        assert_eq!(document(&[], &text), text);
    }
}
