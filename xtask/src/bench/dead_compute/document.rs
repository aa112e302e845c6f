//! The document: every word of it but the remarks is written by the command.

use std::fmt::Write;

use jiff::Zoned;

use super::super::{markdown, remarks};
use super::{Figure, Figures, Found, Line, NAME};

/// What is told besides figures.
pub(super) struct Told {
    pub(super) command: String,
    /// Of the project.
    pub(super) state: String,
}

/// The whole file.
pub(super) fn write(found: &[Found], told: &Told, remarks: &str) -> String {
    let Told { command, state } = told;
    let mut text = format!(
        "# Dead compute\n\n\
         Written by `{command}` on {}, {state};\n\
         only the remarks are kept from one time to the next. Model: SmolLM2-135M-Instruct, shadow `f16`, on the CPU. In\n\
         brackets, 95 % bootstrap intervals over prompts.\n\n\
         ![Regret against cost]({NAME}.svg)\n\n\
         ## What the project asks for\n\n\
         With a rewind budget of 20 % and `refresh` 8 or more, the share of dead tokens is to fall by 85 % for `int8`, against\n\
         `off`, and by a double-digit percentage for the best draft of 4 to 6 bits, on four of five domains.\n\n",
        Zoned::now().strftime("%Y-%m-%d"),
    );
    for one in found {
        section(&mut text, one);
    }
    text += "## How it was measured\n\n\
        - *Dead* is what is served at or after the first token that differs from the shadow's answer to the same request\n\
        \x20 and seed. *Hazard* is the chance per token that an answer leaves the shadow's, over the tokens up to there.\n\
        \x20 *Regret* is the mean over served tokens of max ln p − ln p(served), by the shadow from a clean cache.\n\
        - Prompts are cut from documents of five domains (`backend/evidence/texts`); thresholds are quantiles of a detector's\n\
        \x20 score over draft answers to prompts of other documents, one for each domain. What share was rewound in the end\n\
        \x20 is a column.\n\
        - `off` reads prompts with the draft, as a server without a shadow would; all others read them with the shadow.\n\
        - Tokens do not depend on the batch, so they were generated 16 side by side; for each batch size, the engine ran again\n\
        \x20 over the recorded answers, and every pass it would have run got the measured time of a pass of that many rows\n\
        \x20 (`rewind bench batch`, `rewind bench rewind-cost`). Prompts are not counted.\n\
        - *ms a live token*: all time over the tokens before the first that differs.\n\n";
    let _ = write!(text, "## Remarks\n\n{}", remarks::marked(remarks));
    text
}

fn section(text: &mut String, found: &Found) {
    let way = match found.temperature == 0.0 {
        true => "greedy".to_owned(),
        false => format!("sampled at temperature {}", (100.0 * found.temperature).round() / 100.0),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "## `{}`, {way}\n\n{} prompts, {} tokens an answer, thresholds from {} other prompts. Draft {}; shadow {}.\n\n",
        found.draft,
        found.prompts,
        found.tokens,
        found.observed,
        found.draft_identity,
        found.shadow_identity
    );
    let mut head = vec!["policy".to_owned(), "rewound".into(), "hazard".into()];
    head.extend(found.lengths.iter().map(|length| format!("dead at {length}")));
    head.extend(["against `off`".into(), "regret, nats".into(), "shadow rows a token".into()]);
    head.extend(found.batches.iter().map(|batch| format!("ms a token, batch {batch}")));
    head.extend(found.batches.iter().map(|batch| format!("ms a live token, batch {batch}")));
    head.extend(found.batches.iter().map(|batch| format!("dead compute, batch {batch}")));
    let off = found.runs.iter().find(|line| line.run.policy == "off");
    let rows: Vec<_> = found.runs.iter().map(|line| row(line, off)).collect();
    let head: Vec<_> = head.iter().map(String::as_str).collect();
    *text += &markdown::table(&head, &rows);
    *text += "\nDead tokens at the greatest length, and how much less than under `off`, for each domain:\n\n";
    let domains = found.runs.first().into_iter().flat_map(|line| &line.domains);
    let head: Vec<_> = std::iter::once("policy").chain(domains.map(|(name, _)| &**name)).collect();
    let rows: Vec<_> = found.runs.iter().map(|line| domain_row(line, off)).collect();
    *text += &markdown::table(&head, &rows);
    *text += "\n";
    if found.tasks.is_empty() {
        return;
    }
    *text += "Tasks that can be checked, answered greedily; *gained* are right where the shadow is wrong, *lost* the\n\
              other way round:\n\n";
    let head = ["policy", "tasks", "right", "gained", "lost", "same tokens as the shadow's"];
    let rows: Vec<_> = found
        .tasks
        .iter()
        .map(|one| {
            vec![
                one.run.name(),
                format!("{} {}", one.tasks, one.kind),
                one.right.to_string(),
                one.gained.to_string(),
                one.lost.to_string(),
                one.same.to_string(),
            ]
        })
        .collect();
    *text += &markdown::table(&head, &rows);
    *text += "\n";
}

fn row(line: &Line, off: Option<&Line>) -> Vec<String> {
    let mut cells = vec![line.run.name()];
    let Some(last) = line.all.last() else { return cells };
    cells.push(percent(last.rewinds_per_token));
    cells.push(last.hazard.value.map_or("–".into(), |hazard| format!("{hazard:.5}")));
    cells.extend(line.all.iter().map(|figures| with_interval(figures.dead_tokens)));
    cells.push(less(last, off.and_then(|off| off.all.last())));
    cells.push(
        last.regret.and_then(|regret| regret.value).map_or("–".into(), |r| format!("{r:.5}")),
    );
    cells.push(format!("{:.2}", line.shadow_rows_per_token));
    cells.extend(
        last.cost_per_token.iter().chain(&last.cost_per_live_token).map(|cost| milliseconds(*cost)),
    );
    cells.extend(last.dead_compute.iter().map(|dead| percent(*dead)));
    cells
}

fn domain_row(line: &Line, off: Option<&Line>) -> Vec<String> {
    let cells = line.domains.iter().map(|(name, figures)| {
        let of_off = off.and_then(|off| off.domains.iter().find(|(other, _)| other == name));
        format!(
            "{}, {}",
            percent(figures.dead_tokens),
            less(figures, of_off.map(|(_, figures)| figures))
        )
    });
    std::iter::once(line.run.name()).chain(cells).collect()
}

/// How much less is dead than under `off`.
fn less(figures: &Figures, off: Option<&Figures>) -> String {
    let of = |figures: &Figures| figures.dead_tokens.value;
    match (of(figures), off.and_then(of)) {
        (Some(dead), Some(off)) if off > 0.0 => format!("{:+.0} %", 100.0 * (dead / off - 1.0)),
        _ => "–".into(),
    }
}

fn percent(figure: Figure) -> String {
    figure.value.map_or("–".into(), |value| format!("{:.1} %", 100.0 * value))
}

fn with_interval(figure: Figure) -> String {
    let value = percent(figure);
    figure.interval.map_or(value.clone(), |[low, high]| {
        format!("{value} ({:.1}–{:.1})", 100.0 * low, 100.0 * high)
    })
}

fn milliseconds(figure: Figure) -> String {
    figure.value.map_or("–".into(), |value| format!("{:.2}", 1e3 * value))
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    #[test]
    fn policies_are_compared_with_off_and_remarks_are_kept() {
        let told =
            Told { command: "cargo xtask bench dead-compute".into(), state: "commit abc".into() };
        let text = write(&found(), &told, "Kept.");
        for row in [
            "| `step`: margin, 20 %, refresh 8 | 20.0 % | 0.01000 | 6.0 % (3.0–12.0) | -90 % | 0.00200 | 1.50 | 4.00 | 8.00 | 6.0 % |",
            "| `step`: margin, 20 %, refresh 8 | 6.0 %, -90 % | 3.0 %, -90 % |",
            "| `off` | 100 copying | 40 | 1 | 3 | 80 |",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
        assert_eq!(remarks::of(&text), "Kept.");
    }
}
