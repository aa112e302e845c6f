//! The document: every word of it but the remarks is written by the command.

use std::fmt::Write;

use super::super::markdown::table;
use super::super::remarks;
use super::orders::{Order, RANDOM};
use super::samples::{Found, Measured, Sample, Treatment};
use super::{CALIBRATION, HIGH, LOW, MILD, NAME, Part, TEXT};

/// Orders as columns: what they are called in samples, and in tables.
pub(super) const COLUMNS: [(&str, &str); 5] = [
    ("lim", "LIM"),
    ("zd", "ZD"),
    ("zd-two-sided", "ZD, two-sided"),
    (RANDOM, "random"),
    ("lim-reversed", "LIM reversed"),
];

/// How much higher than that of the high format a perplexity may be, per cent.
const TOLERANCES: [f64; 4] = [1.0, 2.0, 5.0, 10.0];

/// What writes a part.
type Section = fn(&Found, &Measured) -> String;

/// The whole file.
pub(super) fn write(found: &Found, remarks: &str) -> String {
    let mut text = format!(
        "# Layers with fewer bits, in order of importance\n\n\
         Written by `cargo xtask bench {NAME}`, each part when it says; only the remarks are kept from one time to the\n\
         next. Model: SmolLM2-135M-Instruct, {} layers, on the CPU.\n\n\
         What \"Layer-Wise Quantization\" (arXiv 2406.17415) reports of far larger models, looked at on a small one:\n\n\
         1. A quarter to a half of the layers can go to fewer bits at little loss if the least important go first, and only\n\
         \x20  5 to 10 % in no particular order.\n\
         2. The order also helps on top of a quantizer that already chooses well. Not looked at here: all codes are those\n\
         \x20  nearest to the weights.\n\
         3. Layers with fewer bits are far better than no layers at all (pruning), unless there are only 2 bits.\n\
         4. It works better the more layers a model has. One model says nothing of that.\n\n\
         ![Quality against the share of layers that were moved, and against layers that were removed]({NAME}.svg)\n",
        found.layers(),
    );
    let sections: [(&str, Part, Section); 3] = [
        ("More and more layers in 4 bits", Part::Shares, shares),
        ("The same layers removed", Part::Pruning, pruning),
        ("A low side that costs less", Part::Mild, mild),
    ];
    // Writing to a string cannot fail.
    for (title, part, section) in sections {
        let body = match found.parts.get(&part) {
            Some(measured) => {
                format!("{}\n{}", section(found, measured), origin(measured))
            }
            None => "Not measured yet.\n".into(),
        };
        let _ = write!(text, "\n## {title}\n\n{body}");
    }
    let _ = write!(text, "\n## The orders\n\n{}", orders(found));
    let _ = write!(text, "\n## Remarks\n\n{}", remarks::marked(remarks));
    let _ = write!(text, "\n## How it was measured\n\n{}", method());
    text
}

/// When, how and of how much.
fn origin(measured: &Measured) -> String {
    let tokens = measured.samples.first().map_or(0, |sample| sample.tokens);
    format!(
        "Measured on {} by `{}`: {tokens} tokens, {}.\n",
        measured.when, measured.command, measured.identity
    )
}

fn shares(found: &Found, measured: &Measured) -> String {
    let low = Treatment::Low;
    let mut text = format!(
        "Perplexity with so many layers in `{LOW}` and the others in `{HIGH}`; of random orders the mean, in brackets the\n\
         lowest and the highest{}:\n\n",
        match shadow(measured) {
            Some(shadow) => format!(". The shadow's is {shadow:.3}"),
            None => String::new(),
        }
    );
    text += &by_order(found, measured, low, |sample| Some(sample.perplexity), 2);
    let divergence: fn(&Sample) -> Option<f64> = |sample| sample.divergence;
    text += "\nDivergence from the shadow, KL(shadow ‖ draft), nats:\n\n";
    text += &by_order(found, measured, low, divergence, 4);
    text += "\nTokens of which the most likely one is the shadow's, per cent:\n\n";
    text += &by_order(found, measured, low, |s| s.agreement.map(|share| 100.0 * share), 1);
    text += &format!(
        "\nThe largest share that was measured up to which perplexity stays within so much of `{HIGH}` everywhere:\n\n"
    );
    text + &within(found, measured)
}

/// A row for each number of layers, a column for each order there is.
fn by_order(
    found: &Found,
    measured: &Measured,
    treatment: Treatment,
    figure: impl Fn(&Sample) -> Option<f64> + Copy,
    digits: usize,
) -> String {
    let layers = found.layers();
    let counts = measured.counts(treatment);
    let interior =
        counts.iter().copied().filter(|&count| count > 0 && count < layers).collect::<Vec<_>>();
    let has = |order: &str| {
        interior.iter().any(|&count| measured.of(treatment, order, count).next().is_some())
    };
    let columns: Vec<_> = COLUMNS.iter().filter(|(order, _)| has(order)).collect();
    let mut head = vec!["share", "layers", "bits a weight"];
    head.extend(columns.iter().map(|(_, title)| *title));
    let rows: Vec<_> = counts
        .iter()
        .map(|&count| {
            let mut row = vec![percent(count, layers), count.to_string()];
            row.push(bits(found, treatment, count).map_or("–".into(), |bits| format!("{bits:.2}")));
            row.extend(columns.iter().map(|(order, _)| {
                let values: Vec<f64> =
                    measured.of(treatment, order, count).filter_map(figure).collect();
                mean(&values, digits)
            }));
            row
        })
        .collect();
    table(&head, &rows)
}

/// The mean of some values, with the extremes if there are several.
fn mean(values: &[f64], digits: usize) -> String {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        0 => "–".into(),
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ({low:.digits$}–{high:.digits$})"),
    }
}

/// Bits of a weight over all tensors: all layers are of one size, so they lie on a line.
fn bits(found: &Found, treatment: Treatment, count: usize) -> Option<f64> {
    let low = if treatment == Treatment::Mild { MILD } else { LOW };
    let of = |format: &str| {
        let size = found.sizes.iter().find(|size| size.format.split(' ').next() == Some(format));
        size.map(|size| size.bits_per_weight)
    };
    let (high, low) = (of(HIGH)?, of(low)?);
    Some(high + (low - high) * count as f64 / found.layers() as f64)
}

fn shadow(measured: &Measured) -> Option<f64> {
    measured.samples.iter().find_map(|sample| sample.shadow)
}

/// Of what is measured, how far each order goes.
fn within(found: &Found, measured: &Measured) -> String {
    let layers = found.layers();
    let perplexity = |order: &str, count| {
        measured.mean(Treatment::Low, order, count, |sample| Some(sample.perplexity))
    };
    let counts = measured.counts(Treatment::Low);
    let mut head = vec!["perplexity at most"];
    head.extend(COLUMNS.iter().map(|(_, title)| *title));
    let rows: Vec<_> = TOLERANCES
        .iter()
        .map(|tolerance| {
            let mut row = vec![format!("+{tolerance:.0} %")];
            row.extend(COLUMNS.iter().map(|(order, _)| {
                let most = perplexity(order, 0).map(|base| base * (1.0 + tolerance / 100.0));
                let fits = |count: &&usize| match (perplexity(order, **count), most) {
                    (Some(found), Some(most)) => found <= most,
                    _ => false,
                };
                let last = counts.iter().take_while(fits).last();
                last.map_or("–".into(), |&count| percent(count, layers))
            }));
            row
        })
        .collect();
    table(&head, &rows)
}

fn percent(count: usize, layers: usize) -> String {
    format!("{:.0} %", 100.0 * count as f64 / layers as f64)
}

fn pruning(found: &Found, measured: &Measured) -> String {
    let orders = [COLUMNS[0], COLUMNS[1]];
    let mut head = vec!["layers".to_owned(), "share".to_owned()];
    for (_, title) in orders {
        for figure in ["", "divergence, "] {
            head.push(format!("{title}: {figure}`{LOW}`"));
            head.push(format!("{title}: {figure}removed"));
        }
    }
    let counts: Vec<_> =
        measured.counts(Treatment::Low).into_iter().filter(|&count| count > 0).collect();
    let rows: Vec<_> = counts
        .iter()
        .map(|&count| {
            let mut row = vec![count.to_string(), percent(count, found.layers())];
            for (order, _) in orders {
                let cell = |treatment, figure: fn(&Sample) -> Option<f64>, digits| {
                    let found = measured.mean(treatment, order, count, figure);
                    found.map_or("–".to_owned(), |found| format!("{found:.digits$}"))
                };
                let (low, removed) = (Treatment::Low, Treatment::Removed);
                row.push(cell(low, |sample| Some(sample.perplexity), 2));
                row.push(cell(removed, |sample| Some(sample.perplexity), 1));
                row.push(cell(low, |sample| sample.divergence, 4));
                row.push(cell(removed, |sample| sample.divergence, 2));
            }
            row
        })
        .collect();
    let base = measured.mean(Treatment::Low, "lim", 0, |sample| Some(sample.perplexity));
    let head: Vec<_> = head.iter().map(String::as_str).collect();
    format!(
        "Perplexity, and divergence from the shadow with all its layers, with the least important layers in `{LOW}`, or\n\
         removed; the others in `{HIGH}`, which alone reads {}:\n\n{}",
        base.map_or("–".into(), |base| format!("{base:.2}")),
        table(&head, &rows)
    )
}

fn mild(found: &Found, measured: &Measured) -> String {
    format!(
        "`{LOW}` is the low side of least bits: Rewind has no format of 2 or 3, so what the paper finds from 4 to 2 bits cannot\n\
         be repeated. In the other direction it can: perplexity from `{HIGH}` to `{MILD}`,\n\n{}\n\
         and the divergence from the shadow, nats:\n\n{}",
        by_order(found, measured, Treatment::Mild, |sample| Some(sample.perplexity), 3),
        by_order(found, measured, Treatment::Mild, |sample| sample.divergence, 5)
    )
}

/// What each order is, the layers that move first at the left.
fn orders(found: &Found) -> String {
    let name = |order: &Order| {
        let column = COLUMNS.iter().find(|(name, _)| *name == order.name);
        column.map_or_else(|| order.name.replace('-', " "), |(_, title)| (*title).to_owned())
    };
    let rows: Vec<_> = found
        .orders
        .iter()
        .filter(|order| order.name != "lim-reversed")
        .map(|order| {
            let layers: Vec<_> = order.layers.iter().map(usize::to_string).collect();
            vec![name(order), layers.join(" ")]
        })
        .collect();
    format!(
        "Layers, counted from 0, the least important first: in this order they are moved.\n\n{}",
        table(&["order", "layers"], &rows)
    )
}

fn method() -> String {
    format!(
        "- Importance: `rewind quantize --plan lim --text {CALIBRATION}`, `--plan zd`, `--plan zd-two-sided` and\n\
         \x20 `--plan random --seed N`, once each ([plans](../plans.md) defines them). The plans are composed of it, with a layer\n\
         \x20 more for each layer moved; embedding and head are `int8-g32` in all of them.\n\
         - Figures: `rewind perplexity --compare --text {TEXT}`, chunks of 512 tokens of which the second half is\n\
         \x20 scored; removed layers with `--without-layers`. All are of the same tokens, so that two of them differ by far less by\n\
         \x20 chance than the standard error over tokens that stands in the samples.\n\
         - Bits a weight count all tensors, with scales, norms in 32 bits.\n\
         - All samples: `{NAME}.json`.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::found;
    use super::*;

    #[test]
    fn orders_stand_side_by_side() {
        let text = write(&found(), "Odd.");
        let row = "| 25 % | 1 | 7.00 | 20.25 | 20.75 | 21.00 | 24.00 (23.00–25.00) | 30.00 |";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("| 100 % | 4 | 4.00 | 40.00 | 40.00 | 40.00 | 40.00 | 40.00 |"),
            "{text}"
        );
        assert!(text.contains("The shadow's is 20.000"), "{text}");
        assert_eq!(remarks::of(&text), "Odd.");
    }

    #[test]
    fn an_order_reaches_as_far_as_its_perplexity_allows() {
        let found = found();
        let text = within(&found, &found.parts[&Part::Shares]);
        assert!(text.contains("| +2 % | 25 % | 0 % | 0 % | 0 % | 0 % |"), "{text}");
        assert!(text.contains("| +10 % | 50 % | 25 % | 25 % | 0 % | 0 % |"), "{text}");
    }

    #[test]
    fn layers_that_are_removed_stand_beside_those_of_fewer_bits() {
        let text = write(&found(), "");
        assert!(
            text.contains("| 1 | 25 % | 20.25 | 60.0 | 0.2025 | 0.60 | – | – | – | – |"),
            "{text}"
        );
        assert_eq!(text.matches("Not measured yet.").count(), 1, "{text}");
    }
}
