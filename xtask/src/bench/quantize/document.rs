//! The document: every word of it but the remarks is written by the command.

use std::fmt::Write;

use jiff::Zoned;

use super::super::markdown;
use super::super::remarks;
use super::{CALIBRATION, Found, Large, NAME, Run, Score, TEXTS};

/// What is told besides figures.
pub(super) struct Told {
    pub(super) command: String,
    /// Of the project.
    pub(super) state: String,
}

/// The whole file.
pub(super) fn write(found: &Found, told: &Told, remarks: &str) -> String {
    let Told { command, state } = told;
    let machine = &found.machine;
    let mut text = format!(
        "# Methods of quantizing\n\n\
         Written by `{command}` on {}, {state};\n\
         only the remarks are kept from one time to the next. Model: SmolLM2-135M-Instruct, on the CPU: {}, {} cores, {}.\n",
        Zoned::now().strftime("%Y-%m-%d"),
        machine.cpu,
        machine.cores,
        machine.system,
    );
    // Writing to a string cannot fail.
    for (name, file) in TEXTS {
        let scored = || {
            found.runs.iter().filter_map(|run| {
                run.scores.iter().find(|(text, _)| text == name).map(|(_, score)| (run, score))
            })
        };
        let Some((_, first)) = scored().next() else { continue };
        let rows: Vec<_> =
            scored().map(|(run, score)| row(run, score, rounding(found, run, name))).collect();
        let head = [
            "format",
            "method",
            "calibrated on",
            "perplexity",
            "to the shadow's",
            "of what rounding loses",
            "agreement",
            "divergence, nats",
        ];
        let _ = write!(
            text,
            "\n## Scored on {name}: {} tokens of `{file}`\n\nThe shadow's perplexity is {:.3}.\n\n{}",
            first.tokens,
            first.shadow.perplexity,
            markdown::table(&head, &rows)
        );
    }
    let rows: Vec<_> = found.runs.iter().map(cost).collect();
    let head = ["format", "method", "tokens read", "bits a weight", "seconds", "peak memory, MB"];
    let _ = write!(text, "\n## What making them takes\n\n{}", markdown::table(&head, &rows));
    if let Some(large) = &found.large {
        let _ = write!(text, "\n## A large checkpoint\n\n{}", streamed(large));
    }
    let _ = write!(
        text,
        "\n## How it was measured\n\n\
         - Embedding and LM head are `int8-g32` in every folder; bits a weight are those of the layers, with scales.\n\
         - Calibrated methods read at most {CALIBRATION} chunks of 512 tokens of the text that they are not scored on.\n\
         - Perplexity: the protocol of llama.cpp's tool, chunks of 512 tokens of which the second half is scored. ± is the\n\
         \x20 standard error over tokens; two folders on the same tokens differ by far less than that by chance.\n\
         - Agreement: the share of these tokens whose most likely one is the shadow's. Divergence: KL(shadow ‖ draft),\n\
         \x20 the mean over them; \"of what rounding loses\" compares divergences in the same format.\n\
         - Peak memory is that of the process, mapped files that were in memory included.\n\
         - All samples: `{NAME}.json`.\n\n## Remarks\n\n{}",
        remarks::marked(remarks)
    );
    text
}

/// Divergence of plain rounding in the same format on the same text.
fn rounding(found: &Found, run: &Run, text: &str) -> Option<f64> {
    let plain = found.runs.iter().find(|one| one.method == "rtn" && one.format == run.format)?;
    plain.scores.iter().find(|(name, _)| name == text).map(|(_, score)| score.shadow.divergence)
}

fn row(run: &Run, score: &Score, rounding: Option<f64>) -> Vec<String> {
    let beside = &score.shadow;
    let share = rounding.map_or_else(
        || "–".to_owned(),
        |rounding| format!("{:.0} %", 100.0 * beside.divergence / rounding),
    );
    vec![
        format!("`{}`", run.format),
        format!("`{}`", run.method),
        run.calibration.clone().unwrap_or_else(|| "–".into()),
        format!("{:.3} ± {:.2}", score.perplexity, score.perplexity_error),
        format!("{:+.2} %", 100.0 * (score.perplexity / beside.perplexity - 1.0)),
        share,
        format!("{:.1} %", 100.0 * beside.agreement),
        format!("{:.4}", beside.divergence),
    ]
}

fn cost(run: &Run) -> Vec<String> {
    vec![
        format!("`{}`", run.format),
        format!("`{}`", run.method),
        run.tokens.map_or_else(|| "–".to_owned(), |tokens| tokens.to_string()),
        format!("{:.2}", run.bits),
        format!("{:.1}", run.seconds),
        megabytes(run.peak_memory),
    ]
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "not known".to_owned(), |bytes| format!("{:.0}", bytes as f64 / 1e6))
}

fn streamed(large: &Large) -> String {
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    format!(
        "{}, random weights in BF16, {}: `rewind quantize --method rtn --draft {}` makes {} of it in {:.0} s, with {} MB of\n\
         memory at most.\n",
        large.shape,
        gigabytes(large.source_bytes),
        large.format,
        gigabytes(large.bytes),
        large.seconds,
        megabytes(large.peak_memory)
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn methods_stand_beside_rounding_and_remarks_are_kept() {
        let told =
            Told { command: "cargo xtask bench quantize".into(), state: "commit abc".into() };
        let mut found = found();
        found.large = Some(Large {
            shape: "32 layers".into(),
            format: "int4-g128".into(),
            source_bytes: 13_500_000_000,
            bytes: 3_800_000_000,
            seconds: 301.4,
            peak_memory: Some(2_500_000_000),
        });
        let text = write(&found, &told, "Kept.");
        for part in [
            "| `int4-g32` | `rtn` | – | 25.000 ± 0.50 | +25.00 % | 100 % | 75.0 % | 0.2500 |",
            "| `int4-g32` | `gptq` | reference | 22.000 ± 0.50 | +10.00 % | 88 % | 75.0 % | 0.2200 |",
            "| `int4-g32` | `gptq` | prose | 24.000 ± 0.50 | +20.00 % | 80 % | 75.0 % | 0.2400 |",
            "| `int4-g32` | `rtn` | – | 4.50 | 12.3 | 250 |",
            "## Scored on reference: 512 tokens",
            "The shadow's perplexity is 20.000.",
            "13.5 GB: `rewind quantize --method rtn --draft int4-g128` makes 3.8 GB of it in 301 s, with 2500 MB",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(remarks::of(&text), "Kept.");
    }
}
