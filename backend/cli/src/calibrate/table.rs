//! A calibration for people.

use anyhow::Result;
use rewind_evidence::{BUDGETS, Calibration};

use super::Report;
use crate::output;

/// Prints it.
pub(super) fn print(report: &Report) -> Result<()> {
    output::line(format_args!(
        "draft {} ({}), target {}; figures are of documents that were held out",
        report.draft, report.draft_identity, report.target
    ))?;
    for calibration in &report.domains {
        domain(calibration)?;
    }
    for path in &report.profiles {
        output::line(format_args!("wrote {}", path.display()))?;
    }
    output::line(format_args!("{:.1} s", report.seconds))
}

fn domain(calibration: &Calibration) -> Result<()> {
    let (train, test) = (&calibration.train, &calibration.test);
    output::line(format_args!(
        "\n{}: fitted to {} steps of {} documents; held out {} steps of {}, {} of which differ ({:.2} %), shadow \
         regret {:.5} nats, divergence {:.5} nats",
        calibration.domain,
        train.steps,
        train.documents,
        test.steps,
        test.documents,
        test.disagreements,
        100.0 * test.disagreements as f64 / test.steps as f64,
        test.regret,
        test.divergence
    ))?;
    let budgets = BUDGETS.map(|share| format!("{:>6}", format!("{} %", 100.0 * share))).join(" ");
    output::line(format_args!(
        "  {:8} {:>6} {:>15} {:>24}  caught at {budgets}  {:>10} {:>7} {:>7} {:>9}",
        "detector", "AUC", "95 %", "over margin", "threshold", "flagged", "caught", "regret"
    ))?;
    let thresholds = [
        calibration.thresholds.entropy.threshold,
        calibration.thresholds.top1.threshold,
        calibration.thresholds.margin.threshold,
        (calibration.fused.base + calibration.fused.noise_floor) as f32,
    ];
    for (judged, threshold) in calibration.detectors.iter().zip(thresholds) {
        let caught = judged.caught_at.map(|share| format!("{:>6}", percent(share))).join(" ");
        output::line(format_args!(
            "  {:8} {:>6} {:>15} {:>24}            {caught}  {threshold:>10.4} {:>7} {:>7} {:>9.5}",
            judged.detector,
            number(judged.auc),
            interval(judged.auc_interval),
            with_interval(judged.over_margin, judged.over_margin_interval),
            percent(judged.rate),
            percent(judged.caught),
            judged.regret
        ))?;
    }
    for variant in &calibration.variants {
        output::line(format_args!(
            "  {:>15} {:>39}  {}",
            number(variant.auc),
            with_interval(variant.over_margin, variant.over_margin_interval),
            variant.name
        ))?;
    }
    for sampled in &calibration.sampled {
        let auc = sampled.auc.iter().map(|(name, auc)| format!("{name} {}", number(*auc)));
        output::line(format_args!(
            "  sampled at temperature {}: {} differ; AUC {}",
            sampled.temperature,
            sampled.disagreements,
            auc.collect::<Vec<_>>().join(", ")
        ))?;
    }
    if let Some(noise) = calibration.margin_noise {
        let [low, high] = noise.sigma_interval;
        output::line(format_args!(
            "  noise of the margin: σ {:.4} ({low:.4} to {high:.4}) nats",
            noise.sigma
        ))?;
    }
    Ok(())
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.4}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".into(), |share| format!("{:.1} %", 100.0 * share))
}

fn interval(ends: Option<[f64; 2]>) -> String {
    ends.map_or_else(|| "–".into(), |[low, high]| format!("{low:.4}..{high:.4}"))
}

fn with_interval(value: Option<f64>, ends: Option<[f64; 2]>) -> String {
    match (value, ends) {
        (Some(value), Some([low, high])) => format!("{value:+.4} ({low:+.4}..{high:+.4})"),
        (Some(value), None) => format!("{value:+.4}"),
        (None, _) => "–".into(),
    }
}
