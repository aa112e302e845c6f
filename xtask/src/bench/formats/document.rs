//! The document: every word of it but the remarks is written by the command.

use std::fmt::Write;

use jiff::Zoned;

use super::super::markdown;
use super::super::remarks;
use super::super::spread::Spread;
use super::{Found, Machine, NAME, TEXTS};

/// What is told besides figures.
pub(super) struct Told {
    pub(super) command: String,
    /// Of the project.
    pub(super) state: String,
    pub(super) machine: Machine,
}

/// The whole file.
pub(super) fn write(found: &[Found], told: &Told, remarks: &str) -> String {
    let Told { command, state, machine } = told;
    let load = machine.load_average.map_or_else(String::new, |[minute, ..]| {
        format!(", load average {minute:.1} before the last measurement")
    });
    let mut text = format!(
        "# Formats of a draft\n\n\
         Written by `{command}` on {}, {state};\n\
         only the remarks are kept from one time to the next. Model: SmolLM2-135M-Instruct, on the CPU: {}, {} cores,\n\
         {}{load}.\n\n\
         ![Perplexity against size]({NAME}.svg)\n\n",
        Zoned::now().strftime("%Y-%m-%d"),
        machine.cpu,
        machine.cores,
        machine.system,
    );
    for (place, (name, file)) in TEXTS.iter().enumerate() {
        let tokens = found.first().and_then(|one| one.scores.get(place)).map_or(0, |s| s.tokens);
        let rows: Vec<_> = found.iter().map(|one| row(one, place)).collect();
        let head = [
            "format",
            "bits a weight",
            "MB",
            "perplexity",
            "to the shadow's",
            "agreement",
            "divergence, nats",
            "decode, tok/s",
        ];
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "## {}: {tokens} tokens of `{file}`\n\n{}\n",
            capital(name),
            markdown::table(&head, &rows)
        );
    }
    text += "## How it was measured\n\n\
             - Embedding and LM head are `int8-g32` in every draft below 16 bits, and 8-bit in llama.cpp's files. Bits and\n\
             \x20 bytes count all tensors, with scales, norms in 32 bits. Weights are rounded to the nearest, with scales of least\n\
             \x20 squared error; no calibrated method.\n\
             - Perplexity: the protocol of llama.cpp's tool, chunks of 512 tokens of which the second half is scored. ± is the\n\
             \x20 standard error over tokens; two formats on the same tokens differ by far less than that by chance.\n\
             - Agreement: the share of these tokens whose most likely one is the shadow's. Divergence: KL(shadow ‖ draft),\n\
             \x20 the mean over them.\n\
             - llama.cpp's files are made by its own quantizer of the same weights in F16, which are their shadow here\n\
             \x20 (`tests/peer/perplexity.py`).\n\
             - Integer formats are multiplied with activations in 8 bits on a CPU, `nf4` and `fp8` with activations in f32.\n\
             - Speed: one sequence, 128 tokens, all cores; the median of the rounds, in brackets the lowest and the highest.\n";
    let _ =
        write!(text, "- All samples: `{NAME}.json`.\n\n## Remarks\n\n{}", remarks::marked(remarks));
    text
}

fn row(one: &Found, text: usize) -> Vec<String> {
    let name = match one.peer {
        true => format!("llama.cpp `{}`", one.name),
        false => format!("`{}`", one.name),
    };
    let mut cells =
        vec![name, format!("{:.2}", one.bits), format!("{:.1}", one.bytes as f64 / 1e6)];
    if let Some(score) = one.scores.get(text) {
        cells.push(format!("{:.3} ± {:.2}", score.perplexity, score.perplexity_error));
        cells.extend(match &score.shadow {
            Some(beside) => [
                format!("{:+.2} %", 100.0 * (score.perplexity / beside.perplexity - 1.0)),
                format!("{:.1} %", 100.0 * beside.agreement),
                format!("{:.4}", beside.divergence),
            ],
            None => ["–", "–", "–"].map(str::to_owned),
        });
    }
    cells.push(format!("{:.0}", Spread::of(one.speeds.iter().copied())));
    cells
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().to_string() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn the_document_compares_with_the_shadow_and_keeps_remarks() {
        let told = Told {
            command: "cargo xtask bench formats --rounds 5".into(),
            state: "commit abc".into(),
            machine: Machine::default(),
        };
        let text = write(&found(), &told, "Kept.");
        let rest = "+25.00 % | 75.0 % | 0.2500 | 100 (90–110) |";
        for row in [
            format!("| `nf4` | 4.50 | 1.5 | 25.000 ± 0.50 | {rest}"),
            format!("| `nf4` | 4.50 | 1.5 | 12.500 ± 0.50 | {rest}"),
            format!("| llama.cpp `Q4_0` | 5.00 | 1.5 | 27.500 ± 0.50 | {rest}"),
            "| `shadow` | 16.00 | 1.5 | 20.000 ± 0.50 | – | – | – |".into(),
        ] {
            assert!(text.contains(&row), "{row}\n{text}");
        }
        assert!(text.contains("## Reference: 512 tokens"), "{text}");
        assert_eq!(remarks::of(&text), "Kept.");
    }
}
