//! What passes cost, from reports of other measurements.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rewind_bench::{Choosing, Measurement, Report, RewindCostFigures};
use rewind_evidence::dead_compute::{CostTable, Curve};
use serde::{Deserialize, de::DeserializeOwned};

#[derive(Debug, Deserialize)]
struct Speeds {
    measurements: Vec<Measurement>,
}

/// The table of a draft, out of what `bench batch` and `bench rewind-cost` printed.
pub(super) fn read(batch: &Path, rewind_cost: &Path) -> Result<CostTable> {
    let speeds: Report<Speeds> = parse(batch)?;
    let rewinds: Report<RewindCostFigures> = parse(rewind_cost)?;
    ensure!(
        speeds.model == rewinds.model,
        "{} is of {} and {} of {}: both must be of one draft",
        batch.display(),
        speeds.model.draft,
        rewind_cost.display(),
        rewinds.model.draft
    );
    let drafted = speeds.details.measurements.iter().filter(|one| one.weights == "draft");
    let draft = curve(drafted.map(|one| (one.batch, one.step_seconds.median)), batch)?;
    let of = |choosing| {
        let passes = rewinds.details.passes.iter();
        // Of one row, all is the last.
        let passes = passes.filter(move |pass| pass.choosing == choosing || pass.rows == 1);
        curve(passes.map(|pass| (pass.rows, pass.seconds.median)), rewind_cost)
    };
    Ok(CostTable { draft, shadow: of(Choosing::All)?, shadow_last: of(Choosing::Last)? })
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what the measurement prints", path.display()))
}

fn curve(points: impl Iterator<Item = (usize, f64)>, path: &Path) -> Result<Curve> {
    let mut points: Vec<_> = points.collect();
    points.sort_by_key(|&(rows, _)| rows);
    Curve::new(points).with_context(|| format!("in {}", path.display()))
}
