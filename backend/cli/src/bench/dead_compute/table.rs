//! The report for people.

use anyhow::Result;
use rewind_evidence::dead_compute::Figure;

use super::super::table::Table;
use super::Report;
use crate::output;

/// Prints it.
pub(super) fn print(report: &Report) -> Result<()> {
    output::line(format_args!(
        "draft {}, temperature {}, {} prompts, {} tokens an answer; thresholds from {} other prompts\n",
        report.draft, report.temperature, report.prompts, report.tokens, report.observed
    ))?;
    for (place, length) in report.lengths.iter().enumerate() {
        output::line(format_args!("to {length} tokens:"))?;
        let batches: Vec<_> =
            report.batches.iter().map(|batch| format!("ms a live token, {batch}")).collect();
        let head = ["policy", "hazard", "diverged", "dead", "95 %", "regret, nats", "rewinds"];
        let head: Vec<_> = head.into_iter().chain(batches.iter().map(String::as_str)).collect();
        let mut table = Table::new(&head);
        for line in &report.runs {
            let Some(figures) = line.all.get(place) else { continue };
            let cells = [
                line.run.to_string(),
                format!("{:.5}", figures.hazard.value),
                percent(&figures.diverged),
                percent(&figures.dead_tokens),
                interval(&figures.dead_tokens),
                figures.regret.map_or("–".into(), |regret| format!("{:.5}", regret.value)),
                percent(&figures.rewinds_per_token),
            ];
            let live = figures.cost_per_live_token.iter();
            table.row(cells.into_iter().chain(live.map(|cost| format!("{:.3}", 1e3 * cost.value))));
        }
        table.print()?;
        output::line("")?;
    }
    output::line("dead tokens of each domain, at the greatest length:")?;
    let names: Vec<_> =
        report.runs.first().into_iter().flat_map(|l| &l.domains).map(|(name, _)| &**name).collect();
    let head: Vec<_> = std::iter::once("policy").chain(names).collect();
    let mut table = Table::new(&head);
    for line in &report.runs {
        let cells = line.domains.iter().map(|(_, figures)| percent(&figures.dead_tokens));
        table.row(std::iter::once(line.run.to_string()).chain(cells));
    }
    table.print()?;
    if report.tasks.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let mut table = Table::new(&["policy", "tasks", "right", "gained", "lost", "same tokens"]);
    for line in &report.tasks {
        table.row(line.cells());
    }
    table.print()
}

fn percent(figure: &Figure) -> String {
    format!("{:.1} %", 100.0 * figure.value)
}

fn interval(figure: &Figure) -> String {
    figure
        .interval
        .map_or("–".into(), |[low, high]| format!("{:.1} – {:.1}", 100.0 * low, 100.0 * high))
}
